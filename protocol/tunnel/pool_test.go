package tunnel

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/remotegpu/remotegpu/protocol"
)

func (p *Pool) count() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.spares) + p.dialling
}

func until(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within 10 s: %s", what)
		}
	}
}

func TestSparesFollowUse(t *testing.T) {
	t.Parallel()
	w := newWorld(t, HubConfig{}, echo)
	w.run(t)
	w.waitSpare(t)
	if n := w.pool.count(); n != 1 {
		t.Errorf("%d spares of an idle host", n)
	}
	open(t, w)
	until(t, "two spares of a host in use", func() bool { return w.pool.count() == 2 })
	w.pool.Request(protocol.Dial{Version: protocol.Version, Token: "", Spares: 1000})
	until(t, "as many as control wants, within bounds", func() bool { return w.pool.count() == maxSpares })
	w.pool.mu.Lock()
	w.pool.usedAt = time.Now().Add(-2 * busyFor)
	w.pool.mu.Unlock()
	w.pool.kick()
	until(t, "one spare of a host that is idle again", func() bool {
		w.hub.mu.Lock()
		defer w.hub.mu.Unlock()
		return w.pool.count() == 1 && len(w.hub.spares[testHost]) == 1
	})
	open(t, w) // and it works
}

// A server, or a proxy before it, that lets connections in and drops them.
func TestLostSparesAreNotDialledInALoop(t *testing.T) {
	t.Parallel()
	var dials atomic.Int32
	srv := newWorld(t, HubConfig{}, echo)
	p := NewPool(PoolConfig{Log: slog.New(slog.DiscardHandler), Serve: echo, Dial: func(ctx context.Context, token string) (*Conn, error) {
		dials.Add(1)
		c, err := srv.dial(ctx, testHost, token)
		if err == nil {
			c.ws.NetConn().Close()
		}
		return c, err
	}})
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if err := p.Run(ctx); err != nil {
		t.Error(err)
	}
	if n := dials.Load(); n < 1 || n > 3 {
		t.Errorf("%d dials in a second", n)
	}
}

// All hosts lose their spares when a server stops, and cannot dial while it is
// down: they must come back spread out.
func TestAFleetComesBackSpreadOut(t *testing.T) {
	synctest.Test(t, comesBackSpreadOut) // no time passes between a failure and the look at it
}

func comesBackSpreadOut(t *testing.T) {
	const hosts = 10_000 // or chance alone crowds a second
	log := slog.New(slog.DiscardHandler)
	for failures, most := range map[int]time.Duration{1: 8 * time.Second, 5: 16 * time.Second, 20: backoffMax} {
		var perSecond [61]int
		for range hosts {
			p := NewPool(PoolConfig{Log: log})
			for range failures {
				p.failed(lostAfter, "test", io.EOF)
			}
			wait := time.Until(p.retryAt)
			if wait < backoffMin || wait > most {
				t.Fatalf("after %d failures, the next try is in %v", failures, wait)
			}
			perSecond[wait/time.Second]++
		}
		even := hosts / int(most/time.Second)
		for s, n := range perSecond {
			if n > 2*even {
				t.Errorf("after %d failures, %d of %d hosts come in second %d", failures, n, hosts, s)
			}
		}
	}
}

// A host in use comes back soon, also after many failures.
func TestAHostInUseComesBackSoon(t *testing.T) {
	p := NewPool(PoolConfig{Log: slog.New(slog.DiscardHandler)})
	p.begin()
	p.end(false)
	for range 20 {
		p.failed(lostAfter, "test", io.EOF)
		if wait := time.Until(p.retryAt); wait > backoffUsed {
			t.Fatalf("the next try is in %v", wait)
		}
	}
}

