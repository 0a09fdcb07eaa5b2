package resume

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// TestNothingIsLostOrDoubled writes both ways over cables that break, stall
// and go on late, with windows from tiny to the full one.
func TestNothingIsLostOrDoubled(t *testing.T) {
	for seed := range uint64(12) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { bothWays(t, seed) })
		})
	}
}

func bothWays(t *testing.T, seed uint64) {
	rnd := rand.New(rand.NewPCG(seed, 1))
	cfg := Config{Window: []int{1, 7, 5000, 100_000, Window}[rnd.IntN(5)], Keep: time.Hour}
	size := min(600_000, 2000*cfg.Window)
	l := newLine(t, cfg)
	var mu sync.Mutex // guards rnd
	number := func(n int) int {
		mu.Lock()
		defer mu.Unlock()
		return rnd.IntN(n)
	}
	dial := func(ctx context.Context, a Attempt) (io.ReadWriteCloser, error) {
		if number(5) == 0 {
			return nil, errors.New("no way this time")
		}
		c := &cable{cutAt: 1 + number(1+size/8), delay: time.Duration(number(2)) * time.Millisecond}
		t, err := l.lay(ctx, a, c)
		if err == nil && number(3) == 0 { // it stops without a word, and goes on when there is another
			time.AfterFunc(time.Duration(number(50))*time.Millisecond, func() {
				c.stall()
				time.AfterFunc(time.Duration(2+number(8))*time.Second, c.goOn)
			})
		}
		return t, err
	}
	client := l.client(DialConfig{Config: cfg, Dial: func(ctx context.Context, a Attempt) (io.ReadWriteCloser, error) {
		if !a.Resume {
			return l.lay(ctx, a, &cable{cutAt: 1 + number(size/8)})
		}
		return dial(ctx, a)
	}})
	up, down := random(seed, size), random(seed+100, size)
	var wg sync.WaitGroup
	wg.Go(func() { writeAll(t, client, up, number) })
	wg.Go(func() { writeAll(t, l.server, down, number) })
	wg.Go(func() { readAll(t, client, down, number) })
	wg.Go(func() { readAll(t, l.server, up, number) })
	wg.Wait()
	<-client.Delivered()
	<-l.server.Delivered()
	client.end(errClosed)   // it would go on to dial
	time.Sleep(time.Minute) // until the last cable goes on
	t.Logf("window %d, %d bytes each way, %d cables", cfg.Window, size, len(l.all()))
}

func random(seed uint64, n int) []byte {
	b := make([]byte, n)
	chacha := rand.NewChaCha8([32]byte{byte(seed)})
	_, _ = chacha.Read(b) // never fails
	return b
}

func writeAll(t *testing.T, c io.WriteCloser, p []byte, number func(int) int) {
	for len(p) > 0 {
		n := min(len(p), 1+number(1+len(p)/4))
		if got, err := c.Write(p[:n]); got != n || err != nil {
			t.Errorf("wrote %d of %d: %v", got, n, err)
			return
		}
		p = p[n:]
	}
	if err := c.(interface{ CloseWrite() error }).CloseWrite(); err != nil {
		t.Error(err)
	}
}

func readAll(t *testing.T, c io.Reader, want []byte, number func(int) int) {
	buf := make([]byte, 40_000)
	for at := 0; ; {
		n, err := c.Read(buf[:1+number(len(buf)-1)])
		if !bytes.Equal(buf[:n], want[at:min(len(want), at+n)]) {
			t.Errorf("bytes %d to %d of %d are others", at, at+n, len(want))
			return
		}
		at += n
		if err == io.EOF && at == len(want) {
			return
		}
		if err != nil {
			t.Errorf("read after %d of %d: %v", at, len(want), err)
			return
		}
	}
}

// TestSilenceGetsARival: a transport that stops without a word is replaced in
// seconds, while it is still there.
func TestSilenceGetsARival(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLine(t, Config{})
		var states []State
		c := l.client(DialConfig{Notify: func(s State) { states = append(states, s) }})
		echo(l.server)
		ask(t, c, "before")
		l.last().stall() // nothing moves in it any more
		start := time.Now()
		ask(t, c, "after")
		if took := time.Since(start); took < suspectAfter || took > suspectAfter+2*lookEvery {
			t.Errorf("answered after %v", took)
		}
		l.all()[0].goOn()
		ask(t, c, "and on")
		synctest.Wait()
		if len(states) != 2 || states[0].Connected || !states[1].Connected || states[0].Err == nil {
			t.Errorf("told %+v", states)
		}
	})
}

