package ctr

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/remotegpu/remotegpu/edge-agent/reconcile"
)

var errStalled = errors.New("no bytes came for too long")

// tracker counts the bytes of a pull: it learns from the manifests what is to
// come, and from the content store what is there.
type tracker struct {
	store   content.Store
	report  func(done, total uint64)
	stalled func()

	mu   sync.Mutex                           // guards todo
	todo map[digest.Digest]ocispec.Descriptor // everything the image needs
	here map[digest.Digest]bool               // of the goroutine of run: complete
}

func newTracker(store content.Store, report func(done, total uint64), stalled func()) *tracker {
	return &tracker{
		store: store, report: report, stalled: stalled,
		todo: map[digest.Digest]ocispec.Descriptor{}, here: map[digest.Digest]bool{},
	}
}

// What an image may have. A registry may be anybody's and says what it likes;
// manifests, indexes and configs are held in memory, by containerd too.
const (
	maxText   = 8 << 20 // bytes of a manifest, index or config
	maxBlob   = 1 << 44 // bytes of a layer
	maxOfText = 1000    // layers of a manifest, manifests of an index; no host mounts as many layers
)

// wrap notes the children of everything that is handled.
func (t *tracker) wrap(h images.Handler) images.Handler {
	return images.HandlerFunc(func(ctx context.Context, d ocispec.Descriptor) ([]ocispec.Descriptor, error) {
		if err := sane(d, maxBlob); err != nil {
			return nil, err
		}
		d.URLs = nil // they are fetched from anywhere, past the guard
		children, err := h.Handle(ctx, d)
		if err == nil {
			err = saneChildren(d, children)
		}
		if err != nil {
			return nil, err
		}
		t.mu.Lock()
		for _, c := range children {
			t.todo[c.Digest] = c
		}
		t.mu.Unlock()
		return children, nil
	})
}

func saneChildren(d ocispec.Descriptor, children []ocispec.Descriptor) error {
	if len(children) > maxOfText {
		return reconcile.Finalf(nil, "the image has %d parts, over the limit of %d; build it with fewer layers", len(children), maxOfText)
	}
	for i, c := range children {
		limit := int64(maxBlob)
		if i == 0 && images.IsManifestType(d.MediaType) { // its config, whatever the type it claims
			limit = maxText
		}
		if err := sane(c, limit); err != nil {
			return err
		}
	}
	return nil
}

// sane refuses what says that it is larger than anything that is real, or than
// what can be held in memory.
func sane(d ocispec.Descriptor, limit int64) error {
	if images.IsManifestType(d.MediaType) || images.IsIndexType(d.MediaType) || images.IsConfigType(d.MediaType) {
		limit = maxText
	}
	if d.Size < 0 || d.Size > limit {
		return reconcile.Finalf(nil, "a part of the image, %.80s, claims to have %d bytes, the limit is %d; build the image anew", d.Digest, d.Size, limit)
	}
	return nil
}

// run reports until ctx ends, and calls stalled when nothing moves for
// stalledAfter although bytes are missing.
func (t *tracker) run(ctx context.Context) {
	tick := time.NewTicker(250 * time.Millisecond)
	defer tick.Stop()
	var last uint64
	moved := time.Now()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		done, total, err := t.count(ctx)
		if err != nil {
			continue
		}
		if done != last || done == total {
			last, moved = done, time.Now()
		}
		if total > 0 {
			t.report(done, total)
		}
		if time.Since(moved) > stalledAfter {
			t.stalled()
			return
		}
	}
}

func (t *tracker) count(ctx context.Context) (done, total uint64, err error) {
	active, err := t.store.ListStatuses(ctx)
	if err != nil {
		return 0, 0, err
	}
	offsets := make(map[string]int64, len(active))
	for _, s := range active {
		offsets[s.Ref] = s.Offset
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	for id, d := range t.todo {
		total += uint64(d.Size)
		if !t.here[id] {
			_, err := t.store.Info(ctx, id)
			t.here[id] = err == nil
		}
		if t.here[id] {
			done += uint64(d.Size)
		} else {
			done += uint64(min(offsets[remotes.MakeRefKey(ctx, d)], d.Size))
		}
	}
	return done, total, nil
}
