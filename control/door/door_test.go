package door

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"time"
)

func TestNetwork(t *testing.T) {
	t.Parallel()
	for remote, want := range map[string]string{
		"192.0.2.1:80": "192.0.2.1/32", "192.0.2.1": "192.0.2.1/32", "[::ffff:192.0.2.1]:1": "192.0.2.1/32",
		"[2001:db8::1%eth0]:80": "2001:db8::/64", "2001:db8::2": "2001:db8::/64", "nonsense": "invalid Prefix", "": "invalid Prefix",
	} {
		if got := Network(remote).String(); got != want {
			t.Errorf("%q is in %s, want %s", remote, got, want)
		}
	}
}

func TestTotal(t *testing.T) {
	t.Parallel()
	d := New("test", 2, 3, slog.New(slog.DiscardHandler))
	enter := func(ip string, want bool) *Visit {
		t.Helper()
		v := d.Enter(&net.TCPAddr{IP: net.ParseIP(ip)})
		if (v != nil) != want {
			t.Errorf("%s: let in %v, want %v", ip, v != nil, want)
		}
		return v
	}
	first := enter("10.0.0.1", true)
	enter("10.0.0.1", true)
	enter("10.0.0.1", false)
	enter("10.0.0.2", true)
	enter("10.0.0.3", false)
	first.Known()
	first.Known() // counts once
	enter("10.0.0.3", true)
	enter("10.0.0.4", false)
	if len(d.from) != 3 {
		t.Errorf("%d networks are remembered, want 3", len(d.from))
	}
}

// TestStrangersAtHTTP: half requests and idle connections fill the places of
// their network; who has shown who they are, and a WebSocket, take none.
func TestStrangersAtHTTP(t *testing.T) {
	t.Parallel()
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/known":
			Known(r.Context())
		case "/other":
			c, _, err := w.(http.Hijacker).Hijack()
			if err == nil {
				io.WriteString(c, "HTTP/1.1 101 Other\r\n\r\n")
				t.Cleanup(func() { c.Close() })
			}
			return
		}
		fmt.Fprint(w, "hello")
	}))
	d := New("test", 3, 100, slog.New(slog.DiscardHandler))
	d.Guard(srv.Config)
	srv.Start()
	t.Cleanup(srv.Close)
	open := func(from, say, want string) net.Conn {
		t.Helper()
		c, err := (&net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}).Dial("tcp", srv.Listener.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		io.WriteString(c, say) // it may be closed
		c.SetReadDeadline(time.Now().Add(30 * time.Second))
		if want == "" {
			c.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
		}
		b := make([]byte, 12)
		n, err := io.ReadFull(c, b)
		if got := string(b[:n]); got != want || want == "" && !os.IsTimeout(err) {
			t.Errorf("%.20q from %s gets %q, %v", say, from, got, err)
		}
		return c
	}
	const rest = " HTTP/1.1\r\nHost: x\r\n\r\n"
	open("127.0.0.1", "GET /known"+rest, "HTTP/1.1 200")
	open("127.0.0.1", "GET /other"+rest, "HTTP/1.1 101")
	half := open("127.0.0.1", "GET /slow HTTP/1.1\r\nHo", "")
	open("127.0.0.1", "", "")
	open("127.0.0.1", "GET /idle"+rest, "HTTP/1.1 200")
	fourth, err := net.Dial("tcp", srv.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer fourth.Close()
	fourth.SetReadDeadline(time.Now().Add(30 * time.Second))
	if _, err := fourth.Read(make([]byte, 1)); err == nil || os.IsTimeout(err) {
		t.Errorf("a fourth stranger is let in: %v", err)
	}
	open("127.0.0.2", "GET /"+strings.Repeat("x", 10)+rest, "HTTP/1.1 200")
	half.Close()
	for end := time.Now().Add(30 * time.Second); ; {
		v := d.Enter(&net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
		if v != nil {
			break
		}
		if time.Now().After(end) {
			t.Fatal("a place is not given back")
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// TestAsk: strangers of one network may ask so often, for so much.
func TestAsk(t *testing.T) {
	t.Parallel()
	d := New("test", 1000, 1000, slog.New(slog.DiscardHandler))
	ctx := func(ip string) context.Context {
		return context.WithValue(t.Context(), visitKey{}, d.Enter(&net.TCPAddr{IP: net.ParseIP(ip)}))
	}
	if Ask(ctx("10.0.0.1"), maxAsk+1) {
		t.Error("a body may be of any size")
	}
	allowed := 0
	for range 2 * askBurst {
		if Ask(ctx("10.0.0.1"), 10) {
			allowed++
		}
	}
	if allowed < askBurst || allowed > askBurst+askRate*5 {
		t.Errorf("%d were allowed, want %d", allowed, askBurst)
	}
	if !Ask(ctx("10.0.0.2"), -1) || !Ask(t.Context(), 1<<30) {
		t.Error("another network, or who is not guarded, may not ask")
	}
}