// TestIdleSilence: also who only listens notices, and a poke is faster.
func TestIdleSilence(t *testing.T) {
	for _, poke := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			l := newLine(t, Config{})
			c := l.client(DialConfig{})
			l.last().stall()
			start, most := time.Now(), idlePing+suspectAfter+3*lookEvery
			if poke {
				c.Poke()
				most = 2*pokePatience + batchFor
			}
			go l.server.Write([]byte("news"))
			want(t, c, "news")
			if took := time.Since(start); took > most {
				t.Errorf("poke %v: noticed after %v", poke, took)
			}
			l.all()[0].goOn()
		})
	}
}

func echo(c *Conn) {
	go func() {
		_, _ = io.Copy(c, c) // until the end
	}()
}

func ask(t *testing.T, c io.ReadWriter, text string) {
	t.Helper()
	if _, err := io.WriteString(c, text); err != nil {
		t.Fatal(err)
	}
	want(t, c, text)
}

func want(t *testing.T, r io.Reader, text string) {
	t.Helper()
	got := make([]byte, len(text))
	if _, err := io.ReadFull(r, got); err != nil || string(got) != text {
		t.Fatalf("read %q, %v, want %q", got, err, text)
	}
}

// TestAnAnswerIsOneWrite: a question and its answer are one write each, with
// what is to be acknowledged in it.
func TestAnAnswerIsOneWrite(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLine(t, Config{})
		c := l.client(DialConfig{})
		echo(l.server)
		const times = 500
		for range times {
			ask(t, c, "may I?")
		}
		synctest.Wait()
		cable := l.last()
		cable.moved.Lock()
		defer cable.moved.Unlock()
		if most := 2*times + 4; cable.writes > most { // hello, ping, pong, and a late ack
			t.Errorf("%d writes for %d questions and answers", cable.writes, times)
		}
	})
}

// BenchmarkAnswer is a question and its answer over a socket.
func BenchmarkAnswer(b *testing.B) {
	near, far := sockets(b)
	server := New(Config{})
	go server.Serve(far, 0)
	client, err := Dial(b.Context(), DialConfig{Dial: func(context.Context, Attempt) (io.ReadWriteCloser, error) { return near, nil }})
	if err != nil {
		b.Fatal(err)
	}
	defer client.Close()
	echo(server)
	question := make([]byte, 100)
	for b.Loop() {
		if _, err := client.Write(question); err != nil {
			b.Fatal(err)
		}
		if _, err := io.ReadFull(client, question); err != nil {
			b.Fatal(err)
		}
	}
}

func sockets(b *testing.B) (near, far net.Conn) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	defer l.Close()
	if near, err = net.Dial("tcp", l.Addr().String()); err != nil {
		b.Fatal(err)
	}
	if far, err = l.Accept(); err != nil {
		b.Fatal(err)
	}
	return near, far
}

// TestCutIsRepairedAtOnce: no time passes between a cut and the next byte.
func TestCutIsRepairedAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLine(t, Config{})
		c := l.client(DialConfig{})
		echo(l.server)
		start := time.Now()
		for i := range 20 {
			ask(t, c, fmt.Sprint("line ", i))
			l.last().cut()
		}
		if took := time.Since(start); took > 20*batchFor {
			t.Errorf("20 cuts took %v", took)
		}
		synctest.Wait() // for the dial after the last cut
		for i, a := range l.dials {
			if a.Resume != (i > 0) {
				t.Errorf("dial %d: %+v", i, a)
			}
		}
	})
}

// TestEndWhileAway: what was written, and the end, wait for who comes back.
func TestEndWhileAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLine(t, Config{})
		c := l.client(DialConfig{})
		l.set(func() { l.down = true })
		l.last().cut()
		synctest.Wait()
		if _, err := io.WriteString(l.server, "the last words"); err != nil {
			t.Fatal(err)
		}
		if err := l.server.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Minute)
		select {
		case <-l.server.Delivered():
			t.Error("delivered to nobody")
		default:
		}
		l.set(func() { l.down = false })
		if got, err := io.ReadAll(c); string(got) != "the last words" || err != nil {
			t.Errorf("read %q, %v", got, err)
		}
		<-l.server.Delivered()
	})
}

