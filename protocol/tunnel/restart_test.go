package tunnel

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	"github.com/remotegpu/remotegpu/protocol"
)

// TestRestartSaysWhenToComeBack: streams and spares learn it, and the pool comes
// back by it.
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
	until(t, "all spares that a host in use keeps", func() bool { return w.hub.count(testHost) == 2 })
	before := w.dials.Load()
	w.hub.Close()
	closed := time.Now()
	var restart *Restarting
	if err := <-streamEnd; !errors.As(err, &restart) || restart.After < restartLeast || restart.After > restartMost {
		t.Errorf("the stream ended with %v", err)
	}
	until(t, "the pool is back", func() bool { return w.dials.Load() > before })
	if took := time.Since(closed); took < restartLeast/2 {
		t.Errorf("the pool is back after %v", took)
	}
}

// TestThePoolKeepsToARestart: it comes when it is told to, instead of as after a
// failure.
func TestThePoolKeepsToARestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := NewPool(PoolConfig{Log: slog.New(slog.DiscardHandler)})
		for _, after := range []time.Duration{restartLeast, restartMost} {
			p.failed(lostAfter, "test", fmt.Errorf("read: %w", &Restarting{after}))
			if wait := time.Until(p.retryAt); wait != after {
				t.Errorf("told to come back after %v, it does after %v", after, wait)
			}
		}
	})
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
	until(t, "all spares that a host in use keeps", func() bool { return w.hub.count(testHost) == 2 })
	before := w.dials.Load()
	c.ws.NetConn().Close()
	close(broken)
	until(t, "new spares", func() bool { return w.dials.Load() >= before+2 })
}
