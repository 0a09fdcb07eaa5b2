package chaos

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"testing"
	"time"
)

// lined is an echo server behind a line.
func lined(t *testing.T) (line *Line, dial func() *net.TCPConn, accepted chan net.Conn) {
	t.Helper()
	listen := func() net.Listener {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close() })
		return l
	}
	server, front := listen(), listen()
	accepted = make(chan net.Conn, 16)
	go func() {
		for {
			c, err := server.Accept()
			if err != nil {
				return
			}
			accepted <- c
			go func() { io.Copy(c, c); c.(*net.TCPConn).CloseWrite() }()
		}
	}()
	line = NewLine()
	go line.Serve(front, func() (net.Conn, error) { return net.Dial("tcp", server.Addr().String()) })
	return line, func() *net.TCPConn {
		c, err := net.Dial("tcp", front.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return c.(*net.TCPConn)
	}, accepted
}

// echo says what comes back of what is sent, or how that failed.
func echo(c net.Conn, text string, within time.Duration) error {
	c.SetDeadline(time.Now().Add(within))
	if _, err := io.WriteString(c, text); err != nil {
		return err
	}
	got := make([]byte, len(text))
	if _, err := io.ReadFull(c, got); err != nil {
		return err
	}
	if string(got) != text {
		return fmt.Errorf("%q came back of %q", got, text)
	}
	return nil
}

func TestLinePassesAndEnds(t *testing.T) {
	_, dial, _ := lined(t)
	c := dial()
	if err := echo(c, "hello", 30*time.Second); err != nil {
		t.Fatal(err)
	}
	c.CloseWrite()
	if rest, err := io.ReadAll(c); err != nil || len(rest) > 0 {
		t.Errorf("after an orderly end: %q, %v", rest, err)
	}
}

func TestLineIsLate(t *testing.T) {
	line, dial, _ := lined(t)
	c := dial()
	for _, w := range []Weather{{Delay: 60 * time.Millisecond}, {Delay: 60 * time.Millisecond, Jitter: 50 * time.Millisecond}, {Rate: 1000}} {
		line.Set(w)
		began := time.Now()
		if err := echo(c, string(make([]byte, 60)), 30*time.Second); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(began); took < 120*time.Millisecond { // each way
			t.Errorf("%+v: there and back in %v", w, took)
		}
	}
}

func TestLineIsSilentAndThenGoesOn(t *testing.T) {
	line, dial, accepted := lined(t)
	c := dial()
	if err := echo(c, "before", 30*time.Second); err != nil {
		t.Fatal(err)
	}
	<-accepted
	line.Set(Weather{Silent: true})
	if err := echo(c, "during", 200*time.Millisecond); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("a silent line: %v", err)
	}
	other := dial()
	select {
	case <-accepted:
		t.Error("a silent line takes new connections to the other side")
	case <-time.After(100 * time.Millisecond):
	}
	line.Set(Weather{})
	c.SetDeadline(time.Now().Add(30 * time.Second))
	got := make([]byte, 6)
	if _, err := io.ReadFull(c, got); err != nil || string(got) != "during" {
		t.Errorf("what was sent meanwhile: %q, %v", got, err)
	}
	if err := echo(other, "late", 30*time.Second); err != nil {
		t.Error(err)
	}
}

func TestLineCuts(t *testing.T) {
	line, dial, _ := lined(t)
	c, kept := dial(), dial()
	for _, c := range []net.Conn{c, kept} {
		if err := echo(c, "x", 30*time.Second); err != nil {
			t.Fatal(err)
		}
	}
	first := true
	line.Cut(func(int) bool { was := first; first = false; return was })
	if a, b := echo(c, "x", 30*time.Second), echo(kept, "x", 30*time.Second); (a == nil) == (b == nil) {
		t.Errorf("one of two is cut: %v, %v", a, b)
	}
	line.Set(Weather{Refuse: true})
	refused, err := net.Dial("tcp", kept.RemoteAddr().String()) // the reset may come before it returns
	if err == nil {
		defer refused.Close()
		err = echo(refused, "x", 30*time.Second)
	}
	if err == nil {
		t.Error("a connection is let through that should be refused")
	}
}

// A far end must hear nothing: neither bytes nor an end.
func TestLineHalves(t *testing.T) {
	line, dial, accepted := lined(t)
	c := dial()
	if err := echo(c, "x", 30*time.Second); err != nil {
		t.Fatal(err)
	}
	far := <-accepted
	line.Halve()
	if err := echo(c, "x", 30*time.Second); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("the near end: %v", err)
	}
	time.Sleep(100 * time.Millisecond) // in which an end would arrive
	if _, err := far.Write([]byte("anybody?")); err != nil {
		t.Errorf("the far end has been told: %v", err)
	}
	if err := echo(dial(), "x", 30*time.Second); err != nil {
		t.Errorf("a new connection: %v", err)
	}
}
