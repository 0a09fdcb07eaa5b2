package access

import (
	"context"
	"io"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/remotegpu/remotegpu/control/environment"
	"github.com/remotegpu/remotegpu/protocol"
	"github.com/remotegpu/remotegpu/protocol/tunnel"
)

// newCapped is a world whose hub has caps.
func newCapped(t *testing.T, cfg tunnel.HubConfig) (w *world) {
	t.Helper()
	cfg.Log = slog.New(slog.DiscardHandler)
	cfg.Ask = func(ctx context.Context, host string, d protocol.Dial) error { return w.ask(ctx, host, d) }
	hub := tunnel.NewHub(cfg)
	t.Cleanup(hub.Close)
	w = newWorld(t, func(s *Service) { s.hub = hub })
	return w
}

// TestSessionRate: a command that says as much as it can is read at the cap of
// its session, and keys of another one on the same connection pass meanwhile.
func TestSessionRate(t *testing.T) {
	t.Parallel()
	const perSecond = 1 << 20
	w := newCapped(t, tunnel.HubConfig{SessionRate: perSecond})
	c := w.mustClient("box")
	_, _, flood := run(t, c, "flood")
	_, in, out := run(t, c, "cat")
	wantLine(t, out, "ready")
	var typed, slow int
	drawn, began := make(chan int64), time.Now()
	go func() {
		n, _ := io.CopyN(io.Discard, flood, 3*perSecond) // what came tells
		drawn <- n
	}()
	for {
		pressed := time.Now()
		if _, err := io.WriteString(in, "x\n"); err != nil {
			t.Fatal(err)
		}
		wantLine(t, out, "x")
		if typed++; time.Since(pressed) > 250*time.Millisecond {
			slow++
		}
		select {
		case n := <-drawn:
			if took := time.Since(began); n != 3*perSecond || took < 2*time.Second {
				t.Errorf("%d bytes of a session came in %v", n, took)
			}
			if t.Logf("%d keys, %d of them over 250 ms", typed, slow); typed < 8 || slow > typed/2 {
				t.Errorf("of %d keys beside it %d took over 250 ms", typed, slow)
			}
			return
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// TestSessionRateOfWhoComesBack: a terminal whose connection is made anew all the
// time is at the same cap.
func TestSessionRateOfWhoComesBack(t *testing.T) {
	t.Parallel()
	const perSecond, piece, times = 512 << 10, 64 << 10, 12
	w := newCapped(t, tunnel.HubConfig{SessionRate: perSecond})
	c, cut, err := w.roam(newQuery(protocol.AttachCreate))
	if err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	for range times {
		if _, err := c.Write(make([]byte, piece)); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(c, make([]byte, piece)); err != nil {
			t.Fatal(err)
		}
		cut()
	}
	if n := len(w.held.attached()); n < times/2 {
		t.Fatalf("%d connections in all", n)
	}
	least := time.Second * (times*2*piece - 128<<10) / perSecond
	if took := time.Since(began); took < least*9/10 {
		t.Errorf("%d bytes went by in %v, which is under %v", times*2*piece, took, least)
	}
}

// TestTooManyStreams: who is at a cap reads what to do, also about a host itself.
func TestTooManyStreams(t *testing.T) {
	t.Parallel()
	for want, cfg := range map[string]tunnel.HubConfig{
		"That is too much at once (too many streams for this user: at most 1 at a time); close some, or wait a moment.": {MaxPerUser: 1},
		"That is too much at once (too many streams to this host: at most 1 at a time); close some, or wait a moment.":  {MaxPerHost: 1},
	} {
		w := newCapped(t, cfg)
		_, _, out := run(t, w.mustClient("box"), "cat")
		wantLine(t, out, "ready")
		if _, stderr, code := w.openssh("", keyFile(t, w.key), "box@GATEWAY", "env"); code != 255 || !strings.Contains(stderr, want) {
			t.Errorf("exit %d, %q, want %q", code, stderr, want)
		}
		itself := environment.Environment{ID: hostID, Name: "lab", Host: hostID}
		if _, err := w.open(t.Context(), w.user, itself, protocol.StreamHeader{Kind: protocol.StreamSession}); err == nil || text(err) != want {
			t.Errorf("of a host: %v", err)
		}
	}
}
