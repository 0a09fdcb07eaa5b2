package ctr

import (
	"context"
	"math"
	"testing"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/plugins/content/local"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/remotegpu/remotegpu/protocol"
)

// TestSizesThatAManifestClaims: whatever they are, the host's status passes, or
// nobody would hear it while that image is pulled.
func TestSizesThatAManifestClaims(t *testing.T) {
	t.Parallel()
	for name, sizes := range map[string][]int64{
		"none": {0}, "negative": {-5, 3}, "the least": {math.MinInt64}, "the most": {math.MaxInt64}, "several of the most": {math.MaxInt64, math.MaxInt64, 7},
	} {
		store, err := local.NewStore(t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		tr := newTracker(store, nil, nil)
		_, err = tr.wrap(images.HandlerFunc(func(context.Context, ocispec.Descriptor) (all []ocispec.Descriptor, err error) {
			for i, size := range sizes {
				all = append(all, ocispec.Descriptor{Digest: digest.FromBytes([]byte{byte(i)}), Size: size})
			}
			return all, nil
		})).Handle(t.Context(), ocispec.Descriptor{})
		if err != nil {
			t.Fatal(err)
		}
		w := protocol.WorkloadStatus{ID: "env_a", Phase: protocol.PhasePulling}
		if w.Done, w.Total, err = tr.count(t.Context()); err != nil {
			t.Fatal(err)
		}
		st := protocol.Status{Version: protocol.Version, Workloads: []protocol.WorkloadStatus{w}}
		if err := st.Validate(); err != nil || w.Done > w.Total {
			t.Errorf("%s: %d of %d bytes: %v", name, w.Done, w.Total, err)
		}
	}
}
