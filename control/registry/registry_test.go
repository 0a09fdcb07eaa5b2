package registry

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/remotegpu/remotegpu/control/auth"
	"github.com/remotegpu/remotegpu/control/errs"
	"github.com/remotegpu/remotegpu/control/pg"
	"github.com/remotegpu/remotegpu/control/pgtest"
	"github.com/remotegpu/remotegpu/control/web"
	"github.com/remotegpu/remotegpu/control/workspace"
)

func TestMain(m *testing.M) { pgtest.Main(m) }

// world is a registry behind HTTPS. Whoever names a caller as password is them;
// "host_a" and "host_b" are hosts.
type world struct {
	t       *testing.T
	pool    *pg.Pool
	addr    string
	client  *http.Client
	callers map[string]auth.Caller
	taken   atomic.Int64 // bytes that pushes had room for
	room    atomic.Int64 // that they have; 0: any
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{t: t, pool: pgtest.New(t), callers: map[string]auth.Caller{}}
	ctx := context.WithoutCancel(t.Context())
	spaces := workspace.New(w.pool)
	ids := map[string]string{}
	w.exec("insert into users (id, email, name) values ('usr_o', 'o@example.org', 'O')")
	for _, name := range []string{workspace.Library, "lab", "other", "library2"} {
		ws, err := spaces.Create(ctx, auth.System("test"), name, "usr_o")
		if err != nil {
			t.Fatal(err)
		}
		ids[name] = ws.ID
	}
	for _, role := range []auth.Role{auth.Viewer, auth.Member} {
		w.callers[string(role)] = auth.Caller{Kind: auth.KindUser, ID: "usr_" + string(role), Roles: map[string]auth.Role{ids["lab"]: role}}
	}
	w.callers["stranger"] = auth.Caller{Kind: auth.KindUser, ID: "usr_s"}
	w.callers["platform"] = auth.Caller{Kind: auth.KindUser, ID: "usr_p", Admin: true}
	for _, name := range []string{"host_a", "host_b"} {
		w.callers[name] = auth.Caller{Kind: auth.KindHost, ID: name}
		w.exec("insert into hosts (id, name, public_key, state) values ($1, $2, $3, 'active')", name, name[5:], []byte(name))
	}
	w.callers["host_a's"] = w.callers["host_a"]
	_, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	s := New(ctx, w.pool, Config{
		Dir: t.TempDir(), Secret: key, User: func(ctx context.Context, _, secret string) (auth.Caller, error) { return w.who(ctx, secret) }, Host: w.who, Resolve: spaces.Resolve, Log: slog.New(slog.DiscardHandler), Room: w.left,
	})
	api := web.New("test", slog.New(slog.DiscardHandler))
	s.Routes(api)
	srv := httptest.NewTLSServer(api.Handler(func(*http.Request) (auth.Caller, error) { return auth.Caller{}, nil }, false))
	t.Cleanup(srv.Close)
	w.addr, w.client = srv.Listener.Addr().String(), srv.Client()
	return w
}

func (w *world) left(bytes int64) error {
	if taken, room := w.taken.Add(bytes), w.room.Load(); room > 0 && taken > room {
		return errs.E(errs.Unavailable, "The server's disk is nearly full.")
	}
	return nil
}

// TestPushesLeaveRoom: an upload without end is ended before the disk is full, and
// what is there can still be had.
func TestPushesLeaveRoom(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	if err := w.push(image(t, "hello"), "lab/hello:1", "me", "member"); err != nil {
		t.Fatal(err)
	}
	w.taken.Store(0)
	w.room.Store(64 << 20)
	ask := func(method, url string, body io.Reader) *http.Response {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), method, url, body)
		if err != nil {
			t.Fatal(err)
		}
		req.SetBasicAuth("me", "member")
		res, err := w.client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { res.Body.Close() })
		return res
	}
	upload := ask(http.MethodPost, "https://"+w.addr+"/v2/lab/big/blobs/uploads/", nil).Header.Get("Location")
	sent := &endless{limit: 512 << 20}
	res := ask(http.MethodPatch, upload, sent)
	body, err := io.ReadAll(res.Body)
	if err != nil || res.StatusCode != http.StatusServiceUnavailable || !strings.Contains(string(body), "nearly full") {
		t.Errorf("status %d %s %v", res.StatusCode, body, err)
	}
	if n := sent.n.Load(); n > 128<<20 {
		t.Errorf("%d bytes were taken", n)
	}
	if err := w.push(image(t, "more"), "lab/more:1", "me", "member"); err == nil || !strings.Contains(err.Error(), "503") { // skopeo shows no more
		t.Errorf("another push: %v", err)
	}
	if err := w.pull("lab/hello:1", "me", "member"); err != nil {
		t.Error(err)
	}
}

// endless is a body, but for a limit that shows that nobody ended it.
type endless struct {
	n     atomic.Int64
	limit int64
}

func (e *endless) Read(p []byte) (int, error) {
	if e.n.Add(int64(len(p))) > e.limit {
		return 0, io.EOF
	}
	return len(p), nil
}

