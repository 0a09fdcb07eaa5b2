package app

import (
	"bytes"
	"crypto/rand"
	"errors"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/remotegpu/remotegpu/protocol/tunnel"
)

// service listens on loopback and answers every connection by fn.
func service(t *testing.T, fn func(c *net.TCPConn)) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go fn(c.(*net.TCPConn))
		}
	}()
	return l.Addr().String()
}

// dial opens a forward as somebody.
func (w *world) dial(who, path, network, address string) (*tunnel.Conn, error) {
	h := http.Header{}
	if who != "" {
		h.Set("Authorization", "Bearer "+w.secrets[who])
	}
	q := url.Values{"network": {network}, "address": {address}}
	return tunnel.Dial(w.t.Context(), tunnel.DialConfig{URL: "wss" + strings.TrimPrefix(w.url, "https") + "/api/v1/workspaces/" + path + "/dial?" + q.Encode(),
		Header: h, TLS: w.server.Client().Transport.(*http.Transport).TLSClientConfig})
}

func TestForward(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.put("box", "db:5432", service(t, func(c *net.TCPConn) {
		defer c.Close()
		b, _ := io.ReadAll(c) // until the half-close
		c.Write(bytes.ToUpper(b))
	}))
	block := make([]byte, 3<<20)
	rand.Read(block)
	for range 3 {
		conn, err := w.dial("bob", "lab/environments/box", "tcp", "db:5432")
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if _, err := conn.Write(block); err != nil {
			t.Fatal(err)
		}
		if err := conn.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		if got, err := io.ReadAll(conn); err != nil || !bytes.Equal(got, bytes.ToUpper(block)) {
			t.Fatalf("%d bytes, %v", len(got), err)
		}
	}
}

// TestForwardCut: a service that breaks off is no end of bytes for the person.
func TestForwardCut(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.put("box", "127.0.0.1:80", service(t, func(c *net.TCPConn) {
		io.ReadFull(c, make([]byte, 1))
		c.SetLinger(0)
		c.Close()
	}))
	conn, err := w.dial("bob", "lab/environments/box", "tcp", "127.0.0.1:80")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.Write([]byte("x"))
	if _, err := conn.Read(make([]byte, 1)); err == nil || errors.Is(err, io.EOF) {
		t.Errorf("read: %v, want an abort", err)
	}
}

func TestForwardRefused(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for _, c := range []struct {
		who, path, network, address string
		status                      int
		text                        string
	}{
		{"", "lab/environments/box", "tcp", "127.0.0.1:80", 401, "Log in first"},
		{"eve", "lab/environments/box", "tcp", "127.0.0.1:80", 404, "no such workspace"},
		{"vera", "lab/environments/box", "tcp", "127.0.0.1:80", 403, "Your role in this workspace is viewer"},
		{"bob", "lab2/environments/box", "tcp", "127.0.0.1:80", 404, "no such workspace"},
		{"bob", "lab/environments/none", "tcp", "127.0.0.1:80", 404, "none"},
		{"bob", "lab/environments/off", "tcp", "127.0.0.1:80", 409, "remotegpu env start off"},
		{"bob", "lab/environments/box", "tcp", "127.0.0.1:80", 503, "Nothing listens on 127.0.0.1:80"},
		{"bob", "lab/environments/box", "tcp", "127.0.0.1", 422, "127.0.0.1:8888"},
		{"bob", "lab/environments/box", "tcp", ":80", 422, "no address"},
		{"bob", "lab/environments/box", "tcp", "a:0", 422, "no address"},
		{"bob", "lab/environments/box", "icmp", "a:1", 422, "tcp, udp or unix"},
		{"bob", "lab/environments/box", "unix", "run/x", 422, "no path"},
		{"bob", "lab/environments/box", "unix", "/" + strings.Repeat("x", 5000), 422, "too long"},
	} {
		_, err := w.dial(c.who, c.path, c.network, c.address)
		var rejected *tunnel.Rejected
		if !errors.As(err, &rejected) || rejected.Status != c.status || !strings.Contains(detail(rejected.Body), c.text) {
			t.Errorf("%s to %s %s %.30s: %v, want %d %s", c.who, c.path, c.network, c.address, err, c.status, c.text)
		}
	}
	w.stop()
	began := time.Now()
	_, err := w.dial("bob", "lab/environments/box", "tcp", "127.0.0.1:80")
	if err == nil || !strings.Contains(err.Error(), "offline") || time.Since(began) > 10*time.Second {
		t.Errorf("host offline: %v after %v", err, time.Since(began))
	}
}

// TestForwardInTheAuditLog: one entry when a forward begins and one with what
// it came to, however many connections it had.
func TestForwardInTheAuditLog(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.visits.idle = 3 * time.Second // a busy machine takes a while from one connection to the next
	w.put("box", "127.0.0.1:80", service(t, func(c *net.TCPConn) {
		defer c.Close()
		io.Copy(c, c)
	}))
	for range 5 {
		conn, err := w.dial("bob", "lab/environments/box", "tcp", "127.0.0.1:80")
		if err != nil {
			t.Fatal(err)
		}
		conn.Write([]byte("hello"))
		conn.CloseWrite()
		if got, err := io.ReadAll(conn); err != nil || string(got) != "hello" {
			t.Fatalf("%q, %v", got, err)
		}
		conn.Close()
	}
	var began, ended, connections, up, down int
	for ; ended == 0; time.Sleep(50 * time.Millisecond) {
		err := w.pool.QueryRow(t.Context(), `select count(*) filter (where detail->'ended_after_s' is null), count(*) filter (where detail->'ended_after_s' is not null),
			coalesce(sum((detail->>'connections')::int), 0), coalesce(sum((detail->>'bytes_in')::int), 0), coalesce(sum((detail->>'bytes_out')::int), 0)
			from audit_entries where action = 'environment.access' and actor = $1 and detail->>'via' = 'forward' and detail->>'target' = 'tcp:127.0.0.1:80' and remote = '127.0.0.1'`,
			w.callers["bob"].ID).Scan(&began, &ended, &connections, &up, &down)
		if err != nil {
			t.Fatal(err)
		}
	}
	if began != 1 || ended != 1 || connections != 5 || up != 25 || down != 25 {
		t.Errorf("%d began, %d ended with %d connections, %d and %d bytes", began, ended, connections, up, down)
	}
}
