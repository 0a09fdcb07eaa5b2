package host

import (
	"context"
	"crypto/ed25519"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"github.com/remotegpu/remotegpu/control/auth"
	"github.com/remotegpu/remotegpu/control/errs"
	"github.com/remotegpu/remotegpu/protocol"
)

func TestJoinTokens(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	_, used := w.token(JoinToken{})
	_, err := w.Enroll(t.Context(), auth.Caller{}, request(newKey(t), used, "first"))
	if err != nil {
		t.Fatal(err)
	}
	id, revoked := w.token(JoinToken{})
	if err := w.RevokeToken(t.Context(), admin, id); err != nil {
		t.Fatal(err)
	}
	id, expired := w.token(JoinToken{})
	w.exec("update join_tokens set expires_at = now() - interval '1 minute' where id = $1", id)
	for token, text := range map[string]string{
		"":         "unknown here",
		"rgj_x":    "unknown here",
		used:       "used up: 1 of 1",
		revoked:    "was revoked",
		expired:    "expired on",
		used + " ": "unknown here",
	} {
		_, err := w.Enroll(t.Context(), auth.Caller{}, request(newKey(t), token, "next"))
		wantError(t, err, errs.Denied, text)
	}
	if n := w.count("select count(*) from hosts"); n != 1 {
		t.Errorf("%d hosts, want 1", n)
	}
	wantError(t, w.RevokeToken(t.Context(), admin, "tok_none"), errs.NotFound, "no such join token")
}

// TestJoinAtOnce: of many machines of one image a token lets in as many as it may.
func TestJoinAtOnce(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	const uses, machines = 12, 20
	_, token := w.token(JoinToken{Uses: uses})
	var all sync.WaitGroup
	var mu sync.Mutex
	names, refused := map[string]bool{}, 0
	for range machines {
		all.Go(func() {
			e := request(newKey(t), token, "")
			e.Inventory.Hostname = "image"
			out, err := w.Enroll(t.Context(), auth.Caller{}, e)
			mu.Lock()
			defer mu.Unlock()
			if err == nil {
				names[out.Name] = true
				return
			}
			refused++
			wantError(t, err, errs.Denied, "used up: 12 of 12")
		})
	}
	all.Wait()
	if len(names) != uses || refused != machines-uses {
		t.Errorf("%d joined and %d were refused: %v", len(names), refused, names)
	}
	if n := w.count("select used from join_tokens"); n != uses {
		t.Errorf("%d uses", n)
	}
	if n := w.count("select count(*) from hosts"); n != uses {
		t.Errorf("%d hosts", n)
	}
}

func TestProofs(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	_, secret := w.token(JoinToken{})
	key, other := newKey(t), newKey(t)
	good := request(key, secret, "a")
	for name, change := range map[string]func(e *protocol.Enroll){
		"none":                func(e *protocol.Enroll) { e.Proof = nil },
		"of another key":      func(e *protocol.Enroll) { e.Proof = ed25519.Sign(other, protocol.EnrollProof(secret, e.PublicKey)) },
		"of another token":    func(e *protocol.Enroll) { e.Proof = ed25519.Sign(key, protocol.EnrollProof("rgj_other", e.PublicKey)) },
		"with another key":    func(e *protocol.Enroll) { e.PublicKey = other.Public().(ed25519.PublicKey) },
		"key of wrong length": func(e *protocol.Enroll) { e.PublicKey = e.PublicKey[:31] },
		"no key":              func(e *protocol.Enroll) { e.PublicKey = nil },
	} {
		e := good
		change(&e)
		_, err := w.Enroll(t.Context(), auth.Caller{}, e)
		if errs.KindOf(err) != errs.Invalid {
			t.Errorf("proof %s: %v", name, err)
		}
	}
	if n := w.count("select used from join_tokens"); n != 0 {
		t.Errorf("%d uses of the token, want 0", n)
	}
}

