package account

import (
	"context"
	"encoding/base64"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/remotegpu/remotegpu/control/errs"
)

// TestGuessingPasswordsLocksNobodyElseOut: who guesses waits; the person
// herself, others behind the same address, and everybody elsewhere do not.
func TestGuessingPasswordsLocksNobodyElseOut(t *testing.T) {
	t.Parallel()
	s, admin := setup(t)
	try := func(remote, email, pass string, want errs.Kind) {
		t.Helper()
		_, err := s.CheckPassword(t.Context(), remote, email, pass)
		if err == nil && want != errs.Internal || err != nil && errs.KindOf(err) != want {
			t.Errorf("%s as %s: %v", remote, email, err)
		}
	}
	const right = errs.Internal // the zero value: no error is wanted
	for _, name := range []string{"bob", "cal"} {
		if _, err := s.CreateUser(t.Context(), admin, User{Email: name + "@example.org"}, password); err != nil {
			t.Fatal(err)
		}
	}
	try("192.0.2.66", "bob@example.org", password, right)
	try("192.0.2.66", "ann@example.org", "guess guess", errs.Unauthenticated)
	for range 2 * tryBurst { // quicker than passwords are checked
		s.guesses.password(newOrigin("192.0.2.66", "ann@example.org"))
	}
	try("192.0.2.66", "ann@example.org", "guess guess", errs.Unavailable)
	try("192.0.2.66", "ANN@example.org", password, errs.Unavailable)
	try("192.0.2.1", "ann@example.org", password, right)  // from elsewhere
	try("192.0.2.66", "cal@example.org", password, right) // another one behind the same NAT
	for i := range 2 * netBurst {                         // one password, many names
		s.guesses.password(newOrigin("192.0.2.66", fmt.Sprintf("user%d@example.org", i)))
	}
	try("192.0.2.66", "dan@example.org", "Winter2026!", errs.Unavailable)
	try("192.0.2.66", "bob@example.org", password, right) // has logged in there before
	for i := range tryBurst {                             // one customer has a whole /64
		s.guesses.password(newOrigin(fmt.Sprintf("2001:db8::%x", i+1), "ann@example.org"))
	}
	try("2001:db8::abcd", "ann@example.org", "guess guess", errs.Unavailable)
	try("2001:db8:0:1::1", "ann@example.org", password, right)
}

// TestGuessingTokens: after too many wrong ones a network's tokens are not even
// looked up, but for those that were right there before.
func TestGuessingTokens(t *testing.T) {
	t.Parallel()
	s, c := setup(t)
	_, old, err := s.CreateToken(t.Context(), c, "old", 0)
	if err != nil {
		t.Fatal(err)
	}
	_, fresh, err := s.CreateToken(t.Context(), c, "fresh", 0)
	if err != nil {
		t.Fatal(err)
	}
	show := func(remote, secret string, want errs.Kind) {
		t.Helper()
		if _, err := s.BySecret(t.Context(), remote, secret); err == nil && want != errs.Internal || err != nil && errs.KindOf(err) != want {
			t.Errorf("from %s: %v", remote, err)
		}
	}
	show("192.0.2.66", old, errs.Internal)
	began := time.Now()
	for i := range netBurst {
		show("192.0.2.66", fmt.Sprintf("rgt_guess%d", i), errs.Unauthenticated)
	}
	for more := 0; ; more++ { // as many as came back meanwhile
		_, err := s.BySecret(t.Context(), "192.0.2.66", fmt.Sprintf("rgt_more%d", more))
		if errs.KindOf(err) == errs.Unavailable {
			break
		}
		if back := int(time.Since(began) / netEvery); more >= back {
			t.Fatalf("%d wrong ones more are looked up while %d came back: %v", more+1, back, err)
		}
	}
	for range netBurst { // quicker than one comes back
		s.guesses.wrong(newOrigin("192.0.2.66", ""))
	}
	show("192.0.2.66", fresh, errs.Unavailable)
	show("192.0.2.66", old, errs.Internal)
	show("192.0.2.1", fresh, errs.Internal)
}

// TestTheQueueForPasswords: many guessers wait for a place, for a while; who has
// logged in before has a place of their own. Not parallel: it fills the queue
// of the process.
func TestTheQueueForPasswords(t *testing.T) {
	for range cap(argonSlots) {
		slot, err := takeSlot(t.Context(), false)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { <-slot }()
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := takeSlot(ctx, false); err == nil {
		t.Error("there is a place for a stranger")
	}
	slot, err := takeSlot(t.Context(), true)
	if err != nil {
		t.Fatal("no place for who was right before:", err)
	}
	<-slot
}

// TestGuessesAreBounded: an attacker with very many addresses costs no memory,
// and does not make the limits of others forgotten.
func TestGuessesAreBounded(t *testing.T) {
	t.Parallel()
	g := newGuesses()
	for i := range 3 * maxKnown {
		o := newOrigin(fmt.Sprintf("10.%d.%d.%d", i>>16, i>>8&255, i&255), "ann")
		g.password(o)
		g.setRight(o)
	}
	if len(g.limit) > maxKnown+2 || len(g.right) > maxKnown {
		t.Errorf("%d limits and %d places are remembered", len(g.limit), len(g.right))
	}
}

// TestANetworkHasOnePlace: of many guesses from one network one is checked at a
// time, and somebody elsewhere waits for that one alone.
func TestANetworkHasOnePlace(t *testing.T) {
	t.Parallel()
	g := newGuesses()
	one := newOrigin("192.0.2.66", "ann@example.org")
	release, err := g.turn(t.Context(), one)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := g.turn(ctx, newOrigin("192.0.2.66", "bob@example.org")); err == nil {
		t.Error("two of one network at a time")
	}
	release(false)
	other, err := g.turn(t.Context(), newOrigin("192.0.2.1", "bob@example.org"))
	if err != nil {
		t.Fatal(err)
	}
	other(true)
	if len(g.lines) != 0 {
		t.Errorf("%d queues are left", len(g.lines))
	}
}

// TestOldHashes: a password that was hashed at another cost is still right, and
// is hashed anew once it was shown.
func TestOldHashes(t *testing.T) {
	t.Parallel()
	s, _ := setup(t)
	now := present
	old := cost{1, 8 << 10, 4}
	salt := []byte("0123456789abcdef")
	hash := fmt.Sprintf("$argon2id$v=19$%s$%s$%s", old, base64.RawStdEncoding.EncodeToString(salt), base64.RawStdEncoding.EncodeToString(old.argon([]byte(password), salt)))
	u, _, err := userByEmail(t.Context(), s.pool, "ann@example.org")
	if err != nil {
		t.Fatal(err)
	}
	if err := setPassword(t.Context(), s.pool, u.ID, hash); err != nil {
		t.Fatal(err)
	}
	if _, err := s.CheckPassword(t.Context(), "192.0.2.1", "ann@example.org", "not this one"); err == nil {
		t.Error("another password is right")
	}
	for range 2 {
		if _, err := s.CheckPassword(t.Context(), "192.0.2.1", "ann@example.org", password); err != nil {
			t.Error(err)
		}
	}
	if _, fresh, err := userByEmail(t.Context(), s.pool, "ann@example.org"); err != nil || !strings.Contains(fresh, now.String()) {
		t.Errorf("kept as %s, %v", fresh, err)
	}
}
