// Command oci packs a root file system as an OCI image of one layer.
//
// It reads a tar from stdin and writes an OCI image layout, which skopeo
// pushes; equal tars give equal digests. It neither builds a root nor talks to
// a registry.
package main

import (
	"crypto/sha256"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"time"

	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

func main() {
	dir := flag.String("dir", "", "folder of the image layout; must not be there yet")
	tag := flag.String("tag", "latest", "name of the image in the layout")
	title := flag.String("title", "", "what the image is, for its label")
	flag.Parse()
	if err := pack(os.Stdin, *dir, *tag, *title); err != nil {
		fmt.Fprintln(os.Stderr, "oci:", err)
		os.Exit(1)
	}
}

func pack(root io.Reader, dir, tag, title string) error {
	blobs := filepath.Join(dir, ocispec.ImageBlobsDir, "sha256")
	if err := os.MkdirAll(blobs, 0o755); err != nil {
		return err
	}
	layer, diffID, err := writeLayer(root, blobs)
	if err != nil {
		return fmt.Errorf("write layer: %w", err)
	}
	config, err := writeJSON(blobs, ocispec.MediaTypeImageConfig, imageConfig(diffID, title))
	if err != nil {
		return fmt.Errorf("write config: %w", err)
	}
	manifest, err := writeJSON(blobs, ocispec.MediaTypeImageManifest, ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest,
		Config: config, Layers: []ocispec.Descriptor{layer},
	})
	if err != nil {
		return fmt.Errorf("write manifest: %w", err)
	}
	manifest.Annotations = map[string]string{ocispec.AnnotationRefName: tag}
	return writeIndex(dir, manifest)
}

// writeLayer stores the tar compressed and returns the digest of the plain one
// too. zstd: containers start from it several times faster than from gzip.
func writeLayer(root io.Reader, blobs string) (ocispec.Descriptor, digest.Digest, error) {
	f, err := os.CreateTemp(blobs, "layer")
	if err != nil {
		return ocispec.Descriptor{}, "", err
	}
	defer f.Close()
	plain, packed := sha256.New(), sha256.New()
	z, err := zstd.NewWriter(io.MultiWriter(f, packed), zstd.WithEncoderLevel(zstd.SpeedDefault))
	if err != nil {
		return ocispec.Descriptor{}, "", err
	}
	if _, err := io.Copy(io.MultiWriter(z, plain), root); err != nil {
		return ocispec.Descriptor{}, "", err
	}
	if err := z.Close(); err != nil {
		return ocispec.Descriptor{}, "", err
	}
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return ocispec.Descriptor{}, "", err
	}
	sum := digest.NewDigest(digest.SHA256, packed)
	if err := f.Chmod(0o644); err != nil {
		return ocispec.Descriptor{}, "", err
	}
	d := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayerZstd, Digest: sum, Size: size}
	return d, digest.NewDigest(digest.SHA256, plain), os.Rename(f.Name(), filepath.Join(blobs, sum.Encoded()))
}

// imageConfig names no command: such an environment waits for sessions.
func imageConfig(diffID digest.Digest, title string) ocispec.Image {
	epoch := time.Unix(0, 0).UTC()
	return ocispec.Image{
		Created:  &epoch,
		Platform: ocispec.Platform{Architecture: runtime.GOARCH, OS: "linux"},
		Config: ocispec.ImageConfig{
			Env:        []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8"},
			WorkingDir: "/root",
			Labels:     map[string]string{ocispec.AnnotationTitle: title},
		},
		RootFS:  ocispec.RootFS{Type: "layers", DiffIDs: []digest.Digest{diffID}},
		History: []ocispec.History{{Created: &epoch, CreatedBy: "deploy/images"}},
	}
}

func writeJSON(blobs, mediaType string, v any) (ocispec.Descriptor, error) {
	b, err := json.Marshal(v)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	d := digest.FromBytes(b)
	return ocispec.Descriptor{MediaType: mediaType, Digest: d, Size: int64(len(b))},
		os.WriteFile(filepath.Join(blobs, d.Encoded()), b, 0o644)
}

func writeIndex(dir string, manifest ocispec.Descriptor) error {
	layout, err := json.Marshal(ocispec.ImageLayout{Version: ocispec.ImageLayoutVersion})
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, ocispec.ImageLayoutFile), layout, 0o644); err != nil {
		return err
	}
	index, err := json.Marshal(ocispec.Index{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex, Manifests: []ocispec.Descriptor{manifest},
	})
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, ocispec.ImageIndexFile), index, 0o644)
}
