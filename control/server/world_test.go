package server

import (
	"crypto/ed25519"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"github.com/remotegpu/remotegpu/control/account"
	"github.com/remotegpu/remotegpu/control/auth"
	"github.com/remotegpu/remotegpu/control/environment"
	"github.com/remotegpu/remotegpu/control/host"
	"github.com/remotegpu/remotegpu/control/pgtest"
	"github.com/remotegpu/remotegpu/protocol"
)

func TestMain(m *testing.M) { pgtest.Main(m) }

// world is a real server with its routes behind HTTP, and people and hosts
// around it.
type world struct {
	*Server
	t       *testing.T
	url     string
	secrets map[string]string // API token by who
	ids     map[string]string
	machine machine // the host among the callers; it has box
	target  string  // another host, for people to change
	box     environment.Environment
}

// machine is a host and the key that it signs with.
type machine struct {
	id, name string
	key      ed25519.PrivateKey
}

func newWorld(t *testing.T) *world {
	t.Helper()
	cfg := Config{DataDir: t.TempDir(), DatabaseURL: pgtest.URL(t), Version: "test"}
	s, err := New(t.Context(), cfg, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.closeDatabase)
	go s.hosts.Follow(t.Context())
	srv := httptest.NewServer(s.handler)
	t.Cleanup(srv.Close)
	w := &world{Server: s, t: t, url: srv.URL, secrets: map[string]string{}, ids: map[string]string{}}
	for _, name := range []string{"stranger", "viewer", "member", "admin", "owner", "platform"} {
		w.user(name)
	}
	system := auth.System("test")
	if _, err := s.Workspaces.Create(t.Context(), system, "lab", w.ids["owner"]); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"viewer", "member", "admin"} {
		if err := s.Workspaces.SetMember(t.Context(), system, "lab", name+"@example.org", auth.Role(name)); err != nil {
			t.Fatal(err)
		}
	}
	w.machine = w.join("gpu-1")
	if w.box, err = s.envs.Create(t.Context(), system, "lab", environment.Spec{Name: "box"}); err != nil {
		t.Fatal(err)
	}
	w.target = w.join("gpu-2").name
	return w
}

func (w *world) user(name string) {
	w.t.Helper()
	u := account.User{Email: name + "@example.org", Admin: name == "platform"}
	u, err := w.Accounts.CreateUser(w.t.Context(), auth.System("test"), u, "correct horse "+name)
	if err != nil {
		w.t.Fatal(err)
	}
	caller, err := w.Accounts.ByUser(w.t.Context(), u)
	if err != nil {
		w.t.Fatal(err)
	}
	_, secret, err := w.Accounts.CreateToken(w.t.Context(), caller, "test", time.Hour)
	if err != nil {
		w.t.Fatal(err)
	}
	w.secrets[name], w.ids[name] = secret, u.ID
}

// join makes a host the way an agent does.
func (w *world) join(name string) machine {
	w.t.Helper()
	system := auth.System("test")
	_, secret, err := w.hosts.CreateToken(w.t.Context(), system, host.JoinToken{Uses: 1}, time.Hour)
	if err != nil {
		w.t.Fatal(err)
	}
	pub, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		w.t.Fatal(err)
	}
	in := protocol.Enroll{Token: secret, PublicKey: pub, Proof: ed25519.Sign(key, protocol.EnrollProof(secret, pub)), Name: name,
		Inventory: protocol.Inventory{Hostname: name, OS: "linux", Arch: "amd64", CPUs: 8, Memory: 64 << 30, Disk: 1 << 40}}
	out, err := w.hosts.Enroll(w.t.Context(), auth.Caller{}, in)
	if err != nil {
		w.t.Fatal(err)
	}
	if err := w.hosts.Presence(w.t.Context(), out.Host, protocol.Presence{Version: protocol.Version, Epoch: 1, Online: true}); err != nil {
		w.t.Fatal(err)
	}
	return machine{out.Host, out.Name, key}
}

func (m machine) token(t *testing.T, audience string) string {
	t.Helper()
	now := time.Now()
	token, err := jwt.NewWithClaims(jwt.SigningMethodEdDSA, jwt.RegisteredClaims{
		Subject: m.id, Audience: jwt.ClaimStrings{audience}, IssuedAt: jwt.NewNumericDate(now), ExpiresAt: jwt.NewNumericDate(now.Add(5 * time.Minute)),
	}).SignedString(m.key)
	if err != nil {
		t.Fatal(err)
	}
	return token
}

// ask sends a request and returns status and body of the answer. A path that
// ends in a stream (WebSocket) is asked as a plain GET.
func (w *world) ask(method, path, body string, login func(*http.Request)) (int, string) {
	w.t.Helper()
	req, err := http.NewRequestWithContext(w.t.Context(), method, w.url+path, strings.NewReader(body))
	if err != nil {
		w.t.Fatal(err)
	}
	if body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	login(req)
	res, err := http.DefaultTransport.RoundTrip(req)
	if err != nil {
		w.t.Fatal(err)
	}
	defer res.Body.Close()
	raw, err := io.ReadAll(res.Body)
	if err != nil {
		w.t.Fatal(err)
	}
	return res.StatusCode, string(raw)
}
