package tunnel

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gorilla/websocket"
)

// pair returns both ends of a stream over a real socket; near has dialled.
func pair(t testing.TB) (near, far *Conn) {
	t.Helper()
	got := make(chan *Conn, 1)
	srv := serveTLS(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if c, err := Upgrade(w, r); err == nil {
			got <- c
		}
	}))
	t.Cleanup(srv.Close)
	tlsCfg := srv.Client().Transport.(*http.Transport).TLSClientConfig.Clone()
	tlsCfg.NextProtos = nil
	near, err := Dial(t.Context(), DialConfig{URL: "wss" + strings.TrimPrefix(srv.URL, "https"), TLS: tlsCfg})
	if err != nil {
		t.Fatal(err)
	}
	far = <-got
	t.Cleanup(func() { near.Close(); far.Close() })
	return near, far
}

// serveTLS serves as the control plane does.
func serveTLS(h http.Handler) *httptest.Server {
	srv := httptest.NewUnstartedServer(h)
	srv.Listener = Listener(srv.Listener)
	srv.StartTLS()
	return srv
}

// within fails when f takes longer than a test should.
func within(t testing.TB, d time.Duration, what string, f func()) {
	t.Helper()
	done := make(chan struct{})
	go func() { defer close(done); f() }()
	select {
	case <-done:
	case <-time.After(d):
		t.Fatalf("not within %v: %s", d, what)
	}
}

func TestHalfClose(t *testing.T) {
	t.Parallel()
	near, far := pair(t)
	for _, end := range [][2]*Conn{{near, far}, {far, near}} {
		c, peer := end[0], end[1]
		if _, err := c.Write([]byte("last words")); err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(c.CloseWrite(), c.CloseWrite()); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Write([]byte("x")); !errors.Is(err, io.ErrClosedPipe) {
			t.Errorf("write after CloseWrite: %v", err)
		}
		for range 2 {
			got, err := io.ReadAll(peer)
			if err != nil || (string(got) != "last words" && len(got) > 0) {
				t.Errorf("read %q, %v", got, err)
			}
		}
		if c == near { // the other direction goes on
			if _, err := peer.Write([]byte("answer")); err != nil {
				t.Fatal(err)
			}
			buf := make([]byte, 6)
			if _, err := io.ReadFull(c, buf); err != nil || string(buf) != "answer" {
				t.Fatalf("read %q, %v", buf, err)
			}
		}
	}
}

func TestAHalfClosedStreamNoticesDeath(t *testing.T) {
	t.Parallel()
	near, far := pair(t)
	near.CloseWrite()
	if _, err := io.ReadAll(far); err != nil {
		t.Fatal(err)
	}
	near.ws.NetConn().Close() // no goodbye
	within(t, 10*time.Second, "writes fail", func() {
		for {
			if _, err := far.Write(make([]byte, chunk)); err != nil {
				return
			}
		}
	})
}

func TestBytesAfterTheEnd(t *testing.T) {
	t.Parallel()
	near, far := pair(t)
	near.CloseWrite()
	if _, err := io.ReadAll(far); err != nil {
		t.Fatal(err)
	}
	near.ws.WriteMessage(websocket.BinaryMessage, []byte("more"))
	var a *Aborted
	if _, err := near.Read(make([]byte, 1)); !errors.As(err, &a) {
		t.Errorf("err = %v", err)
	}
}

// The closer has bytes that it never reads, which would reset the connection,
// and the peer begins to read late.
func TestCloseLosesNothing(t *testing.T) {
	t.Parallel()
	for _, abort := range []bool{false, true} {
		near, far := pair(t)
		data := bytes.Repeat([]byte("0123456789abcdef"), 64<<10) // 1 MiB: more than fits a socket that nobody reads
		near.Write([]byte("never read"))
		sent := make(chan struct{})
		go func() {
			defer close(sent)
			far.Write(data)
			if abort {
				far.CloseWithError(errors.New("ä" + strings.Repeat("ö", 100)))
			} else {
				far.Close()
			}
		}()
		time.Sleep(50 * time.Millisecond) // the sender is stuck, or closed, by now
		near.Write([]byte("never read either"))
		got, err := io.ReadAll(near)
		if !bytes.Equal(got, data) {
			t.Errorf("%d of %d bytes arrived", len(got), len(data))
		}
		var a *Aborted
		if abort && (!errors.As(err, &a) || !strings.HasPrefix(a.Reason, "äööö")) || !abort && err != nil {
			t.Errorf("abort %v: the end is %v", abort, err)
		}
		near.Close()
		<-sent
	}
}

func TestCloseEndsWhatIsUnderWay(t *testing.T) {
	t.Parallel()
	near, _ := pair(t) // the other end neither reads nor writes
	read, wrote := make(chan error, 1), make(chan error, 1)
	go func() {
		_, err := near.Read(make([]byte, 1))
		read <- err
	}()
	go func() {
		for {
			if _, err := near.Write(make([]byte, maxData)); err != nil {
				wrote <- err
				return
			}
		}
	}()
	time.Sleep(50 * time.Millisecond) // both wait by now
	within(t, lingerFor/2, "Close does not wait for the other end", func() { near.Close() })
	within(t, 20*time.Second, "the read ends", func() {
		if err := <-read; !errors.Is(err, net.ErrClosed) {
			t.Errorf("read: %v", err)
		}
	})
	within(t, 20*time.Second, "the write ends", func() {
		if err := <-wrote; !errors.Is(err, net.ErrClosed) {
			t.Errorf("write: %v", err)
		}
	})
	if _, err := near.Write([]byte("x")); !errors.Is(err, net.ErrClosed) {
		t.Errorf("write after Close: %v", err)
	}
	if _, err := near.Read(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
		t.Errorf("read after Close: %v", err)
	}
}

