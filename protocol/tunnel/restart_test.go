package tunnel

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/remotegpu/remotegpu/protocol"
)

// TestRestartSaysWhenToComeBack: streams and spares learn it, and the pool
// keeps to it instead of waiting as after a failure.
func TestRestartSaysWhenToComeBack(t *testing.T) {
	t.Parallel()
	streamEnd := make(chan error, 1)
	w := newWorld(t, HubConfig{}, func(_ context.Context, c *Conn, _ protocol.StreamHeader) {
		if Reply(c, protocol.StreamReply{}) == nil {
			_, err := c.Read(make([]byte, 1))
			streamEnd <- err
		}
	})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go w.pool.Run(ctx)
	w.waitSpare(t)
	if _, err := w.hub.Open(t.Context(), testHost, header()); err != nil {
		t.Fatal(err)
	}
	for start := time.Now(); w.hub.count(testHost) < 2; { // all that a host in use keeps
		if time.Since(start) > 10*time.Second {
			t.Fatal("no second spare")
		}
	}
	before := w.dials.Load()
	w.hub.Close()
	closed := time.Now()
	var restart *Restarting
	if err := <-streamEnd; !errors.As(err, &restart) || restart.After < restartLeast || restart.After > restartMost {
		t.Errorf("the stream ended with %v", err)
	}
	for w.dials.Load() == before {
		if time.Since(closed) > restartMost+time.Second {
			t.Fatal("the pool does not come back in time")
		}
	}
	if took := time.Since(closed); took < restartLeast/2 {
		t.Errorf("the pool is back after %v", took)
	}
}

func TestRestartText(t *testing.T) {
	for text, want := range map[string]time.Duration{
		"retry-after=1.5s": 1500 * time.Millisecond, "retry-after=3h": restartMost, "retry-after=-1s": restartMost, "": restartMost, "gone": restartMost,
	} {
		if got := restarting(text); got.After != want {
			t.Errorf("%q: %v", text, got.After)
		}
	}
}

// TestABrokenStreamRenewsTheSpares: what broke one may have broken all, and a
// spare that is silent would not show it for long.
func TestABrokenStreamRenewsTheSpares(t *testing.T) {
	t.Parallel()
	broken := make(chan struct{})
	w := newWorld(t, HubConfig{}, func(_ context.Context, c *Conn, _ protocol.StreamHeader) {
		if Reply(c, protocol.StreamReply{}) == nil {
			<-broken
			_, _ = c.Read(make([]byte, 1)) // it says how the stream ended
		}
	})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go w.pool.Run(ctx)
	w.waitSpare(t)
	c, err := w.hub.Open(t.Context(), testHost, header())
	if err != nil {
		t.Fatal(err)
	}
	w.waitSpare(t)
	before := w.dials.Load()
	c.ws.NetConn().Close()
	close(broken)
	for start := time.Now(); w.dials.Load() == before; {
		if time.Since(start) > 5*time.Second {
			t.Fatal("no new spare")
		}
	}
}