// TestNobodyComesBack: both ends give up, each after its own time.
func TestNobodyComesBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLine(t, Config{Keep: 2 * time.Minute})
		c := l.client(DialConfig{Config: Config{Keep: 3 * time.Minute}})
		l.set(func() { l.down = true })
		l.last().cut()
		start := time.Now()
		if _, err := l.server.Read(make([]byte, 1)); err != ErrGone || time.Since(start) != 2*time.Minute {
			t.Errorf("server: %v after %v", err, time.Since(start))
		}
		_, err := c.Read(make([]byte, 1))
		if took := time.Since(start); err == nil || !strings.Contains(err.Error(), "could not be reached for 3m") || took > 3*time.Minute+retryMost {
			t.Errorf("client: %v after %v", err, took)
		}
		synctest.Wait()
		if n := len(l.dials); n < 60 || n > 1000 {
			t.Errorf("%d tries in three minutes", n)
		}
	})
}

func TestNoFirstTransport(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLine(t, Config{})
		l.set(func() { l.refuse = "You may not." })
		var refused *Refused
		if _, err := Dial(t.Context(), DialConfig{Dial: l.dial}); !errors.As(err, &refused) || refused.Message != "You may not." {
			t.Errorf("refused: %v", err)
		}
		l.set(func() { l.down = true })
		if _, err := Dial(t.Context(), DialConfig{Dial: l.dial}); err == nil {
			t.Error("dialled over nothing")
		}
	})
}

// TestFirstTransportIsLost: an agent that dies while a session is opened is tried
// again, a few times, as the same client.
func TestFirstTransportIsLost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, lost := range []int{firstTries - 1, firstTries} {
			l, dials := newLine(t, Config{}), 0
			c, err := Dial(t.Context(), DialConfig{Dial: func(ctx context.Context, a Attempt) (io.ReadWriteCloser, error) {
				if dials++; dials > lost {
					return l.dial(ctx, a)
				}
				if a.Resume {
					t.Errorf("try %d is to go on with what never began", dials)
				}
				ours, theirs := net.Pipe()
				theirs.Close()
				return ours, nil
			}})
			if lost == firstTries {
				if !errors.Is(err, ErrLost) || dials != firstTries {
					t.Errorf("%v after %d tries", err, dials)
				}
				continue
			}
			if err != nil {
				t.Fatal(err)
			}
			echo(l.server)
			ask(t, c, "here")
			c.Close()
		}
	})
}

// TestRefusedLater: a session that is gone is said at once, and not tried for.
func TestRefusedLater(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLine(t, Config{})
		c := l.client(DialConfig{})
		l.set(func() { l.refuse = "The container was restarted." })
		l.last().cut()
		start := time.Now()
		_, err := c.Read(make([]byte, 1))
		if err == nil || err.Error() != "The container was restarted." || time.Since(start) > 0 {
			t.Errorf("%v after %v", err, time.Since(start))
		}
	})
}

// TestHangingDials: tries that hang do not stop the next ones.
func TestHangingDials(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLine(t, Config{})
		c := l.client(DialConfig{})
		echo(l.server)
		l.set(func() { l.waiting = true })
		l.last().cut()
		synctest.Wait()
		time.Sleep(time.Second)
		l.set(func() { l.waiting = false })
		start := time.Now()
		ask(t, c, "hello")
		if took := time.Since(start); took > dialLimit {
			t.Errorf("answered after %v", took)
		}
	})
}

type later struct{ time.Duration }

func (l later) Error() string             { return "come back later" }
func (l later) RetryAfter() time.Duration { return l.Duration }

// TestServerSaysWhen: a server that stops knows best when to come back.
func TestServerSaysWhen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLine(t, Config{})
		tries := 0
		c := l.client(DialConfig{Dial: func(ctx context.Context, a Attempt) (io.ReadWriteCloser, error) {
			if tries++; tries == 2 {
				return nil, later{7 * time.Second}
			}
			return l.dial(ctx, a)
		}})
		echo(l.server)
		l.last().cut()
		start := time.Now()
		ask(t, c, "x")
		if took := time.Since(start); took < 7*time.Second || took > 7*time.Second+10*batchFor {
			t.Errorf("back after %v", took)
		}
	})
}

