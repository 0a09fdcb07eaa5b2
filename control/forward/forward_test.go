package forward

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/remotegpu/remotegpu/protocol"
)

func TestParse(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]Spec{
		"8888":               {8888, protocol.Target{Network: "tcp", Address: "127.0.0.1:8888"}},
		"8080:80":            {8080, protocol.Target{Network: "tcp", Address: "127.0.0.1:80"}},
		"0:80":               {0, protocol.Target{Network: "tcp", Address: "127.0.0.1:80"}},
		"5432:db:5432":       {5432, protocol.Target{Network: "tcp", Address: "db:5432"}},
		"53:53/udp":          {53, protocol.Target{Network: "udp", Address: "127.0.0.1:53"}},
		"53:10.0.0.2:53/udp": {53, protocol.Target{Network: "udp", Address: "10.0.0.2:53"}},
		"8080:[::1]:80/tcp":  {8080, protocol.Target{Network: "tcp", Address: "[::1]:80"}},
		"9000:/run/app.sock": {9000, protocol.Target{Network: "unix", Address: "/run/app.sock"}},
	} {
		if got, err := Parse(text); err != nil || got != want {
			t.Errorf("%q: %+v, %v; want %+v", text, got, err, want)
		}
	}
	for _, text := range []string{"", "x", "-1", "65536", "8888:", ":8888", "8888:0", "8888:db:", "8888::80", "1:2:3:4", "80/sctp", "80/", "8080:::1:80", "x:/run/a", "8888:a b:1", "8888/udp/udp"} {
		if got, err := Parse(text); err == nil {
			t.Errorf("%q is read as %+v", text, got)
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, text := range []string{"8888", "5432:db:5432", "53:53/udp", "8080:[::1]:80", "9000:/run/app.sock"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		s, err := Parse(text)
		if err != nil {
			return
		}
		if again, err := Parse(s.String()); err != nil || again != s {
			t.Errorf("%q is %+v, written %q, which is %+v, %v", text, s, s, again, err)
		}
	})
}

// said gathers what a person is told.
type said struct {
	mu    sync.Mutex
	lines []string
}

func (s *said) say(line string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lines = append(s.lines, line)
}

func (s *said) all() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return strings.Join(s.lines, "\n")
}

// serve forwards one spec and returns its local address.
func serve(t *testing.T, spec string, cfg Config) string {
	t.Helper()
	s, err := Parse(spec)
	if err != nil {
		t.Fatal(err)
	}
	all, err := Listen([]Spec{s})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- all[0].Serve(ctx, cfg) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return all[0].Local()
}

// service answers every connection by fn and returns how to reach it.
func service(t *testing.T, fn func(c *net.TCPConn)) func(context.Context, protocol.Target) (Stream, error) {
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
	return func(context.Context, protocol.Target) (Stream, error) {
		c, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			return nil, err
		}
		return c.(*net.TCPConn), nil
	}
}

// TestHalfClose: a program that ends its request still gets the whole answer,
// on many connections at a time.
func TestHalfClose(t *testing.T) {
	t.Parallel()
	dial := service(t, func(c *net.TCPConn) {
		defer c.Close()
		all, err := io.ReadAll(c) // until the end of the request
		if err == nil {
			fmt.Fprintf(c, "%d bytes: %s", len(all), bytes.Repeat(all, 1000))
		}
	})
	addr := serve(t, "0:80", Config{Dial: dial, Say: log(t)})
	var wg sync.WaitGroup
	for i := range 50 {
		wg.Go(func() {
			c, err := net.Dial("tcp", addr)
			if err != nil {
				t.Error(err)
				return
			}
			defer c.Close()
			text := fmt.Sprintf("request %d;", i)
			fmt.Fprint(c, text)
			c.(*net.TCPConn).CloseWrite()
			want := fmt.Sprintf("%d bytes: %s", len(text), strings.Repeat(text, 1000))
			if got, err := io.ReadAll(c); err != nil || string(got) != want {
				t.Errorf("%d bytes, %v", len(got), err)
			}
		})
	}
	wg.Wait()
}

