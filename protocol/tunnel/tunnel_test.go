package tunnel

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/remotegpu/remotegpu/protocol"
)

const testHost = "host_00000000000000000000"

// world is a hub behind a TLS server and a pool that dials it.
type world struct {
	hub   *Hub
	pool  *Pool
	srv   *httptest.Server
	asks  atomic.Int32
	dials atomic.Int32
}

// newWorld serves streams with serve; as is the host that the pool claims to
// be, which a real server takes from its token.
func newWorld(t testing.TB, cfg HubConfig, serve func(ctx context.Context, c *Conn, h protocol.StreamHeader)) *world {
	t.Helper()
	w := &world{}
	log := slog.New(slog.DiscardHandler)
	cfg.Log = log
	cfg.Ask = func(_ context.Context, _ string, d protocol.Dial) error {
		w.asks.Add(1)
		w.pool.Request(d)
		return nil
	}
	w.hub = NewHub(cfg)
	w.srv = serveTLS(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) { w.hub.Accept(r.Header.Get("X-As"), rw, r) }))
	t.Cleanup(w.srv.Close)
	w.pool = NewPool(PoolConfig{Log: log, Serve: serve, Dial: func(ctx context.Context, token string) (*Conn, error) {
		w.dials.Add(1)
		return w.dial(ctx, testHost, token)
	}})
	return w
}

func (w *world) dial(ctx context.Context, as, token string) (*Conn, error) {
	head := http.Header{"X-As": {as}}
	if token != "" {
		head.Set(protocol.StreamTokenHeader, token)
	}
	tlsCfg := w.srv.Client().Transport.(*http.Transport).TLSClientConfig.Clone()
	tlsCfg.NextProtos = nil
	return Dial(ctx, DialConfig{URL: "wss" + strings.TrimPrefix(w.srv.URL, "https"), Header: head, TLS: tlsCfg})
}

func (w *world) run(t testing.TB) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { w.pool.Run(ctx); close(done) }()
	t.Cleanup(func() { cancel(); <-done })
}

func (w *world) waitSpare(t testing.TB) {
	t.Helper()
	until(t, "a spare connection", func() bool { return w.hub.count(testHost) > 0 })
}

func header() protocol.StreamHeader {
	return protocol.StreamHeader{Version: protocol.Version, ID: "str_x", Kind: protocol.StreamSession, User: "usr_x"}
}

// echo opens every stream, returns what it gets, and ends when its peer does.
func echo(_ context.Context, c *Conn, _ protocol.StreamHeader) {
	if Reply(c, protocol.StreamReply{}) != nil {
		return
	}
	if _, err := io.Copy(c, c); err == nil {
		c.CloseWrite()
		io.Copy(io.Discard, c)
	}
}

