package server

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/remotegpu/remotegpu/control/pg"
	"github.com/remotegpu/remotegpu/control/pgtest"
	"github.com/remotegpu/remotegpu/protocol"
	"github.com/remotegpu/remotegpu/protocol/tunnel"
)

// pair is two replicas: the world's, which has the agent, and other, where
// people are.
type pair struct {
	*world
	other *Server
	asked chan protocol.Dial // of the agent, by other
}

func newPair(t *testing.T) *pair {
	t.Helper()
	p := &pair{world: newWorld(t), asked: make(chan protocol.Dial, 10)}
	var err error
	cfg := Config{DataDir: t.TempDir(), DatabaseURL: p.cfg.DatabaseURL, ReplicaListen: freeAddress(t), Version: "test"}
	if p.other, err = New(t.Context(), cfg, slog.New(slog.DiscardHandler)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.other.closeDatabase)
	ctx, cancel := context.WithCancel(t.Context())
	ended, listens := make(chan error, 1), make(chan struct{})
	go func() { ended <- p.other.serveHops(ctx) }()
	for _, s := range []*Server{p.Server, p.other} {
		go s.replicas.Run(ctx) // a lease may be over before a test has begun
	}
	for end := time.Now().Add(30 * time.Second); !p.replicas.Others() || !p.other.replicas.Others(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the replicas do not see each other")
		}
	}
	go pg.Listen(ctx, p.pool, dialWanted, func(text string) {
		var want wanted
		var d protocol.Dial
		switch {
		case text == "":
			close(listens)
		case json.Unmarshal([]byte(text), &want) != nil || protocol.Unmarshal(want.Dial, &d) != nil:
			t.Errorf("notified of %q", text)
		case want.Host == p.machine.id && want.By == p.other.replicas.ID():
			p.asked <- d
		}
	})
	<-listens
	t.Cleanup(func() {
		p.other.hub.Close()
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return p
}

// dial is the agent's connection with a token, at the replica that the load
// balancer has chosen: at url.
func (p *pair) dial(url, token string, as machine) (*tunnel.Conn, error) {
	head := http.Header{"Authorization": {"Bearer " + as.token(p.t, protocol.AudienceTunnel)}, protocol.StreamTokenHeader: {token}}
	return tunnel.Dial(p.t.Context(), tunnel.DialConfig{URL: "ws" + strings.TrimPrefix(url, "http") + protocol.TunnelPath, Header: head})
}

// echo answers a stream with what comes from it.
func echo(t *testing.T, c *tunnel.Conn) {
	if _, err := c.ReadMessage(1 << 16); err != nil {
		t.Error(err)
		return
	}
	if err := tunnel.Reply(c, protocol.StreamReply{}); err != nil {
		t.Error(err)
	}
	_, _ = io.Copy(c, c)
	c.Close()
}

// TestHop: a stream is asked for at one replica, and dialled to another.
func TestHop(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	refused := func(what, token string, as machine, want int) {
		t.Helper()
		c, err := p.dial(p.url, token, as)
		var no *tunnel.Rejected
		if !errors.As(err, &no) || no.Status != want {
			t.Errorf("%s: %v, want %d", what, err, want)
		}
		if c != nil {
			c.Close()
		}
	}
	used := make(chan string, 1)
	go func() {
		d := <-p.asked
		refused("another host", d.Token, p.join("gpu-3"), http.StatusForbidden)
		c, err := p.dial(p.url, d.Token, p.machine)
		if err != nil {
			t.Error(err)
			return
		}
		used <- d.Token
		echo(t, c)
	}()
	conn, err := p.other.hub.Open(t.Context(), p.machine.id, protocol.StreamHeader{Version: protocol.Version, ID: protocol.NewID(protocol.PrefixStream), Kind: protocol.StreamSession, User: "usr_x"})
	if err != nil {
		t.Fatal(err)
	}
	if n := p.hops.open.Load(); n != 1 || p.busy() != 1 {
		t.Errorf("%d streams pass through, %d are waited for", n, p.busy())
	}
	if _, err := conn.Write([]byte("there and back")); err != nil {
		t.Error(err)
	}
	if err := conn.CloseWrite(); err != nil {
		t.Error(err)
	}
	if b, err := io.ReadAll(conn); err != nil || string(b) != "there and back" {
		t.Errorf("%q, %v", b, err)
	}
	conn.Close()
	for end := time.Now().Add(30 * time.Second); p.hops.open.Load() > 0; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the hop outlives its stream")
		}
	}
	refused("a token a second time", <-used, p.machine, http.StatusForbidden)
	refused("a replica that is none", protocol.NewID(protocol.PrefixReplica)+".TOKEN", p.machine, http.StatusServiceUnavailable)
	refused("a token of nobody", "TOKEN", p.machine, http.StatusServiceUnavailable)
}