func TestARequestIsAnsweredOnce(t *testing.T) {
	t.Parallel()
	w := newWorld(t, HubConfig{}, echo)
	slow := make(chan struct{})
	inner := w.pool.cfg.Dial
	w.pool.cfg.Dial = func(ctx context.Context, token string) (*Conn, error) {
		if token != "" {
			<-slow
		}
		return inner(ctx, token)
	}
	var once sync.Once
	w.hub.cfg.Ask = func(_ context.Context, _ string, d protocol.Dial) error {
		once.Do(func() { // the hub asks again when the machine is slow
			for range 5 { // as when MQTT repeats
				w.pool.Request(d)
			}
			d.Token, d.Expires = "late", time.Now().Add(-time.Minute).Unix()
			w.pool.Request(d)
			close(slow)
		})
		return nil
	}
	w.pool.ctx = t.Context() // answers, and keeps no spares
	open(t, w)
	if n := w.dials.Load(); n != 1 {
		t.Errorf("%d dials", n)
	}
}

func TestARequestThatNobodyWaitsForIsASpare(t *testing.T) {
	t.Parallel()
	w := newWorld(t, HubConfig{}, echo)
	asked := make(chan string, 1)
	w.hub.cfg.Ask = func(_ context.Context, _ string, d protocol.Dial) error { asked <- d.Token; return nil }
	a := &ask{host: testHost, got: make(chan *spare, 1)}
	w.hub.asked["token"] = a
	c, err := w.dial(t.Context(), testHost, "token")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	until(t, "it is delivered", func() bool { return len(a.got) == 1 })
	w.hub.giveUp("token", a)
	until(t, "it is a spare", func() bool { return w.hub.count(testHost) == 1 })

	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	w.hub.take(testHost)
	if _, err := w.hub.Open(ctx, testHost, header()); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("err = %v", err)
	}
	var r *Rejected
	if _, err := w.dial(t.Context(), testHost, <-asked); !errors.As(err, &r) || r.Status != http.StatusForbidden {
		t.Errorf("a token that nobody waits for: %v", err)
	}
}

// TestEnoughSparesOfAllHosts: a server with as many spares as it may hold says
// when to come again, and still gets the streams that it asks for.
func TestEnoughSparesOfAllHosts(t *testing.T) {
	t.Parallel()
	w := newWorld(t, HubConfig{MaxSpares: 1}, echo)
	if _, err := w.dial(t.Context(), "host_11111111111111111111", ""); err != nil {
		t.Fatal(err)
	}
	until(t, "it is taken in", func() bool { return w.hub.count("host_11111111111111111111") == 1 })
	w.run(t)
	until(t, "the pool has heard that there are enough", func() bool {
		w.pool.mu.Lock()
		defer w.pool.mu.Unlock()
		return time.Until(w.pool.retryAt) > fullFor/2-time.Minute
	})
	open(t, w)
	w.hub.Drop("host_11111111111111111111")
	w.hub.mu.Lock()
	defer w.hub.mu.Unlock()
	if w.hub.warm != 0 {
		t.Errorf("%d spares are counted of none", w.hub.warm)
	}
}

func TestMaxStreamsOfAHost(t *testing.T) {
	t.Parallel()
	w := newWorld(t, HubConfig{}, echo)
	w.pool.cfg.MaxStreams = 2
	w.run(t)
	first := open(t, w)
	open(t, w)
	_, err := w.hub.Open(t.Context(), testHost, header())
	var r *Refused
	if !errors.As(err, &r) || r.Code != protocol.ReplyLimit {
		t.Errorf("third stream: %v", err)
	}
	first.Close()
	until(t, "a stream is free again", func() bool {
		c, err := w.hub.Open(t.Context(), testHost, header())
		if err == nil {
			c.Close()
		}
		return err == nil
	})
}