func open(t testing.TB, w *world) *Conn {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	c, err := w.hub.Open(ctx, testHost, header())
	if err != nil {
		t.Fatalf("Open: %v", err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func TestBytesArriveAsTheyWere(t *testing.T) {
	t.Parallel()
	w := newWorld(t, HubConfig{}, echo)
	w.run(t)
	for _, spare := range []bool{true, false} {
		if spare {
			w.waitSpare(t)
		}
		c := open(t, w)
		data := make([]byte, 3<<20+7)
		for i := range data {
			data[i] = byte(rand.Uint32())
		}
		go func() {
			io.Copy(c, bytes.NewReader(data))
			c.CloseWrite()
		}()
		got, err := io.ReadAll(c)
		if err != nil || sha256.Sum256(got) != sha256.Sum256(data) {
			t.Errorf("from a spare %v: %d of %d bytes, equal %v, err %v", spare, len(got), len(data), bytes.Equal(got, data), err)
		}
	}
}

func TestASpareNeedsNoAsking(t *testing.T) {
	t.Parallel()
	w := newWorld(t, HubConfig{}, echo)
	w.run(t)
	w.waitSpare(t)
	open(t, w)
	if n := w.asks.Load(); n != 0 {
		t.Errorf("the host was asked %d times although a spare was there", n)
	}
	w.waitSpare(t) // the pool fills up again
}

func TestADeadSpareDoesNotFailAnOpen(t *testing.T) {
	t.Parallel()
	w := newWorld(t, HubConfig{}, echo)
	silent, err := w.dial(t.Context(), testHost, "") // never reads: as behind a NAT that forgot it
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	w.waitSpare(t)
	w.pool.mu.Lock()
	w.pool.ctx = t.Context() // answers requests, keeps no spares
	w.pool.mu.Unlock()
	c := open(t, w)
	if _, err := c.Write([]byte("x")); err != nil {
		t.Error(err)
	}
	if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
		t.Error(err)
	}
}

func TestAnAbortIsNoEnd(t *testing.T) {
	t.Parallel()
	w := newWorld(t, HubConfig{}, func(_ context.Context, c *Conn, _ protocol.StreamHeader) {
		Reply(c, protocol.StreamReply{})
		c.Write([]byte("half of "))
		c.CloseWithError(errors.New("the disk is on fire"))
	})
	w.run(t)
	got, err := io.ReadAll(open(t, w))
	if string(got) != "half of " || err == nil || !strings.Contains(err.Error(), "on fire") {
		t.Errorf("read %q, %v; want what was sent and the reason", got, err)
	}
}

func TestACutConnectionIsNoEnd(t *testing.T) {
	t.Parallel()
	w := newWorld(t, HubConfig{}, func(_ context.Context, c *Conn, _ protocol.StreamHeader) {
		Reply(c, protocol.StreamReply{})
		c.Write([]byte("half of "))
		c.ws.NetConn().Close()
	})
	w.run(t)
	if got, err := io.ReadAll(open(t, w)); err == nil {
		t.Errorf("read %q and a clean end", got)
	}
}

func TestRefusalsSayWhy(t *testing.T) {
	t.Parallel()
	w := newWorld(t, HubConfig{}, func(_ context.Context, c *Conn, _ protocol.StreamHeader) {
		Reply(c, protocol.StreamReply{Code: protocol.ReplyNotRunning, Message: "It is stopped."})
	})
	w.run(t)
	_, err := w.hub.Open(t.Context(), testHost, header())
	var r *Refused
	if !errors.As(err, &r) || r.Code != protocol.ReplyNotRunning || r.Message != "It is stopped." {
		t.Errorf("err = %v", err)
	}
}

func TestOfflineIsSaidAtOnce(t *testing.T) {
	t.Parallel()
	w := newWorld(t, HubConfig{Online: func(string) bool { return false }}, echo)
	start := time.Now()
	if _, err := w.hub.Open(t.Context(), testHost, header()); !errors.Is(err, ErrOffline) || time.Since(start) > time.Second {
		t.Errorf("err = %v after %v", err, time.Since(start))
	}
}

func TestCaps(t *testing.T) {
	t.Parallel()
	w := newWorld(t, HubConfig{MaxPerUser: 2}, echo)
	w.run(t)
	first := open(t, w)
	open(t, w)
	if _, err := w.hub.Open(t.Context(), testHost, header()); !errors.Is(err, ErrLimit) {
		t.Errorf("third stream: %v", err)
	}
	first.Close()
	open(t, w)
	w.hub.mu.Lock()
	defer w.hub.mu.Unlock()
	if n := w.hub.byUser["usr_x"]; n != 2 {
		t.Errorf("%d streams counted, 2 are open", n)
	}
}

func TestATokenIsForOneHostAndOnce(t *testing.T) {
	t.Parallel()
	w := newWorld(t, HubConfig{}, echo)
	token := make(chan string, 8) // it asks again, and again later
	w.hub.cfg.Ask = func(_ context.Context, _ string, d protocol.Dial) error { token <- d.Token; return nil }
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	opened := make(chan error, 1)
	go func() {
		c, err := w.hub.Open(ctx, testHost, header())
		if err == nil {
			c.Close()
		}
		opened <- err
	}()
	tok := <-token
	forbidden := func(as, tok, what string) {
		var r *Rejected
		if c, err := w.dial(t.Context(), as, tok); !errors.As(err, &r) || r.Status != http.StatusForbidden {
			t.Errorf("%s: conn %v, err %v; want 403", what, c, err)
		}
	}
	forbidden("host_11111111111111111111", tok, "another host with the token")
	forbidden(testHost, "guess", "a guessed token")
	c, err := w.dial(t.Context(), testHost, tok)
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		if _, err := c.ReadMessage(maxHead); err == nil {
			Reply(c, protocol.StreamReply{})
		}
	}()
	if err := <-opened; err != nil {
		t.Error(err)
	}
	forbidden(testHost, tok, "the token again")
}

func TestHostilePeers(t *testing.T) {
	t.Parallel()
	for name, attack := range map[string]func(c *Conn){
		"huge header":     func(c *Conn) { c.Write(make([]byte, maxData)) },
		"over read limit": func(c *Conn) { c.ws.WriteMessage(2, make([]byte, maxData+1)) },
		"unknown text":    func(c *Conn) { c.ws.WriteMessage(1, []byte("reboot")) },
		"long text":       func(c *Conn) { c.ws.WriteMessage(1, make([]byte, maxData)) },
		"garbage reply":   func(c *Conn) { c.Write([]byte{0xff, 0x00}) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, HubConfig{Online: func(string) bool { return false }}, echo)
			c, err := w.dial(t.Context(), testHost, "")
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			attack(c)
			ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
			defer cancel()
			if got, err := w.hub.Open(ctx, testHost, header()); err == nil {
				t.Errorf("a stream was opened: %v", got)
			}
		})
	}
}

func TestThePoolSurvivesAServerThatIsDown(t *testing.T) {
	t.Parallel()
	var up atomic.Bool
	w := newWorld(t, HubConfig{}, echo)
	inner := w.pool.cfg.Dial
	var tries atomic.Int32
	w.pool.cfg.Dial = func(ctx context.Context, token string) (*Conn, error) {
		if tries.Add(1); !up.Load() {
			return nil, errors.New("connection refused")
		}
		return inner(ctx, token)
	}
	w.run(t)
	for tries.Load() < 2 {
		time.Sleep(10 * time.Millisecond)
	}
	if n := tries.Load(); n > 5 {
		t.Errorf("%d dials at once against a server that is down", n)
	}
	up.Store(true)
	w.waitSpare(t)
}