// TestHopsAreAmongReplicas: nobody else is let in, and none goes on.
func TestHopsAreAmongReplicas(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	at := "https://" + p.other.cfg.ReplicaListen + protocol.TunnelPath
	get := func(cfg *tls.Config, head http.Header) (int, error) {
		r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, at, nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Header = head
		tr := &http.Transport{TLSClientConfig: cfg}
		defer tr.CloseIdleConnections()
		res, err := tr.RoundTrip(r)
		if err != nil {
			return 0, err
		}
		res.Body.Close()
		return res.StatusCode, nil
	}
	stranger := p.hopTLS.Clone()
	stranger.Certificates = nil
	if code, err := get(stranger, nil); err == nil {
		t.Errorf("without a certificate: %d", code)
	}
	stranger.Certificates = []tls.Certificate{p.identity.cert} // which is of the same authority
	if code, err := get(stranger, nil); err == nil {
		t.Errorf("with the certificate of the HTTPS port: %d", code)
	}
	bearer := http.Header{"Authorization": {"Bearer " + p.machine.token(t, protocol.AudienceTunnel)}}
	for what, c := range map[string]struct {
		head  http.Header
		token string
		want  int
	}{
		"nobody":                 {http.Header{}, "", http.StatusUnauthorized},
		"another's token":        {bearer.Clone(), p.replicas.ID() + ".TOKEN", http.StatusForbidden}, // and not brought to that one
		"a host without upgrade": {bearer.Clone(), "", http.StatusBadRequest},
	} {
		if c.token != "" {
			c.head.Set(protocol.StreamTokenHeader, c.token)
		}
		if code, err := get(p.hopTLS, c.head); err != nil || code != c.want {
			t.Errorf("%s: %d, %v, want %d", what, code, err, c.want)
		}
	}
}

// TestHopOffline: a host that is nowhere is said at once.
func TestHopOffline(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	if err := p.hosts.Presence(t.Context(), p.machine.id, protocol.Presence{Version: protocol.Version, Epoch: 1}); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	_, err := p.other.hub.Open(t.Context(), p.machine.id, protocol.StreamHeader{Version: protocol.Version, Kind: protocol.StreamSession})
	if !errors.Is(err, tunnel.ErrOffline) || time.Since(began) > 10*time.Second {
		t.Errorf("%v after %v", err, time.Since(began))
	}
}

// TestServersBeginTogether on a database that is new.
func TestServersBeginTogether(t *testing.T) {
	t.Parallel()
	url := pgtest.URL(t)
	errs := make(chan error, 4)
	for range cap(errs) {
		cfg := Config{DataDir: t.TempDir(), DatabaseURL: url, Version: "test"}
		go func() {
			s, err := New(t.Context(), cfg, slog.New(slog.DiscardHandler))
			if err == nil {
				t.Cleanup(s.closeDatabase)
			}
			errs <- err
		}()
	}
	for range cap(errs) {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
}
