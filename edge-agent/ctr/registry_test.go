package ctr

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/distribution/distribution/v3/configuration"
	"github.com/distribution/distribution/v3/registry/handlers"
	_ "github.com/distribution/distribution/v3/registry/storage/driver/inmemory"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	"github.com/remotegpu/remotegpu/protocol"
)

// registry is a real registry with a password, over TLS and in the clear.
type registry struct {
	app   http.Handler
	tls   *httptest.Server
	plain *httptest.Server
	pool  *x509.CertPool
	slow  atomic.Int64 // bytes per 100 ms of every blob; 0: as fast as can be
}

func newRegistry(dir string) *registry {
	logrus.SetLevel(logrus.PanicLevel)
	config := &configuration.Configuration{Storage: configuration.Storage{"inmemory": nil}}
	config.Log.Level = "panic"
	config.Log.AccessLog.Disabled = true
	config.HTTP.Secret = "test"
	config.Catalog.MaxEntries = 10
	r := &registry{app: handlers.NewApp(context.Background(), config)}
	guarded := http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if _, password, _ := req.BasicAuth(); password != "right" {
			w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		if n := r.slow.Load(); n > 0 && strings.Contains(req.URL.Path, "/blobs/") {
			w = &slowWriter{w, n}
		}
		r.app.ServeHTTP(w, req)
	})
	r.tls = httptest.NewTLSServer(guarded)
	r.plain = httptest.NewServer(r.app)
	r.pool = x509.NewCertPool()
	r.pool.AddCert(r.tls.Certificate())
	r.push("test/busybox", "1", ocispec.ImageConfig{Env: []string{"FROM=image"}, Entrypoint: []string{"/bin/false"}}, busybox())
	return r
}

// pushBig pushes an image that no containerd has seen yet.
func (r *registry) pushBig(tag string) {
	noise := make([]byte, 4<<20)
	rand.Read(noise)
	r.push("test/big", tag, ocispec.ImageConfig{}, busybox(), archive(file{name: "noise", data: noise}))
}

func (r *registry) close() { r.tls.Close(); r.plain.Close() }

type slowWriter struct {
	http.ResponseWriter
	bytes int64
}

func (s *slowWriter) Write(p []byte) (n int, err error) {
	for len(p) > 0 && err == nil {
		var m int
		m, err = s.ResponseWriter.Write(p[:min(int64(len(p)), s.bytes)])
		n, p = n+m, p[m:]
		http.NewResponseController(s.ResponseWriter).Flush()
		time.Sleep(100 * time.Millisecond)
	}
	return n, err
}

type file struct {
	name, link string
	data       []byte
	mode       int64
	kind       byte // of tar; 0: as the name and link say
}

func archive(files ...file) []byte {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, f := range files {
		h := &tar.Header{Name: f.name, Mode: f.mode, Size: int64(len(f.data)), Typeflag: tar.TypeReg}
		if f.link != "" {
			h.Typeflag, h.Linkname = tar.TypeSymlink, f.link
		}
		if strings.HasSuffix(f.name, "/") {
			h.Typeflag = tar.TypeDir
		}
		if f.kind != 0 {
			h.Typeflag, h.Devmajor, h.Devminor = f.kind, 1, 3 // of /dev/null
		}
		w.WriteHeader(h)
		w.Write(f.data)
	}
	w.Close()
	return b.Bytes()
}

// busybox is a root file system of one program.
func busybox() []byte {
	program, err := os.ReadFile("/bin/busybox")
	if err != nil {
		panic(err)
	}
	files := []file{
		{name: "bin/", mode: 0o755}, {name: "tmp/", mode: 0o1777}, {name: "bin/busybox", data: program, mode: 0o755},
		{name: "etc/", mode: 0o755},
		{name: "etc/passwd", data: []byte("root:x:0:0:root:/:/bin/sh\ndev:x:1000:1001:dev:/home/dev:/bin/sh\n"), mode: 0o644},
		{name: "etc/group", data: []byte("root:x:0:\ndev:x:1001:\n"), mode: 0o644},
	}
	for _, name := range strings.Fields("sh echo cat id hostname sleep env stat ls dd touch mount mknod grep pwd date true false kill wc df ping ip") {
		files = append(files, file{name: "bin/" + name, link: "busybox"})
	}
	return archive(files...)
}

