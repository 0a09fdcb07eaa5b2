package rdp

import (
	"context"
	"log/slog"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/remotegpu/remotegpu/control/auth"
	"github.com/remotegpu/remotegpu/control/errs"
	"github.com/remotegpu/remotegpu/control/pgtest"
	"github.com/remotegpu/remotegpu/protocol"
)

func TestMain(m *testing.M) { pgtest.Main(m) }

func newService(t *testing.T, clipboard string) *Service {
	t.Helper()
	pool := pgtest.New(t)
	if _, err := pool.Exec(t.Context(), `insert into users (id, email, name, password_hash, admin) values ('usr_a', 'a@example.org', '', '', true)`); err != nil {
		t.Fatal(err)
	}
	if _, err := pool.Exec(t.Context(), `insert into hosts (id, name, public_key, state) values ('host_a', 'box', '\x01', 'active')`); err != nil {
		t.Fatal(err)
	}
	now := func(_ context.Context, c auth.Caller) (auth.Caller, error) { return c, nil }
	return New(pool, Config{Now: now, Clipboard: clipboard}, slog.New(slog.DiscardHandler))
}

var (
	ann = auth.Caller{Kind: auth.KindUser, ID: "usr_a"}
	box = desktop{Host: "host_a"}
)

// TestTokenWorksOnce: of many who show it at once, one gets the desktop.
func TestTokenWorksOnce(t *testing.T) {
	t.Parallel()
	s := newService(t, "")
	ticket, err := s.issue(t.Context(), ann, box, Wish{Layout: 0x407, Server: protocol.RDPServerXrdp})
	if err != nil {
		t.Fatal(err)
	}
	var got atomic.Int32
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			d, c, err := s.redeem(t.Context(), ticket.Token, "")
			if err == nil {
				got.Add(1)
				if d.Host != "host_a" || d.Layout != 0x407 || d.Server != protocol.RDPServerXrdp || d.Clipboard != protocol.ClipboardBoth || c.ID != "usr_a" {
					t.Errorf("%+v, %+v", d, c)
				}
			} else if errs.KindOf(err) != errs.Unauthenticated {
				t.Error(err)
			}
		})
	}
	all.Wait()
	if got.Load() != 1 {
		t.Errorf("%d desktops for one token", got.Load())
	}
}

func TestTokensThatAreNoGood(t *testing.T) {
	t.Parallel()
	s := newService(t, "")
	ticket, err := s.issue(t.Context(), ann, box, Wish{})
	if err != nil {
		t.Fatal(err)
	}
	if left := time.Until(ticket.ExpiresAt); left > tokenLife+time.Second || left < tokenLife/2 {
		t.Errorf("it works for %v", left)
	}
	if _, err := s.pool.Exec(t.Context(), "update tickets set expires_at = now() - interval '1 second'"); err != nil {
		t.Fatal(err)
	}
	for _, token := range []string{ticket.Token, "", "rgd_", "rgt_x", ticket.Token + "x"} {
		if _, _, err := s.redeem(t.Context(), token, ""); errs.KindOf(err) != errs.Unauthenticated {
			t.Errorf("%q: %v", token, err)
		}
	}
}

// TestClipboardOfServerAndWish: never more than either allows.
func TestClipboardOfServerAndWish(t *testing.T) {
	t.Parallel()
	const both, to, from, none = protocol.ClipboardBoth, protocol.ClipboardToHost, protocol.ClipboardFromHost, protocol.ClipboardNone
	for _, c := range [][3]string{
		{both, both, both}, {both, to, to}, {both, from, from}, {both, none, none}, {to, both, to}, {to, from, none}, {to, to, to},
		{from, to, none}, {from, both, from}, {none, both, none}, {both, "", none},
	} {
		if got := narrower(c[0], c[1]); got != c[2] {
			t.Errorf("%s and %s: %s, want %s", c[0], c[1], got, c[2])
		}
	}
	s := newService(t, to)
	for wish, want := range map[string]string{"": to, both: to, from: none} {
		ticket, err := s.issue(t.Context(), ann, box, Wish{Clipboard: wish})
		if err != nil || ticket.Clipboard != want {
			t.Errorf("%q: %q, %v", wish, ticket.Clipboard, err)
		}
	}
}