// TestCut: a stream that breaks is no clean end for the program, and is told.
func TestCut(t *testing.T) {
	t.Parallel()
	dial := service(t, func(c *net.TCPConn) {
		fmt.Fprint(c, "half of it")
		io.ReadFull(c, make([]byte, 1))
		c.SetLinger(0)
		c.Close()
	})
	lost := make(chan error, 1)
	addr := serve(t, "0:80", Config{Dial: dial, Say: log(t), Lost: func(err error) { lost <- err }})
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := io.ReadFull(c, make([]byte, len("half of it"))); err != nil {
		t.Fatal(err)
	}
	fmt.Fprint(c, "x")
	if n, err := c.Read(make([]byte, 1)); err == nil || errors.Is(err, io.EOF) {
		t.Errorf("the program reads %d bytes, %v, after a cut", n, err)
	}
	if err := <-lost; err == nil {
		t.Error("lost without a reason")
	}
}

func TestDialFails(t *testing.T) {
	t.Parallel()
	var s said
	addr := serve(t, "0:80", Config{Say: s.say, Dial: func(context.Context, protocol.Target) (Stream, error) {
		return nil, errors.New("nothing listens on 127.0.0.1:80")
	}})
	c, err := net.Dial("tcp", addr)
	if err == nil { // the reset may come as early as that
		defer c.Close()
		_, err = c.Read(make([]byte, 1))
	}
	if err == nil || errors.Is(err, io.EOF) {
		t.Errorf("connect and read: %v", err)
	}
	if got := s.all(); got != addr+": nothing listens on 127.0.0.1:80" {
		t.Errorf("said %q", got)
	}
}

func TestPortInUse(t *testing.T) {
	t.Parallel()
	addr := serve(t, "0:80", Config{})
	_, port, _ := net.SplitHostPort(addr)
	s, err := Parse(port + ":80")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Listen([]Spec{{Target: s.Target}, s}); err == nil || !strings.Contains(err.Error(), "choose another, like: 0:80") {
		t.Errorf("%v", err)
	}
}

// udpEnd plays the far end of a flow: it answers each datagram with its length
// and itself.
func udpEnd(c *net.TCPConn) {
	defer c.Close()
	frames := protocol.NewFrameReader(bufio.NewReader(c))
	for {
		kind, payload, err := frames.Next()
		if err != nil || kind != protocol.FrameDatagram {
			return
		}
		if protocol.WriteFrame(c, protocol.FrameDatagram, fmt.Appendf(nil, "%d:%s", len(payload), payload)) != nil {
			return
		}
	}
}

// TestUDP: each program has its own flow, borders between datagrams are kept,
// and a flow that is silent ends.
func TestUDP(t *testing.T) {
	t.Parallel()
	var open sync.WaitGroup
	dial := service(t, func(c *net.TCPConn) {
		open.Add(1)
		defer open.Done()
		udpEnd(c)
	})
	addr := serve(t, "0:53/udp", Config{Dial: dial, Say: log(t), Idle: time.Second})
	for i := range 5 {
		c, err := net.Dial("udp", addr)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(20 * time.Second))
		for _, text := range []string{"", fmt.Sprint("from ", i), strings.Repeat("x", 60000)} {
			fmt.Fprint(c, text)
			if text == "" {
				if _, err := c.Write(nil); err != nil {
					t.Fatal(err)
				}
				continue // whether an empty one arrives is the system's affair
			}
			buf := make([]byte, 1<<16)
			n, err := c.Read(buf)
			for err == nil && string(buf[:n]) == "0:" {
				n, err = c.Read(buf)
			}
			if want := fmt.Sprintf("%d:%s", len(text), text); err != nil || string(buf[:n]) != want {
				t.Fatalf("%.20q, %v; want %.20q", buf[:n], err, want)
			}
		}
	}
	ended := make(chan struct{})
	go func() { open.Wait(); close(ended) }()
	select {
	case <-ended:
	case <-time.After(20 * time.Second):
		t.Error("flows without datagrams stay open")
	}
}

func log(t *testing.T) func(string) { return func(line string) { t.Log(line) } }