func TestDeadlines(t *testing.T) {
	t.Parallel()
	near, far := pair(t)
	near.SetReadDeadline(time.Now().Add(time.Hour))
	go func() {
		time.Sleep(20 * time.Millisecond)
		near.SetReadDeadline(time.Now().Add(20 * time.Millisecond)) // beside a read under way
	}()
	within(t, 5*time.Second, "the read deadline", func() {
		if _, err := near.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("read: %v", err)
		}
	})
	if _, err := near.Write([]byte("x")); err != nil {
		t.Errorf("a write after a read ran into its deadline: %v", err)
	}
	if _, err := io.ReadFull(far, make([]byte, 1)); err != nil {
		t.Error(err)
	}
	far.SetWriteDeadline(time.Now().Add(50 * time.Millisecond))
	within(t, 5*time.Second, "the write deadline", func() {
		for {
			if _, err := far.Write(make([]byte, chunk)); err != nil {
				if !errors.Is(err, os.ErrDeadlineExceeded) {
					t.Errorf("write: %v", err)
				}
				return
			}
		}
	})
}

func TestFloodsOfControlMessages(t *testing.T) {
	t.Parallel()
	near, far := pair(t)
	go func() {
		for range maxControls - 1 {
			if near.writeText(textPing) != nil {
				return
			}
		}
		near.Write([]byte("still there"))
		for near.writeText(textPong) == nil {
		}
	}()
	go io.Copy(io.Discard, near.ws.NetConn()) // its answers
	buf := make([]byte, 11)
	within(t, 3*time.Minute, "the flood ends", func() {
		if _, err := io.ReadFull(far, buf); err != nil || string(buf) != "still there" {
			t.Errorf("read %q, %v: days of pings are no flood", buf, err)
		}
		if _, err := far.Read(buf); err == nil || !strings.Contains(err.Error(), "floods") {
			t.Errorf("read: %v", err)
		}
	})
	far.Close()
}

// piped returns both ends of a stream over a pipe in memory, whose time
// synctest moves; a silent far end never pings.
func piped(t *testing.T, silent bool) (near, far *Conn) {
	t.Helper()
	a, z := net.Pipe()
	got := make(chan *websocket.Conn, 1)
	go func() {
		br := bufio.NewReader(z)
		r, err := http.ReadRequest(br)
		if err != nil {
			return
		}
		ws, err := upgrader.Upgrade(&hijacked{header: http.Header{}, conn: z, br: br}, r, nil)
		if err == nil {
			got <- ws
		}
	}()
	d := websocket.Dialer{NetDialContext: func(context.Context, string, string) (net.Conn, error) { return a, nil }}
	ws, _, err := d.Dial("ws://pipe/", nil)
	if err != nil {
		t.Fatal(err)
	}
	peer := <-got
	if silent {
		go io.Copy(io.Discard, peer.NetConn()) // as a network that swallows what is sent
		return newConn(ws), nil
	}
	return newConn(ws), newConn(peer)
}

type hijacked struct {
	header http.Header
	conn   net.Conn
	br     *bufio.Reader
}

func (h *hijacked) Header() http.Header         { return h.header }
func (h *hijacked) Write(p []byte) (int, error) { return h.conn.Write(p) }
func (h *hijacked) WriteHeader(int)             {}
func (h *hijacked) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	return h.conn, bufio.NewReadWriter(h.br, bufio.NewWriter(h.conn)), nil
}

func TestAnIdleStreamLives(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		near, far := piped(t, false)
		go io.Copy(io.Discard, far) // it answers nothing
		go func() {
			time.Sleep(24 * time.Hour)
			far.Write([]byte("good morning"))
			far.CloseWrite()
		}()
		got, err := io.ReadAll(near)
		if err != nil || string(got) != "good morning" {
			t.Errorf("read %q, %v", got, err)
		}
		near.Close()
		far.Close()
		time.Sleep(5 * time.Minute) // all that lingers ends
	})
}

func TestASilentPeerIsDead(t *testing.T) {
	for used, want := range map[bool]time.Duration{false: restDead, true: deadAfter} {
		synctest.Test(t, func(t *testing.T) {
			near, _ := piped(t, true)
			near.used.Store(used)
			start := time.Now()
			_, err := near.Read(make([]byte, 1))
			if d := time.Since(start); !errors.Is(err, io.ErrUnexpectedEOF) || d != want {
				t.Errorf("used is %v: %v after %v", used, err, d)
			}
			near.Close()
			time.Sleep(5 * time.Minute)
		})
	}
}

// TestASpareRests: one that has carried nothing says so a third as often.
func TestASpareRests(t *testing.T) {
	for used, want := range map[bool]time.Duration{false: restPing, true: pingEvery} {
		synctest.Test(t, func(t *testing.T) {
			near, far := piped(t, false)
			near.used.Store(used)
			far.used.Store(used)
			go io.Copy(io.Discard, near)
			go io.Copy(io.Discard, far)
			pings, start := 0, time.Now()
			for last := int64(0); time.Since(start) < time.Hour; time.Sleep(time.Second) {
				if now := near.spoke.Load(); now != last {
					last = now
					pings++
				}
			}
			if most := int(time.Hour / want); pings < most/2 || pings > most+1 {
				t.Errorf("used is %v: %d signs of life in an hour, want about %d", used, pings, most)
			}
			near.Close()
			far.Close()
			time.Sleep(5 * time.Minute)
		})
	}
}
