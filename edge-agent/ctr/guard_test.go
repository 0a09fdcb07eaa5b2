package ctr

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/remotegpu/remotegpu/protocol"
)

// TestPullsSeeNothingOfTheHost: wherever a registry sends a pull, it does not come to
// what only the host reaches.
func TestPullsSeeNothingOfTheHost(t *testing.T) {
	var asked atomic.Int32
	service := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		asked.Add(1)
		fmt.Fprint(w, `{"token":"the host's secret"}`)
	}))
	defer service.Close()
	_, port, _ := strings.Cut(service.Listener.Addr().String(), ":")
	for _, at := range []string{"127.0.0.1", "localhost", "[::1]", "[::ffff:127.0.0.1]", "0.0.0.0", "[::]", "2130706433", "127.1"} {
		for _, login := range []bool{false, true} {
			client, logins := newGuard(nil, false).client()
			if login {
				client = logins
			}
			if resp, err := client.Get("http://" + at + ":" + port + "/"); err == nil {
				resp.Body.Close()
				t.Errorf("a pull reads what is at %s", at)
			}
		}
	}
	if n := asked.Load(); n > 0 {
		t.Errorf("the host's own service was asked %d times", n)
	}
	for _, at := range []string{"169.254.169.254:80", "100.100.100.200:80", "[fe80::1%lo]:80", "[fd00:ec2::254]:80", "[::ffff:169.254.169.254]:80", "224.0.0.1:80"} {
		if newGuard(nil, true).check("tcp", at, nil) == nil {
			t.Errorf("a pull may go to %s", at)
		}
	}
	if err := newGuard(nil, false).check("tcp", "192.168.1.2:443", nil); err != nil {
		t.Errorf("a registry of the site cannot be reached: %v", err)
	}
	client, _ := newGuard(nil, true).client() // where somebody means this machine
	resp, err := client.Get(service.URL)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
}

// TestForeignLayers: the addresses that a manifest has for its layers are not asked.
func TestForeignLayers(t *testing.T) {
	var asked atomic.Int32
	elsewhere := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { asked.Add(1) }))
	defer elsewhere.Close()
	layer := busybox()
	config, _ := json.Marshal(ocispec.Image{Platform: ocispec.Platform{Architecture: "amd64", OS: "linux"},
		RootFS: ocispec.RootFS{Type: "layers", DiffIDs: []digest.Digest{digest.FromBytes(layer)}}})
	manifest, _ := json.Marshal(ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest,
		Config: ocispec.Descriptor{MediaType: ocispec.MediaTypeImageConfig, Digest: digest.FromBytes(config), Size: int64(len(config)), URLs: []string{elsewhere.URL}},
		Layers: []ocispec.Descriptor{{MediaType: ocispec.MediaTypeImageLayer, Digest: digest.FromBytes(layer), Size: int64(len(layer)), URLs: []string{elsewhere.URL}}},
	})
	registry := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		for _, blob := range [][]byte{layer, config} {
			if strings.HasSuffix(r.URL.Path, digest.FromBytes(blob).String()) {
				http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(blob))
				return
			}
		}
		w.Header().Set("Content-Type", ocispec.MediaTypeImageManifest)
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(manifest))
	}))
	defer registry.Close()
	h := newHost(t, shared)
	h.ready()
	w := shell("", func(w *protocol.Workload) { w.Image = registry.Listener.Addr().String() + "/test/foreign:1" })
	h.do(h.Pull(t.Context(), w, func(_, _ uint64) {}))
	if n := asked.Load(); n > 0 {
		t.Errorf("somebody else was asked %d times", n)
	}
}

// TestEndlessLogin: a token without end is not kept in memory.
func TestEndlessLogin(t *testing.T) {
	h := newHost(t, shared)
	h.ready()
	var sent atomic.Int64
	registry := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/token" {
			w.Header().Set("WWW-Authenticate", `Bearer realm="http://`+r.Host+`/token",service="x"`)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		w.Write([]byte(`{"token":"`))
		for sent.Load() < 64<<20 {
			n, err := w.Write(bytes.Repeat([]byte("a"), 64<<10))
			sent.Add(int64(n))
			if err != nil {
				return
			}
		}
	}))
	defer registry.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	w := shell("", func(w *protocol.Workload) { w.Image = registry.Listener.Addr().String() + "/test/login:1" })
	if err := h.Pull(ctx, w, func(_, _ uint64) {}); err == nil {
		t.Error("it was let in")
	}
	if n := sent.Load(); n > 32<<20 {
		t.Errorf("%d bytes of a token were read", n)
	}
}
