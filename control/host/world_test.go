package host

import (
	"bytes"
	"crypto/ed25519"
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"github.com/remotegpu/remotegpu/control/auth"
	"github.com/remotegpu/remotegpu/control/errs"
	"github.com/remotegpu/remotegpu/control/pg"
	"github.com/remotegpu/remotegpu/control/pgtest"
	"github.com/remotegpu/remotegpu/control/web"
	"github.com/remotegpu/remotegpu/protocol"
)

func TestMain(m *testing.M) { pgtest.Main(m) }

var admin = auth.Caller{Kind: auth.KindUser, ID: "usr_admin", Name: "admin@example.org", Admin: true}

// world is the module on its own database.
type world struct {
	*Service
	t    testing.TB
	pool *pg.Pool
}

func newWorld(t testing.TB) *world {
	t.Helper()
	w := &world{t: t, pool: pgtest.New(t)}
	w.Service = New(w.pool, Config{
		Keys: [][]byte{{1, 2, 3}}, Registry: "gpu.example.org:443",
		Replica: func(string) string { return "rep_here" },
	}, slog.New(slog.DiscardHandler))
	go w.Follow(t.Context())
	return w
}

// machine is a host with its key.
type machine struct {
	id, name string
	key      ed25519.PrivateKey
}

func newKey(t testing.TB) ed25519.PrivateKey {
	t.Helper()
	_, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func request(key ed25519.PrivateKey, token, name string, gpus ...string) protocol.Enroll {
	pub := key.Public().(ed25519.PublicKey)
	e := protocol.Enroll{Token: token, PublicKey: pub, Proof: ed25519.Sign(key, protocol.EnrollProof(token, pub)), Name: name}
	e.Inventory = inventory(name, gpus...)
	return e
}

func inventory(hostname string, gpus ...string) protocol.Inventory {
	inv := protocol.Inventory{Hostname: hostname, OS: "linux", Arch: "amd64", CPUs: 64, Memory: 256 << 30, Disk: 1 << 40}
	for i, uuid := range gpus {
		inv.GPUs = append(inv.GPUs, protocol.GPU{UUID: uuid, Index: uint32(i), Name: "NVIDIA H100", Memory: 80 << 30, Healthy: true})
	}
	return inv
}

// token makes a join token; change may turn it into a bad one.
func (w *world) token(t JoinToken) (id, secret string) {
	w.t.Helper()
	if t.Uses == 0 {
		t.Uses = 1
	}
	made, secret, err := w.CreateToken(w.t.Context(), admin, t, time.Hour)
	if err != nil {
		w.t.Fatal(err)
	}
	return made.ID, secret
}

func (w *world) join(name string, gpus ...string) machine {
	w.t.Helper()
	_, secret := w.token(JoinToken{})
	key := newKey(w.t)
	out, err := w.Enroll(w.t.Context(), auth.Caller{Remote: "192.0.2.7"}, request(key, secret, name, gpus...))
	if err != nil {
		w.t.Fatal(err)
	}
	return machine{out.Host, out.Name, key}
}

func (w *world) get(name string) Host {
	w.t.Helper()
	h, err := w.Find(w.t.Context(), admin, name)
	if err != nil {
		w.t.Fatal(err)
	}
	return h
}

func (w *world) list(f Filter) []Host {
	w.t.Helper()
	page, err := w.List(w.t.Context(), admin, f)
	var all web.List[Host]
	if err == nil {
		err = json.Unmarshal(bytes.Join(page, nil), &all)
	}
	if err != nil {
		w.t.Errorf("%+v: %v", f, err)
	}
	return all.Items
}

func (w *world) count(sql string, args ...any) (n int) {
	w.t.Helper()
	if err := w.pool.QueryRow(w.t.Context(), sql, args...).Scan(&n); err != nil {
		w.t.Fatalf("%s: %v", sql, err)
	}
	return n
}

func (w *world) exec(sql string, args ...any) {
	w.t.Helper()
	if _, err := w.pool.Exec(w.t.Context(), sql, args...); err != nil {
		w.t.Fatalf("%s: %v", sql, err)
	}
}

// report is what dispatch does with one status.
func (w *world) report(id string, st protocol.Status) error {
	return pg.InTx(w.t.Context(), w.pool, func(tx pg.Tx) error {
		return w.Report(w.t.Context(), tx, map[string]*protocol.Status{id: &st})
	})
}

// claims are those of a good token.
func (m machine) claims(audience string) jwt.RegisteredClaims {
	now := time.Now()
	return jwt.RegisteredClaims{
		Subject: m.id, Audience: jwt.ClaimStrings{audience},
		IssuedAt: jwt.NewNumericDate(now), ExpiresAt: jwt.NewNumericDate(now.Add(5 * time.Minute)),
	}
}

func sign(t *testing.T, method jwt.SigningMethod, c jwt.RegisteredClaims, key any) string {
	t.Helper()
	token, err := jwt.NewWithClaims(method, c).SignedString(key)
	if err != nil {
		t.Fatal(err)
	}
	return token
}

func wantError(t *testing.T, err error, kind errs.Kind, text string) {
	t.Helper()
	if err == nil || errs.KindOf(err) != kind || !strings.Contains(errs.Text(err), text) {
		t.Errorf("error %v, want %v with %q", fmt.Sprint(err), kind, text)
	}
}
