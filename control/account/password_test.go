package account

import (
	"crypto/ed25519"
	"errors"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/remotegpu/remotegpu/control/auth"
	"github.com/remotegpu/remotegpu/control/errs"
	"github.com/remotegpu/remotegpu/control/pg"
)

const fresh = "battery staple"

// TestChangePassword: with the old password end all sessions but the one that
// changed it; API tokens stay.
func TestChangePassword(t *testing.T) {
	t.Parallel()
	s, c := setup(t)
	ctx := t.Context()
	heard := make(chan string, 16)
	go func() { _ = pg.Listen(ctx, s.pool, Revoked, func(id string) { heard <- id }) }()
	<-heard // it listens
	login := func(password string) (string, auth.Caller) {
		t.Helper()
		secret, _, err := s.Login(ctx, auth.Caller{Remote: "192.0.2.1"}, "ann@example.org", password)
		if err != nil {
			t.Fatal(err)
		}
		c, err := s.BySecret(ctx, "192.0.2.1", secret)
		if err != nil {
			t.Fatal(err)
		}
		return secret, c
	}
	_, token, err := s.CreateToken(ctx, c, "ci", time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	mine, me := login(password)
	stolen, other := login(password)
	wantKind(t, s.ChangePassword(ctx, me, "wrong password", fresh), errs.Unauthenticated)
	wantKind(t, s.ChangePassword(ctx, me, password, "short"), errs.Invalid)
	if _, err := s.BySecret(ctx, "192.0.2.1", stolen); err != nil {
		t.Errorf("a change that was refused ends a session: %v", err)
	}
	if err := s.ChangePassword(ctx, me, password, fresh); err != nil {
		t.Fatal(err)
	}
	if id := <-heard; id != c.ID {
		t.Errorf("%q is told of, want the user", id)
	}
	for name, secret := range map[string]string{"the session that changed it": mine, "an API token": token} {
		if _, err := s.BySecret(ctx, "192.0.2.1", secret); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	_, err = s.BySecret(ctx, "192.0.2.1", stolen)
	wantKind(t, err, errs.Unauthenticated)
	if now, err := s.Now(ctx, me); err != nil || string(now.Login) != string(me.Login) || now.Remote != me.Remote {
		t.Errorf("what the session that changed it has open: %+v, %v", now, err)
	}
	_, err = s.Now(ctx, other)
	wantKind(t, err, errs.Unauthenticated)
	_, err = s.CheckPassword(ctx, "192.0.2.2", "ann@example.org", password)
	wantKind(t, err, errs.Unauthenticated)
	login(fresh)
	byToken, err := s.BySecret(ctx, "192.0.2.1", token)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.ChangePassword(ctx, byToken, fresh, password); err != nil { // no session did it: all end
		t.Fatal(err)
	}
	_, err = s.BySecret(ctx, "192.0.2.1", mine)
	wantKind(t, err, errs.Unauthenticated)
}

// TestLoginWhileThePasswordChanges: who has shown the old one in time gets no
// session after it has ended, and brings it not back.
func TestLoginWhileThePasswordChanges(t *testing.T) {
	t.Parallel()
	s, c := setup(t)
	ctx := t.Context()
	_, old, err := userByEmail(ctx, s.pool, "ann@example.org")
	if err != nil {
		t.Fatal(err)
	}
	tx, err := s.pool.Begin(ctx) // a change that is not committed
	if err != nil {
		t.Fatal(err)
	}
	if err := setPassword(ctx, tx, c.ID, hashPassword(fresh)); err != nil {
		t.Fatal(err)
	}
	late := make(chan error, 1)
	go func() {
		late <- insertSession(ctx, s.pool, []byte("hash"), c.ID, old)
	}()
	for waits := false; !waits; time.Sleep(time.Millisecond) {
		if err := s.pool.QueryRow(ctx, "select exists (select from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock')").Scan(&waits); err != nil {
			t.Fatal(err)
		}
	}
	if err := tx.Commit(ctx); err != nil {
		t.Fatal(err)
	}
	if err := <-late; !pg.IsNone(err) {
		t.Errorf("a session with the old password: %v", err)
	}
	if err := rehashPassword(ctx, s.pool, c.ID, old, hashPassword(password)); !pg.IsNone(err) {
		t.Errorf("the old password is back: %v", err)
	}
	if _, err := s.CheckPassword(ctx, "192.0.2.1", "ann@example.org", fresh); err != nil {
		t.Error(errors.Unwrap(err))
	}
}

// TestNow: what was begun with a token or key ends with it, and all with the user.
func TestNow(t *testing.T) {
	t.Parallel()
	s, c := setup(t)
	ctx := t.Context()
	tok, secret, err := s.CreateToken(ctx, c, "ci", time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	byToken, err := s.BySecret(ctx, "192.0.2.1", secret)
	if err != nil {
		t.Fatal(err)
	}
	for _, who := range []auth.Caller{c, byToken, {Kind: auth.KindHost, ID: "host_x"}, auth.System("x")} {
		if now, err := s.Now(ctx, who); err != nil || now.ID != who.ID || now.Token != who.Token || now.Kind != who.Kind || now.Admin != who.Admin {
			t.Errorf("%+v is %+v, %v", who, now, err)
		}
	}
	if err := s.DeleteToken(ctx, c, tok.ID); err != nil {
		t.Fatal(err)
	}
	_, err = s.Now(ctx, byToken)
	wantKind(t, err, errs.Unauthenticated)
	pub, _, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	key, err := ssh.NewPublicKey(pub)
	if err != nil {
		t.Fatal(err)
	}
	k, err := s.AddKey(ctx, c, "laptop", string(ssh.MarshalAuthorizedKey(key)))
	if err != nil {
		t.Fatal(err)
	}
	byKey, err := s.ByKey(ctx, key)
	if err != nil || byKey.Key != k.ID {
		t.Fatalf("%+v, %v", byKey, err)
	}
	if now, err := s.Now(ctx, byKey); err != nil || now.Key != k.ID {
		t.Errorf("%+v, %v", now, err)
	}
	if err := s.DeleteKey(ctx, c, k.ID); err != nil {
		t.Fatal(err)
	}
	_, err = s.Now(ctx, byKey)
	wantKind(t, err, errs.Unauthenticated)
	if err := s.SetDisabled(ctx, auth.System("test"), c.ID, true); err != nil {
		t.Fatal(err)
	}
	_, err = s.Now(ctx, c)
	wantKind(t, err, errs.Unauthenticated)
}
