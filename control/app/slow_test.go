package app

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"sync/atomic"
	"testing"
	"time"
)

// TestSlowReaders: who does not read what an app or a forward sends stops it, and
// neither fills memory nor holds up another one, also on the same app.
func TestSlowReaders(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	var sent atomic.Int64
	flood := func(to io.Writer) {
		for block := make([]byte, 64<<10); ; sent.Add(int64(len(block))) {
			if _, err := to.Write(block); err != nil {
				return
			}
		}
	}
	home := w.run("box", "8888", func(rw http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/flood" {
			flood(rw)
			return
		}
		fmt.Fprint(rw, "here")
	})
	w.put("box", "db:5432", service(t, func(c *net.TCPConn) {
		defer c.Close()
		flood(c)
	}))
	w.put("box", "echo:7", service(t, func(c *net.TCPConn) {
		defer c.Close()
		_, _ = io.Copy(c, c)
	}))
	const readers = 20 // more than connections that an app keeps idle
	for range readers {
		res := w.page(t, "bob", home+"flood")
		defer res.Body.Close() // and nobody reads
	}
	conn, err := w.dial("bob", "lab/environments/box", "tcp", "db:5432")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	last := int64(-1)
	for sent.Load() != last || last <= 0 {
		last = sent.Load()
		time.Sleep(300 * time.Millisecond) // nothing tells that nothing moves
	}
	if t.Logf("%d bytes are under way to %d readers", last, readers+1); last > (readers+1)*(32<<20) {
		t.Error("and they do not read")
	}
	began := time.Now()
	for range 20 {
		res := w.page(t, "ann", home)
		b, err := io.ReadAll(res.Body)
		res.Body.Close()
		if err != nil || string(b) != "here" {
			t.Fatalf("%q, %v", b, err)
		}
	}
	beside, err := w.dial("bob", "lab/environments/box", "tcp", "echo:7")
	if err != nil {
		t.Fatal(err)
	}
	defer beside.Close()
	for range 20 {
		if _, err := beside.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(beside, make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
	}
	if took := time.Since(began); took > 30*time.Second {
		t.Errorf("20 requests of another user and 20 bytes of another forward took %v", took)
	}
}

// page asks for one as somebody.
func (w *world) page(t *testing.T, who, address string) *http.Response {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, address, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+w.secrets[who])
	res, err := w.browser().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	return res
}