func (r *registry) push(repo, tag string, config ocispec.ImageConfig, layers ...[]byte) {
	m := ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest}
	img := ocispec.Image{Platform: ocispec.Platform{Architecture: "amd64", OS: "linux"}, Config: config}
	img.RootFS.Type = "layers"
	for _, l := range layers {
		d := r.blob(repo, ocispec.MediaTypeImageLayer, l)
		m.Layers = append(m.Layers, d)
		img.RootFS.DiffIDs = append(img.RootFS.DiffIDs, d.Digest)
	}
	b, _ := json.Marshal(img)
	m.Config = r.blob(repo, ocispec.MediaTypeImageConfig, b)
	b, _ = json.Marshal(m)
	r.send(http.MethodPut, r.plain.URL+"/v2/"+repo+"/manifests/"+tag, ocispec.MediaTypeImageManifest, b)
}

func (r *registry) blob(repo, kind string, b []byte) ocispec.Descriptor {
	sum := sha256.Sum256(b)
	d := digest.NewDigestFromEncoded(digest.SHA256, hex.EncodeToString(sum[:]))
	at := r.send(http.MethodPost, r.plain.URL+"/v2/"+repo+"/blobs/uploads/", "", nil)
	r.send(http.MethodPut, at+"&digest="+string(d), "application/octet-stream", b)
	return ocispec.Descriptor{MediaType: kind, Digest: d, Size: int64(len(b))}
}

