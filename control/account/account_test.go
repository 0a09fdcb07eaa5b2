package account

import (
	"crypto/ed25519"
	"crypto/rand"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/remotegpu/remotegpu/control/auth"
	"github.com/remotegpu/remotegpu/control/errs"
	"github.com/remotegpu/remotegpu/control/pg"
	"github.com/remotegpu/remotegpu/control/pgtest"
)

func TestMain(m *testing.M) { pgtest.Main(m) }

const password = "correct horse"

func setup(t *testing.T) (*Service, auth.Caller) {
	t.Helper()
	s := New(pgtest.New(t))
	var u User
	made, err := s.Bootstrap(t.Context(), "ann@example.org", password, func(_ pg.Tx, admin User) error { u = admin; return nil })
	if err != nil || !made {
		t.Fatalf("Bootstrap: made %v, err %v", made, err)
	}
	c, err := s.ByUser(t.Context(), u)
	if err != nil {
		t.Fatal(err)
	}
	return s, c
}

func wantKind(t *testing.T, err error, want errs.Kind) {
	t.Helper()
	if err == nil || errs.KindOf(err) != want {
		t.Errorf("got error %v of kind %d, want kind %d", err, errs.KindOf(err), want)
	}
}

func TestLogin(t *testing.T) {
	t.Parallel()
	s, _ := setup(t)
	ctx := t.Context()
	secret, u, err := s.Login(ctx, auth.Caller{Remote: "192.0.2.1"}, "ANN@example.org", password)
	if err != nil {
		t.Fatal(err)
	}
	c, err := s.BySecret(ctx, "192.0.2.1", secret)
	if err != nil || c.ID != u.ID || !c.Admin {
		t.Errorf("BySecret = %+v, %v", c, err)
	}
	if err := s.Logout(ctx, c); err != nil {
		t.Fatal(err)
	}
	_, err = s.BySecret(ctx, "192.0.2.1", secret)
	wantKind(t, err, errs.Unauthenticated)
	for _, try := range [][2]string{{"ann@example.org", "wrong"}, {"bob@example.org", password}, {"", ""}} {
		_, err := s.CheckPassword(ctx, "192.0.2.2", try[0], try[1])
		wantKind(t, err, errs.Unauthenticated)
	}
}

func TestTokens(t *testing.T) {
	t.Parallel()
	s, c := setup(t)
	ctx := t.Context()
	tok, secret, err := s.CreateToken(ctx, c, "ci", time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := s.BySecret(ctx, "192.0.2.1", secret); err != nil || got.Token != tok.ID {
		t.Errorf("BySecret = %+v, %v", got, err)
	}
	other := auth.Caller{Kind: auth.KindUser, ID: "usr_other"}
	wantKind(t, s.DeleteToken(ctx, other, tok.ID), errs.NotFound)
	if err := s.DeleteToken(ctx, c, tok.ID); err != nil {
		t.Fatal(err)
	}
	_, err = s.BySecret(ctx, "192.0.2.1", secret)
	wantKind(t, err, errs.Unauthenticated)
	_, expired, err := s.CreateToken(ctx, c, "short", time.Nanosecond)
	if err != nil {
		t.Fatal(err)
	}
	_, err = s.BySecret(ctx, "192.0.2.1", expired)
	wantKind(t, err, errs.Unauthenticated)
}

func TestKeys(t *testing.T) {
	t.Parallel()
	s, c := setup(t)
	ctx := t.Context()
	pub, _, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	key, err := ssh.NewPublicKey(pub)
	if err != nil {
		t.Fatal(err)
	}
	_, err = s.ByKey(ctx, key)
	wantKind(t, err, errs.Unauthenticated)
	line := string(ssh.MarshalAuthorizedKey(key))
	first, err := s.AddKey(ctx, c, "laptop", line)
	if err != nil {
		t.Fatal(err)
	}
	again, err := s.AddKey(ctx, c, "other name", line)
	if err != nil || again.ID != first.ID {
		t.Errorf("adding one's own key again = %+v, %v; want the first", again, err)
	}
	if got, err := s.ByKey(ctx, key); err != nil || got.ID != c.ID {
		t.Errorf("ByKey = %+v, %v", got, err)
	}
	bob, err := s.CreateUser(ctx, c, User{Email: "bob@example.org"}, password)
	if err != nil {
		t.Fatal(err)
	}
	_, err = s.AddKey(ctx, auth.Caller{Kind: auth.KindUser, ID: bob.ID}, "", line)
	wantKind(t, err, errs.Conflict)
	_, err = s.AddKey(ctx, c, "", "ssh-rsa nonsense")
	wantKind(t, err, errs.Invalid)
	if err := s.SetDisabled(ctx, auth.System("test"), c.ID, true); err != nil {
		t.Fatal(err)
	}
	_, err = s.ByKey(ctx, key)
	wantKind(t, err, errs.Unauthenticated)
}

func TestUsersAreForAdmins(t *testing.T) {
	t.Parallel()
	s, c := setup(t)
	_, err := s.CreateUser(t.Context(), auth.Caller{Kind: auth.KindUser, ID: "usr_x"}, User{Email: "x@example.org"}, password)
	wantKind(t, err, errs.Denied)
	_, err = s.CreateUser(t.Context(), c, User{Email: "Ann@Example.org"}, password)
	wantKind(t, err, errs.Conflict)
	_, err = s.CreateUser(t.Context(), c, User{Email: "not an address"}, password)
	wantKind(t, err, errs.Invalid)
	_, err = s.CreateUser(t.Context(), c, User{Email: "y@example.org"}, "short")
	wantKind(t, err, errs.Invalid)
}