// TestSameKeyAgain: an agent that enrols anew is the host it was.
func TestSameKeyAgain(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	_, secret := w.token(JoinToken{Uses: 2, Labels: map[string]string{"rack": "7"}})
	key := newKey(t)
	first, err := w.Enroll(t.Context(), auth.Caller{Remote: "192.0.2.7"}, request(key, secret, "box"))
	if err != nil {
		t.Fatal(err)
	}
	again, err := w.Enroll(t.Context(), auth.Caller{}, request(key, secret, "other", "GPU-1"))
	if err != nil || again.Host != first.Host || again.Name != "box" || !again.Approved || len(again.Keys) != 1 {
		t.Errorf("again: %+v, %v; first %+v", again, err, first)
	}
	h := w.get("box")
	if len(h.GPUs) != 1 || h.Labels["rack"] != "7" || h.Address != "192.0.2.7" || h.Hostname != "other" {
		t.Errorf("host %+v", h)
	}
	if n := w.count("select used from join_tokens"); n != 1 {
		t.Errorf("%d uses, want 1", n)
	}
	if n := w.count("select count(*) from audit_entries where action = 'host.enroll'"); n != 1 {
		t.Errorf("%d audit entries, want 1", n)
	}
	if _, err := w.Move(t.Context(), admin, "box", "retire"); err != nil {
		t.Fatal(err)
	}
	_, err = w.Enroll(t.Context(), auth.Caller{}, request(key, secret, "box"))
	wantError(t, err, errs.Denied, "was retired")
}

func TestApproval(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	_, secret := w.token(JoinToken{Approval: true})
	key := newKey(t)
	out, err := w.Enroll(t.Context(), auth.Caller{}, request(key, secret, "box"))
	if err != nil || out.Approved {
		t.Fatalf("%+v, %v", out, err)
	}
	m := machine{out.Host, out.Name, key}
	token := sign(t, jwt.SigningMethodEdDSA, m.claims("mqtt"), key)
	_, err = w.Authenticate(t.Context(), token, "mqtt")
	wantError(t, err, errs.Denied, "remotegpu host approve box")
	if _, err := w.Move(t.Context(), admin, "box", "approve"); err != nil {
		t.Fatal(err)
	}
	if _, err = w.Authenticate(t.Context(), token, "mqtt"); err != nil {
		t.Error(err)
	}
	if out, err = w.Enroll(t.Context(), auth.Caller{}, request(key, secret, "box")); err != nil || !out.Approved {
		t.Errorf("%+v, %v", out, err)
	}
}

func TestNames(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.join("box")
	_, secret := w.token(JoinToken{Uses: 100})
	_, err := w.Enroll(t.Context(), auth.Caller{}, request(newKey(t), secret, "box"))
	wantError(t, err, errs.Conflict, "--name")
	for _, bad := range []string{"Box", "a b", "-a", "a/b", "é"} {
		_, err := w.Enroll(t.Context(), auth.Caller{}, request(newKey(t), secret, bad))
		wantError(t, err, errs.Invalid, "is no name for a host")
	}
	for _, c := range []struct{ hostname, name string }{
		{"box", "box-2"}, {"box", "box-3"}, {"GPU_Node.Lan", "gpu-node.lan"}, {"", "host"}, {"日本", "host-2"}, {"--", "host-3"},
	} {
		e := request(newKey(t), secret, "")
		e.Inventory.Hostname = c.hostname
		out, err := w.Enroll(t.Context(), auth.Caller{}, e)
		if err != nil || out.Name != c.name {
			t.Errorf("hostname %q became %q (%v), want %q", c.hostname, out.Name, err, c.name)
		}
	}
}