func (r *registry) send(method, url, kind string, body []byte) (location string) {
	req, _ := http.NewRequest(method, url, bytes.NewReader(body))
	req.Header.Set("Content-Type", kind)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		panic(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode > 299 {
		text, _ := io.ReadAll(resp.Body)
		panic(fmt.Sprintf("%s %s: %s %s", method, url, resp.Status, text))
	}
	return resp.Header.Get("Location")
}

func TestPullFaults(t *testing.T) {
	h := newHost(t, shared)
	h.ready()
	plain := hub.plain.Listener.Addr().String()
	for _, c := range []struct {
		name, image, password string
		pullErr               error
		final                 bool
		want                  string
	}{
		{name: "bad reference", image: "UPPER//x", final: true, want: "cannot be read; write it as registry/name:tag"},
		{name: "unknown image", image: "{control}/test/none:1", want: "is unknown to registry"},
		{name: "unknown tag", image: plain + "/test/busybox:none", want: "is unknown to registry"},
		{name: "wrong password", image: "{control}/test/busybox:1", password: "wrong", want: "no right to pull"},
		{name: "no credentials", image: "{control}/test/busybox:1", pullErr: io.ErrUnexpectedEOF, want: "the control plane gave no login"},
		{name: "nobody there", image: "127.0.0.1:1/test/busybox:1", want: "cannot be reached"},
		{name: "unknown name", image: "registry.invalid/x:1", want: "cannot be reached"},
	} {
		t.Run(c.name, func(t *testing.T) {
			h.password, h.pullErr = "right", c.pullErr
			if c.password != "" {
				h.password = c.password
			}
			err := h.Pull(t.Context(), shell("", func(w *protocol.Workload) { w.Image = c.image }), func(_, _ uint64) {})
			f := fault(t, err)
			if f.Final != c.final || !strings.Contains(f.Message, c.want) {
				t.Errorf("final %v, message %q (cause %v), want %v and %q", f.Final, f.Message, f.Err, c.final, c.want)
			}
		})
	}
}

// TestInsaneImages: what a registry claims of its images is not believed. Sizes
// over 63 bits would make a status that the server refuses, a large config would be
// held in memory.
func TestInsaneImages(t *testing.T) {
	h := newHost(t, shared)
	h.ready()
	part := func(kind string, size int64) ocispec.Descriptor {
		return ocispec.Descriptor{MediaType: kind, Digest: digest.FromString(fmt.Sprint(kind, size)), Size: size}
	}
	manifest := func(config ocispec.Descriptor, layers ...ocispec.Descriptor) []byte {
		b, _ := json.Marshal(ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest, Config: config, Layers: layers})
		return b
	}
	config, layer := part(ocispec.MediaTypeImageConfig, 100), part(ocispec.MediaTypeImageLayer, 100)
	for _, c := range []struct {
		name     string
		manifest []byte
		want     string
	}{
		{"negative size", manifest(config, part(ocispec.MediaTypeImageLayer, -1)), "claims to have -1 bytes"},
		{"huge layers", manifest(config, part(ocispec.MediaTypeImageLayer, 1<<62), part(ocispec.MediaTypeImageLayer, 1<<62+1)), "claims to have 46116860184273879"},
		{"huge config", manifest(part(ocispec.MediaTypeImageConfig, 1<<34), layer), "claims to have 17179869184 bytes"},
		{"config as a layer", manifest(part(ocispec.MediaTypeImageLayer, 1<<34), layer), "claims to have 17179869184 bytes"},
		{"many layers", manifest(config, slices.Repeat([]ocispec.Descriptor{layer}, 5000)...), "5001 parts"},
	} {
		t.Run(c.name, func(t *testing.T) {
			stop := make(chan struct{})
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if strings.Contains(r.URL.Path, "/manifests/") {
					w.Header().Set("Content-Type", ocispec.MediaTypeImageManifest)
					w.Header().Set("Docker-Content-Digest", digest.FromBytes(c.manifest).String())
					w.Header().Set("Content-Length", fmt.Sprint(len(c.manifest)))
					w.Write(c.manifest)
					return
				}
				<-stop // a blob comes never
			}))
			defer server.Close()
			defer close(stop)
			ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
			defer cancel()
			w := shell("", func(w *protocol.Workload) { w.Image = server.Listener.Addr().String() + "/test/insane:1" })
			err := h.Pull(ctx, w, func(_, total uint64) {
				if total > math.MaxInt64 {
					t.Errorf("%d bytes are to come", total)
				}
			})
			if f := fault(t, err); !f.Final || !strings.Contains(f.Message, c.want) {
				t.Errorf("final %v, message %q (cause %v), want %q", f.Final, f.Message, f.Err, c.want)
			}
		})
	}
}

func TestPullProgress(t *testing.T) {
	h := newHost(t, shared)
	h.ready()
	hub.pushBig("progress")
	hub.slow.Store(200 << 10)
	defer hub.slow.Store(0)
	var seen []uint64
	var total uint64
	w := shell("", func(w *protocol.Workload) { w.Image = "{control}/test/big:progress" })
	h.do(h.Pull(t.Context(), w, func(done, all uint64) {
		if len(seen) == 0 || done != seen[len(seen)-1] {
			seen = append(seen, done)
		}
		total = all
	}))
	if len(seen) < 3 || total < 5<<20 {
		t.Errorf("progress %v of %d, want several steps of more than 5 MiB", seen, total)
	}
	have, err := h.Observe(t.Context())
	h.do(err)
	if have.Images["env_a"] != 1 {
		t.Errorf("images %v, want revision 1 ready", have.Images)
	}
}

// TestPullTogether shows that workloads which want the same image at once all
// get it.
func TestPullTogether(t *testing.T) {
	h := newHost(t, shared)
	h.ready()
	hub.pushBig("together")
	errs := make(chan error)
	for i := range 5 {
		go func() {
			errs <- h.Pull(t.Context(), shell("", func(w *protocol.Workload) {
				w.ID, w.Image = fmt.Sprint("env_", i), "{control}/test/big:together"
			}), func(_, _ uint64) {})
		}()
	}
	for range 5 {
		h.do(<-errs)
	}
}