func (w *world) who(_ context.Context, secret string) (auth.Caller, error) {
	c, ok := w.callers[secret]
	if !ok {
		return c, errs.E(errs.Unauthenticated, "This token is not valid.")
	}
	return c, nil
}

func (w *world) exec(sql string, args ...any) {
	w.t.Helper()
	if _, err := w.pool.Exec(w.t.Context(), sql, args...); err != nil {
		w.t.Fatalf("%s: %v", sql, err)
	}
}

// ask returns the status of a request as user with password.
func (w *world) ask(method, path, user, password string) (int, string) {
	w.t.Helper()
	req, err := http.NewRequestWithContext(w.t.Context(), method, "https://"+w.addr+"/v2/", nil)
	if err != nil {
		w.t.Fatal(err)
	}
	req.URL.Opaque = "//" + w.addr + "/v2/" + path // as written: no cleaning on our side
	if user != "" {
		req.SetBasicAuth(user, password)
	}
	res, err := w.client.Transport.RoundTrip(req)
	if err != nil {
		w.t.Fatal(err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		w.t.Fatal(err)
	}
	return res.StatusCode, string(body)
}

// image writes a small OCI layout and returns skopeo's name of it.
func image(t *testing.T, text string) string {
	t.Helper()
	dir := t.TempDir()
	write := func(b []byte) map[string]any {
		digest := fmt.Sprintf("%x", sha256.Sum256(b))
		file := filepath.Join(dir, "blobs", "sha256", digest)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, b, 0o644); err != nil {
			t.Fatal(err)
		}
		return map[string]any{"digest": "sha256:" + digest, "size": len(b)}
	}
	document := func(mediaType string, v any) map[string]any {
		b, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		d := write(b)
		d["mediaType"] = mediaType
		return d
	}
	var layer bytes.Buffer
	tw := tar.NewWriter(&layer)
	if err := tw.WriteHeader(&tar.Header{Name: "hello", Mode: 0o644, Size: int64(len(text))}); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(tw, text); err != nil {
		t.Fatal(err)
	}
	if err := tw.Close(); err != nil {
		t.Fatal(err)
	}
	blob := write(layer.Bytes())
	blob["mediaType"] = "application/vnd.oci.image.layer.v1.tar"
	config := document("application/vnd.oci.image.config.v1+json", map[string]any{
		"architecture": "amd64", "os": "linux", "rootfs": map[string]any{"type": "layers", "diff_ids": []any{blob["digest"]}},
	})
	manifest := document("application/vnd.oci.image.manifest.v1+json", map[string]any{
		"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json", "config": config, "layers": []any{blob},
	})
	index, err := json.Marshal(map[string]any{"schemaVersion": 2, "manifests": []any{manifest}})
	if err != nil {
		t.Fatal(err)
	}
	for name, b := range map[string][]byte{"index.json": index, "oci-layout": []byte(`{"imageLayoutVersion":"1.0.0"}`)} {
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return "oci:" + dir
}

func (w *world) push(from, repository, user, password string) error {
	return skopeo(w.t, "copy", "--insecure-policy", "--dest-tls-verify=false", "--dest-creds", user+":"+password, from, "docker://"+w.addr+"/"+repository)
}

func (w *world) pull(repository, user, password string) error {
	w.t.Helper()
	return skopeo(w.t, "copy", "--insecure-policy", "--src-tls-verify=false", "--src-creds", user+":"+password, "docker://"+w.addr+"/"+repository, "oci:"+w.t.TempDir())
}

func skopeo(t *testing.T, args ...string) error {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "skopeo", args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	return nil
}

func TestPushAndPull(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	hello := image(t, "hello")
	if err := w.push(hello, "lab/hello:1", "me", "member"); err != nil {
		t.Fatal(err)
	}
	if err := w.push(hello, "library/base:1", "me", "platform"); err != nil {
		t.Fatal(err)
	}
	if err := w.push(hello, "library2/secret:1", "me", "platform"); err != nil {
		t.Fatal(err)
	}
	w.exec(`insert into environments (id, workspace_id, name, host_id, want, phase, image, owner_id, resources, restart, document_bytes)
		select 'env_1', id, 'box', 'host_a', 'running', 'running', 'x', 'usr_o', '{}', 'never', 1 from workspaces where name = 'lab'`)
	for _, c := range []struct {
		push, ok               bool
		repository, user, pass string
	}{
		{true, false, "lab/hello:1", "me", "viewer"},
		{true, false, "lab/hello:1", "me", "stranger"},
		{true, false, "lab/hello:1", "me", "wrong"},
		{true, false, "lab/hello:1", "host_a", "host_a"},
		{true, false, "library/base:1", "me", "member"},
		{true, false, "mars/hello:1", "me", "platform"},
		{true, true, "lab/deep/er/hello:1", "me", "member"},
		{false, true, "lab/hello:1", "me", "viewer"},
		{false, true, "lab/hello:1", "me", "platform"},
		{false, false, "lab/hello:1", "me", "stranger"},
		{false, true, "lab/hello:1", "host_a", "host_a"},
		{false, false, "lab/hello:1", "host_b", "host_b"},
		{false, false, "lab/hello:1", "host_b", "host_a's"}, // one host's token as another
		{false, true, "library/base:1", "me", "stranger"},
		{false, true, "library/base:1", "host_b", "host_b"},
		{false, false, "library/base:1", "me", "wrong"},
		{false, false, "library2/secret:1", "me", "member"},
		{false, false, "library2/secret:1", "host_a", "host_a"},
	} {
		err := w.pull(c.repository, c.user, c.pass)
		if c.push {
			err = w.push(hello, c.repository, c.user, c.pass)
		}
		if (err == nil) != c.ok {
			t.Errorf("%+v: %v", c, err)
		}
	}
}

func TestWaysAround(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	if err := w.push(image(t, "secret"), "other/secret:1", "me", "platform"); err != nil {
		t.Fatal(err)
	}
	manifest := "/manifests/1"
	for _, path := range []string{
		"", "other/secret" + manifest, "library/base" + manifest, "_catalog",
	} {
		if status, body := w.ask("GET", path, "", ""); status != http.StatusUnauthorized {
			t.Errorf("%q as nobody: %d %s", path, status, body)
		}
	}
	for _, path := range []string{
		"other/secret" + manifest, "OTHER/secret" + manifest, "library/../other/secret" + manifest, "library%2F..%2Fother/secret" + manifest,
		"library/%2e%2e/other/secret" + manifest, "./other/secret" + manifest, "/other/secret" + manifest, "library//other/secret" + manifest,
		"library2/base" + manifest, "library" + manifest, "secret" + manifest, "lab/../other/secret" + manifest, "_catalog", "_catalog?n=5",
		"other/secret/tags/list", "lab/x/blobs/uploads/?mount=sha256:" + strings.Repeat("0", 64) + "&from=other/secret",
	} {
		for _, who := range []string{"stranger", "member", "host_a"} {
			method, user := "GET", "me"
			if strings.HasPrefix(who, "host") {
				user = who
			}
			if strings.Contains(path, "mount=") {
				method = "POST"
			}
			if status, body := w.ask(method, path, user, who); status < 300 {
				t.Errorf("%s %q as %s: %d %s", method, path, who, status, body)
			}
		}
	}
	if status, body := w.ask("GET", "_catalog", "me", "platform"); status != 200 || !strings.Contains(body, "other/secret") {
		t.Errorf("catalogue: %d %s", status, body)
	}
	there, body := w.ask("GET", "other/secret"+manifest, "me", "member")
	not, body2 := w.ask("GET", "other/nothing"+manifest, "me", "member")
	none, body3 := w.ask("GET", "nomad/secret"+manifest, "me", "member")
	body, body2, body3 = strings.ReplaceAll(body, "other/secret", "X"), strings.ReplaceAll(body2, "other/nothing", "X"), strings.ReplaceAll(body3, "nomad/secret", "X")
	if there != not || there != none || body != body2 || body != body3 {
		t.Errorf("a stranger can tell them apart:\n%d %s\n%d %s\n%d %s", there, body, not, body2, none, body3)
	}
}

// A client prints what the registry answers, so it says why.
func TestRefusalsSayWhy(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for _, c := range []struct {
		method, path, pass string
		status             int
		says               string
	}{
		{"GET", "", "", 401, `"UNAUTHORIZED","message":"Log in first`},
		{"GET", "", "wrong", 401, `"UNAUTHORIZED","message":"This token is not valid.`},
		{"POST", "lab/hello/blobs/uploads/", "viewer", 403, `"DENIED","message":"Your role in this workspace is viewer`},
		{"POST", "library/base/blobs/uploads/", "member", 403, `"DENIED","message":"There is no such workspace, or you are not a member of it.`},
		{"GET", "other/secret/manifests/1", "member", 403, `"DENIED","message":"There is no such workspace, or you are not a member of it.`},
		{"GET", "mars/secret/manifests/1", "member", 403, `"DENIED","message":"There is no such workspace, or you are not a member of it.`},
		{"GET", "hello/manifests/1", "member", 400, `"NAME_INVALID","message":"Name images HOST/WORKSPACE/NAME`},
		{"GET", "lab/hello/manifests/1", "member", 404, `"MANIFEST_UNKNOWN"`},
	} {
		user := "me"
		if c.pass == "" {
			user = ""
		}
		if status, body := w.ask(c.method, c.path, user, c.pass); status != c.status || !strings.Contains(body, c.says) {
			t.Errorf("%s %q as %q: %d %s", c.method, c.path, c.pass, status, body)
		}
	}
	w.pool.Close()
	if status, body := w.ask("GET", "mars/hello/manifests/1", "me", "member"); status != 500 || !strings.Contains(body, `"message":"Internal error"`) {
		t.Errorf("without a database: %d %s", status, body)
	}
}