// TestWindow: who does not read stops the writer at the window, whatever the
// transports do, and nobody keeps more.
func TestWindow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLine(t, Config{})
		c := l.client(DialConfig{})
		written := 0
		go func() {
			block := make([]byte, 50_000)
			for {
				n, err := l.server.Write(block)
				written += n
				if err != nil {
					return
				}
			}
		}()
		for range 5 {
			time.Sleep(time.Minute)
			l.last().cut()
		}
		synctest.Wait()
		if kept := len(l.server.out.buf) + len(c.in.buf); kept > 4*Window {
			t.Errorf("%d bytes of memory", kept)
		}
		if n := l.server.out.len(); n != Window {
			t.Errorf("%d bytes are kept", n)
		}
		if _, err := io.CopyN(io.Discard, c, 10*Window); err != nil {
			t.Error(err)
		}
	})
}

// TestBatching: a lone answer leaves at once, and so does each that answers
// something; a burst is gathered.
func TestBatching(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLine(t, Config{})
		c := l.client(DialConfig{})
		echo(l.server)
		start := time.Now()
		for range 100 {
			ask(t, c, "k")
		}
		if took := time.Since(start); took != 0 {
			t.Errorf("100 keystrokes took %v", took)
		}
		time.Sleep(time.Second)
		start = time.Now()
		for range 100 {
			if _, err := io.WriteString(c, "output"); err != nil {
				t.Fatal(err)
			}
			time.Sleep(10 * time.Microsecond)
		}
		want(t, c, strings.Repeat("output", 100))
		if took := time.Since(start); took > 2*batchFor {
			t.Errorf("a burst took %v", took)
		}
	})
}

func TestClosing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLine(t, Config{})
		c := l.client(DialConfig{})
		go func() {
			_, _ = io.WriteString(l.server, "bye")
			l.server.Dismiss("Somebody took the session over.")
		}()
		got, err := io.ReadAll(c)
		var closed *Closed
		if string(got) != "bye" || !errors.As(err, &closed) || closed.Message != "Somebody took the session over." {
			t.Errorf("read %q, %v", got, err)
		}
		if _, err := c.Write([]byte("x")); err == nil {
			t.Error("wrote after the end")
		}
		synctest.Wait()
		synctest.Wait()
		if n := len(l.dials); n != 1 {
			t.Errorf("%d dials", n)
		}
	})
	synctest.Test(t, func(t *testing.T) { // the client leaves for good, or only for now
		for _, leave := range []func(*Client){func(c *Client) { c.Close() }, func(c *Client) { c.Detach() }} {
			l := newLine(t, Config{Keep: time.Minute})
			c := l.client(DialConfig{})
			leave(c)
			start := time.Now()
			_, err := l.server.Read(make([]byte, 1))
			t.Log(err, time.Since(start))
			if closed := time.Since(start) < time.Second; closed != errors.As(err, new(*Closed)) {
				t.Errorf("%v after %v", err, time.Since(start))
			}
		}
	})
}

// TestLies: an end that claims what cannot be is sent away.
func TestLies(t *testing.T) {
	server := New(Config{})
	ours, theirs := net.Pipe()
	go func() {
		_ = server.Serve(theirs, 5)
		theirs.Close()
	}()
	reply, err := io.ReadAll(ours)
	if err != nil && err != io.ErrClosedPipe || len(reply) < headBytes || reply[0] != frameRefuse {
		t.Errorf("claimed to have what was never written: %q, %v", reply, err)
	}
}

// FuzzServe: whatever comes, nothing breaks, and no more than the window is kept.
func FuzzServe(f *testing.F) {
	f.Add(appendNumber(nil, frameAck, 0))
	f.Add(append(appendNumber(nil, frameData, 0)[:4], 9, 0, 0, 0, 0, 0, 0, 0, 0, 'x'))
	f.Add(appendNumber(appendHead(nil, framePing, 0), frameEOF, 0))
	f.Add(appendText(nil, frameClose, "bye"))
	f.Fuzz(func(t *testing.T, frames []byte) {
		server := New(Config{Keep: time.Minute})
		defer server.end(errClosed)
		if _, err := server.Write([]byte("abc")); err != nil {
			t.Fatal(err)
		}
		ours, theirs := net.Pipe()
		go func() {
			_, _ = ours.Write(frames)
			ours.Close()
		}()
		go func() {
			_, _ = io.Copy(io.Discard, ours)
		}()
		_ = server.Serve(theirs, 0)
		server.mu.Lock()
		defer server.mu.Unlock()
		if server.in.len() > Window || server.taken() > server.received || server.acked > server.written() {
			t.Fatalf("%d bytes kept, %d taken of %d, %d acknowledged of %d", server.in.len(), server.taken(), server.received, server.acked, server.written())
		}
	})
}