// TestCredentialsStayHome shows that nobody is asked for credentials, and no
// registry gets any, without PullAuth.
func TestCredentialsStayHome(t *testing.T) {
	h := newHost(t, shared, func(c *Config) {
		c.Credentials = func(context.Context, protocol.Workload, string) (string, string, error) {
			t.Error("asked for credentials")
			return "user", "right", nil
		}
	})
	h.ready()
	err := h.Pull(t.Context(), shell("", func(w *protocol.Workload) { w.PullAuth = false }), func(_, _ uint64) {})
	if f := fault(t, err); !strings.Contains(f.Message, "no right to pull") {
		t.Error(f)
	}
}

// TestPullOnFullDisk pulls onto a file system that is too small.
func TestPullOnFullDisk(t *testing.T) {
	dir, err := os.MkdirTemp(scratch, "small")
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=3m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
	d := newDaemon(dir)
	d.start()
	t.Cleanup(d.stop)
	h := newHost(t, d)
	h.ready()
	hub.pushBig("disk")
	err = h.Pull(t.Context(), shell("", func(w *protocol.Workload) { w.Image = "{control}/test/big:disk" }), func(_, _ uint64) {})
	if f := fault(t, err); f.Final || !strings.Contains(f.Message, "the host's disk is full; free space") {
		t.Error(f)
	}
}

// TestPullCancelled shows that a cancelled pull ends at once and is not in the
// way of the next one.
func TestPullCancelled(t *testing.T) {
	h := newHost(t, shared)
	h.ready()
	hub.pushBig("cancelled")
	hub.slow.Store(10 << 10)
	ctx, cancel := context.WithCancel(t.Context())
	w := shell("", func(w *protocol.Workload) { w.Image = "{control}/test/big:cancelled" })
	err := h.Pull(ctx, w, func(done, _ uint64) {
		if done > 0 {
			cancel()
		}
	})
	hub.slow.Store(0)
	if err == nil {
		t.Fatal("cancelled pull gave no error")
	}
	h.do(h.Pull(t.Context(), w, func(_, _ uint64) {}))
	list, err := h.client.LeasesService().List(h.ctx(t.Context()))
	h.do(err)
	if len(list) != 0 {
		t.Errorf("leases %v stay", list)
	}
}

// TestPullWithoutRegistry shows that a host that is cut off starts what it has.
func TestPullWithoutRegistry(t *testing.T) {
	lone := newLoneRegistry()
	h := newHost(t, shared)
	h.ready()
	w := shell("", func(w *protocol.Workload) { w.Image = lone.Listener.Addr().String() + "/test/busybox:1" })
	h.do(h.Pull(t.Context(), w, func(_, _ uint64) {}))
	lone.Close()
	w.Revision = 2
	h.do(h.Pull(t.Context(), w, func(_, _ uint64) {}))
}

// TestPullOverLeftovers: containerd has lost its own records but not those of
// its snapshotter, as when it dies in the midst of its garbage collection. It
// then takes a layer that it knows nothing of for unpacked already.
func TestPullOverLeftovers(t *testing.T) {
	d := newDaemon(filepath.Join(scratch, "leftovers"))
	d.start()
	t.Cleanup(d.stop)
	h := newHost(t, d)
	h.ready()
	w := shell("")
	h.do(h.Pull(t.Context(), w, func(_, _ uint64) {}))
	d.stop()
	if err := os.Remove(filepath.Join(d.dir, "root/io.containerd.metadata.v1.bolt/meta.db")); err != nil {
		t.Fatal(err)
	}
	d.start()
	h.ready()
	h.do(h.Pull(t.Context(), w, func(_, _ uint64) {}))
	name, _, _, err := h.reference(w.Image)
	if err != nil {
		t.Fatal(err)
	}
	if !h.usable(h.ctx(t.Context()), name) {
		t.Error("the image counts as pulled and is not unpacked")
	}
}

func newLoneRegistry() *httptest.Server { return httptest.NewServer(hub.app) }