// TestManyJoinAtOnce: machines made from one image have one hostname.
func TestManyJoinAtOnce(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	const n = 8
	var wg sync.WaitGroup
	for range n {
		_, secret := w.token(JoinToken{})
		e := request(newKey(t), secret, "")
		e.Inventory.Hostname = "node"
		wg.Go(func() {
			if _, err := w.Enroll(context.WithoutCancel(t.Context()), auth.Caller{}, e); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	for i := range n {
		name := "node"
		if i > 0 {
			name = fmt.Sprintf("node-%d", i+1)
		}
		w.get(name)
	}
}

// TestGPUsAreNotStolen: what a host says of a GPU of another one is not
// believed, unless that one is out of the fleet.
func TestGPUsAreNotStolen(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	victim := w.join("victim", "GPU-1", "GPU-2")
	thief := w.join("thief", "GPU-1", "GPU-3")
	hello := protocol.Hello{Version: protocol.Version, Epoch: 1, Inventory: inventory("thief", "GPU-1", "GPU-3")}
	hello.Inventory.GPUs[0].Memory = 1
	if err := w.Hello(t.Context(), thief.id, hello); err != nil {
		t.Fatal(err)
	}
	sick := protocol.Status{Version: protocol.Version, Epoch: 1, Seq: 1, Usage: protocol.Usage{GPUUsed: []protocol.GPUUsage{{UUID: "GPU-1"}}}}
	if err := w.report(thief.id, sick); err != nil {
		t.Fatal(err)
	}
	if h := w.get("victim"); len(h.GPUs) != 2 || h.GPUs[0].Memory != 80<<30 || h.GPUs[0].Health != "healthy" {
		t.Errorf("victim has %+v", h.GPUs)
	}
	if h := w.get("thief"); len(h.GPUs) != 1 || h.GPUs[0].UUID != "GPU-3" {
		t.Errorf("thief has %+v", h.GPUs)
	}
	if _, err := w.Move(t.Context(), admin, victim.id, "retire"); err != nil {
		t.Fatal(err)
	}
	if err := w.Hello(t.Context(), thief.id, protocol.Hello{Epoch: 2, Inventory: inventory("thief", "GPU-1", "GPU-3")}); err != nil {
		t.Fatal(err)
	}
	if h := w.get("thief"); len(h.GPUs) != 2 {
		t.Errorf("with the other retired it has %+v", h.GPUs)
	}
}

func TestAuthenticate(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	m, other, gone := w.join("box"), w.join("other"), w.join("gone")
	if _, err := w.Move(t.Context(), admin, "gone", "retire"); err != nil {
		t.Fatal(err)
	}
	pub := []byte(m.key.Public().(ed25519.PublicKey))
	at := func(iat, exp time.Duration) jwt.RegisteredClaims {
		c := m.claims("mqtt")
		c.IssuedAt, c.ExpiresAt = jwt.NewNumericDate(time.Now().Add(iat)), jwt.NewNumericDate(time.Now().Add(exp))
		return c
	}
	noEnd, noStart := m.claims("mqtt"), m.claims("mqtt")
	noEnd.ExpiresAt, noStart.IssuedAt = nil, nil
	ed, hs := jwt.SigningMethodEdDSA, jwt.SigningMethodHS256
	for name, c := range map[string]struct {
		token string
		kind  errs.Kind
		text  string
	}{
		"wrong audience":        {sign(t, ed, m.claims("tunnel"), m.key), errs.Unauthenticated, "not valid"},
		"expired":               {sign(t, ed, at(-8*time.Minute, -2*time.Minute), m.key), errs.Unauthenticated, "clock"},
		"lives too long":        {sign(t, ed, at(0, time.Hour), m.key), errs.Unauthenticated, "lives too long"},
		"for ever":              {sign(t, ed, noEnd, m.key), errs.Unauthenticated, "not valid"},
		"made at no time":       {sign(t, ed, noStart, m.key), errs.Unauthenticated, "lives too long"},
		"clock an hour ahead":   {sign(t, ed, at(time.Hour, time.Hour+5*time.Minute), m.key), errs.Unauthenticated, "The host's clock is 1h0m"},
		"clock an hour behind":  {sign(t, ed, at(-time.Hour, -time.Hour+5*time.Minute), m.key), errs.Unauthenticated, "The host's clock is 1h0m"},
		"another host's key":    {sign(t, ed, m.claims("mqtt"), other.key), errs.Unauthenticated, "not valid"},
		"no such host":          {sign(t, ed, machine{id: "host_x"}.claims("mqtt"), m.key), errs.Unauthenticated, "not valid"},
		"no signature":          {sign(t, jwt.SigningMethodNone, m.claims("mqtt"), jwt.UnsafeAllowNoneSignatureType), errs.Unauthenticated, "not valid"},
		"the key as a password": {sign(t, hs, m.claims("mqtt"), pub), errs.Unauthenticated, "not valid"},
		"retired":               {sign(t, ed, gone.claims("mqtt"), gone.key), errs.Denied, "was retired"},
		"garbage":               {"a.b.c", errs.Unauthenticated, "not valid"},
		"nothing":               {"", errs.Unauthenticated, "not valid"},
	} {
		_, err := w.Authenticate(t.Context(), c.token, "mqtt")
		if err == nil {
			t.Errorf("%s: is let in", name)
			continue
		}
		t.Run(name, func(t *testing.T) { wantError(t, err, c.kind, c.text) })
	}
	c, err := w.Authenticate(t.Context(), sign(t, ed, at(30*time.Second, 5*time.Minute), m.key), "mqtt")
	if err != nil || c.Kind != auth.KindHost || c.ID != m.id || c.Name != "box" {
		t.Errorf("good token of a clock a little ahead: %+v, %v", c, err)
	}
}

// TestDatabaseAway: that we cannot look is not the host's fault; an agent must
// not think that it has to join again.
func TestDatabaseAway(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	m := w.join("box")
	token := sign(t, jwt.SigningMethodEdDSA, m.claims("mqtt"), m.key)
	w.pool.Close()
	_, err := w.Authenticate(t.Context(), token, "mqtt")
	if err == nil || errs.KindOf(err) == errs.Unauthenticated || errs.KindOf(err) == errs.Denied {
		t.Errorf("%v", err)
	}
}