func TestManyAtOnce(t *testing.T) {
	t.Parallel()
	w := newWorld(t, HubConfig{}, echo)
	w.run(t)
	var g sync.WaitGroup
	for i := range 50 {
		g.Go(func() {
			ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
			defer cancel()
			c, err := w.hub.Open(ctx, testHost, header())
			if err != nil {
				t.Errorf("stream %d: %v", i, err)
				return
			}
			defer c.Close()
			want := fmt.Sprintf("stream %d", i)
			io.WriteString(c, want)
			c.CloseWrite()
			if got, err := io.ReadAll(c); err != nil || string(got) != want {
				t.Errorf("read %q, %v; want %q", got, err, want)
			}
		})
	}
	g.Wait()
	w.hub.mu.Lock()
	defer w.hub.mu.Unlock()
	if len(w.hub.byHost)+len(w.hub.byUser)+len(w.hub.open)+len(w.hub.asked) > 0 {
		t.Errorf("left: %v %v %v %v", w.hub.byHost, w.hub.byUser, w.hub.open, w.hub.asked)
	}
}

func TestDropEndsAHost(t *testing.T) {
	t.Parallel()
	w := newWorld(t, HubConfig{MaxPerHost: 2}, echo)
	w.run(t)
	w.waitSpare(t)
	c := open(t, w)
	far := make(chan error, 1)
	w.pool.cfg.Serve = func(_ context.Context, c *Conn, _ protocol.StreamHeader) {
		Reply(c, protocol.StreamReply{})
		_, err := c.Read(make([]byte, 1))
		far <- err
	}
	open(t, w)
	if _, err := w.hub.Open(t.Context(), testHost, header()); !errors.Is(err, ErrLimit) {
		t.Errorf("over the cap of one host: %v", err)
	}
	w.hub.Drop(testHost)
	var a *Aborted
	if err := <-far; !errors.As(err, &a) {
		t.Errorf("the agent reads %v", err)
	}
	if _, err := c.Write([]byte("x")); err == nil {
		t.Error("the stream is still open")
	}
	if len(w.hub.byHost) > 0 {
		t.Error("streams are still counted")
	}
	open(t, w) // asked for: its spares come back in their own time
	w.hub.Close()
	w.hub.mu.Lock()
	defer w.hub.mu.Unlock()
	if len(w.hub.open) > 0 {
		t.Error("streams are open after Close")
	}
}

func TestASpareThatSpeaksUnaskedIsClosed(t *testing.T) {
	t.Parallel()
	w := newWorld(t, HubConfig{}, echo)
	c, err := w.dial(t.Context(), testHost, "")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	w.waitSpare(t)
	c.Write([]byte("hello?"))
	if _, err := c.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("read: %v", err)
	}
	if n := w.hub.count(testHost); n != 0 {
		t.Errorf("%d spares", n)
	}
}

func TestTooManySpares(t *testing.T) {
	t.Parallel()
	w := newWorld(t, HubConfig{}, echo)
	for range hubMaxSpares {
		c, err := w.dial(t.Context(), testHost, "")
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
	}
	until(t, "all are taken in", func() bool { return w.hub.count(testHost) == hubMaxSpares })
	var r *Rejected
	if _, err := w.dial(t.Context(), testHost, ""); !errors.As(err, &r) || r.Status != http.StatusTooManyRequests {
		t.Errorf("one more: %v", err)
	}
	if _, err := w.dial(t.Context(), "host_11111111111111111111", ""); err != nil {
		t.Errorf("another host: %v", err)
	}
}

// A host that is offline, and left spares behind that a NAT has forgotten.
func TestAForgottenSpareOfAnOfflineHost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := NewHub(HubConfig{Online: func(string) bool { return false }, Log: slog.New(slog.DiscardHandler)})
		near, _ := piped(t, true)
		s := &spare{conn: near, first: make(chan message, 1)}
		h.deliver(testHost, nil, s)
		go h.watch(testHost, s)
		start := time.Now()
		_, err := h.Open(t.Context(), testHost, header())
		if d := time.Since(start); !errors.Is(err, ErrOffline) || d > hedgeAfter {
			t.Errorf("err = %v after %v", err, d)
		}
		time.Sleep(5 * time.Minute) // all that lingers ends
	})
}
