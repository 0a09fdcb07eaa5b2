package tunnel

import (
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"sync"
	"testing"
	"time"
)

// carry sends size bytes there and back, and returns how long it took.
func carry(t *testing.T, c *Conn, size int) time.Duration {
	defer c.Close()
	began := time.Now()
	go func() {
		_, _ = c.Write(make([]byte, size)) // what comes back tells
		_ = c.CloseWrite()
	}()
	if n, err := io.Copy(io.Discard, c); n != int64(size) || err != nil {
		t.Errorf("%d bytes came back, %v", n, err)
	}
	return time.Since(began)
}

func openAs(t *testing.T, w *world, user string) *Conn {
	head := header()
	head.User = user
	c, err := w.hub.Open(t.Context(), testHost, head)
	if err != nil {
		panic(err) // also beside the test's own goroutine
	}
	return c
}

func TestOpenRate(t *testing.T) {
	t.Parallel()
	w := newWorld(t, HubConfig{OpenRate: 1}, echo)
	w.run(t)
	opened, err := 0, error(nil)
	for ; err == nil && opened < 1000; opened++ { // some come back while these are opened
		var c *Conn
		if c, err = w.hub.Open(t.Context(), testHost, header()); err == nil {
			c.Close()
		}
	}
	if !errors.Is(err, ErrLimit) || opened <= 10 {
		t.Errorf("after %d streams: %v", opened, err)
	}
	other := header()
	other.User = "usr_other"
	c, err := w.hub.Open(t.Context(), testHost, other)
	if err != nil {
		t.Fatalf("somebody else: %v", err)
	}
	c.Close()
}

// TestByteCaps: a user who carries much waits, both ways and over all streams
// together; another one does not, unless the host's cap is reached.
func TestByteCaps(t *testing.T) {
	t.Parallel()
	const perSecond, size = 1 << 20, 1 << 20
	w := newWorld(t, HubConfig{UserRate: perSecond}, echo)
	w.run(t)
	const least = time.Second * (2*2*size - perSecond/4) / perSecond // two streams, both ways, less the burst
	began := time.Now()
	var all sync.WaitGroup
	for range 2 {
		all.Go(func() { carry(t, openAs(t, w, "usr_a"), size) })
	}
	if took := carry(t, openAs(t, w, "usr_b"), size/16); took > least {
		t.Errorf("somebody else's took %v", took)
	}
	all.Wait()
	if took := time.Since(began); took < least*9/10 {
		t.Errorf("%d bytes went by in %v, which is under %v", 4*size, took, least)
	}
	began = time.Now()
	carry(t, openAs(t, w, "env_a.8888"), size) // many share it: each of them is counted, and it is not
	if took := time.Since(began); took > least {
		t.Errorf("a shared stream took %v", took)
	}
	began = time.Now()
	for range 2 {
		all.Go(func() {
			pass := w.hub.Pass(t.Context(), "usr_shares")
			for range 32 {
				pass(size / 16)
			}
		})
	}
	all.Wait()
	if took := time.Since(began); took < least*9/10 {
		t.Errorf("%d shared bytes went by in %v, which is under %v", 4*size, took, least)
	}
	host := newWorld(t, HubConfig{HostRate: perSecond}, echo)
	host.run(t)
	began = time.Now()
	for _, user := range []string{"usr_a", "usr_b"} {
		all.Go(func() { carry(t, openAs(t, host, user), size) })
	}
	all.Wait()
	if took := time.Since(began); took < least*9/10 {
		t.Errorf("to the host %d bytes went by in %v, which is under %v", 4*size, took, least)
	}
}

// TestByteCapsDoNotOutliveTheStream: who waits for a cap is let go by the end.
func TestByteCapsDoNotOutliveTheStream(t *testing.T) {
	t.Parallel()
	w := newWorld(t, HubConfig{UserRate: 1}, echo)
	w.run(t)
	c := open(t, w)
	ended := make(chan error, 1)
	go func() {
		_, err := c.Write(make([]byte, 2*minBurst)) // for more than a day
		ended <- err
	}()
	select {
	case err := <-ended:
		t.Fatalf("it was not held up: %v", err)
	case <-time.After(100 * time.Millisecond):
	}
	c.Close()
	select {
	case err := <-ended:
		if !errors.Is(err, net.ErrClosed) {
			t.Error(err)
		}
	case <-time.After(10 * time.Second):
		t.Error("it waits for a stream that has ended")
	}
}

// TestSessionCap: a stream at its own cap holds up neither another one of the
// same user, nor anybody's keys.
func TestSessionCap(t *testing.T) {
	t.Parallel()
	const perSecond, size = 256 << 10, 512 << 10
	w := newWorld(t, HubConfig{SessionRate: perSecond, UserRate: 64 * perSecond, HostRate: 64 * perSecond}, echo)
	w.run(t)
	const least = time.Second * (2*size - minBurst) / perSecond // both ways, less the burst
	var bulk, typists []*Conn
	for _, user := range []string{"usr_a", "usr_a", "usr_b"} {
		bulk, typists = append(bulk, openAs(t, w, user)), append(typists, openAs(t, w, user))
	}
	var carrying, typing sync.WaitGroup
	over := make(chan struct{})
	for _, c := range bulk {
		carrying.Go(func() {
			if took := carry(t, c, size); took < least*9/10 || took > 2*least*9/10 {
				t.Errorf("%d bytes went by in %v, want %v: what others do is not counted", 2*size, took, least)
			}
		})
	}
	time.Sleep(least / 8) // their bursts are over
	for _, c := range typists {
		typing.Go(func() {
			n, p50 := keys(c, over)
			t.Logf("half of %d keys take up to %v", n, p50)
			if p50 > 125*time.Millisecond { // a piece of what others carry is worth 250 ms
				t.Errorf("half of the keys take over %v beside sessions at their caps", p50)
			}
		})
	}
	carrying.Wait()
	close(over)
	typing.Wait()
}

// keys types until over, and returns how often and the median time from a key to
// its echo.
func keys(c *Conn, over <-chan struct{}) (n int, p50 time.Duration) {
	defer c.Close()
	var took []time.Duration
	for {
		began := time.Now()
		if _, err := c.Write([]byte{'x'}); err != nil {
			panic(err)
		}
		if _, err := c.Read(make([]byte, 1)); err != nil {
			panic(err)
		}
		took = append(took, time.Since(began))
		select {
		case <-over:
			slices.Sort(took)
			return len(took), took[len(took)/2]
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// TestKeysAtASharedCap: where a host's or a user's cap is reached, a key waits for
// little of what others carry, not for all that they have read.
func TestKeysAtASharedCap(t *testing.T) {
	t.Parallel()
	const perSecond, size = 256 << 10, 256 << 10
	for name, cfg := range map[string]HubConfig{"host": {HostRate: perSecond}, "user": {UserRate: perSecond}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, cfg, echo)
			w.run(t)
			bulk := []*Conn{openAs(t, w, "usr_a"), openAs(t, w, "usr_a")}
			typist := openAs(t, w, "usr_a")
			var carrying sync.WaitGroup
			over := make(chan struct{})
			for _, c := range bulk {
				carrying.Go(func() { carry(t, c, size) })
			}
			time.AfterFunc(time.Second*2*2*size/perSecond*3/4, func() { close(over) })
			n, p50 := keys(typist, over)
			t.Logf("half of %d keys take up to %v", n, p50)
			if p50 > 200*time.Millisecond { // what two streams have read would be 500
				t.Errorf("half of the keys take over %v", p50)
			}
			carrying.Wait()
		})
	}
}

// TestSessionCapOutlivesStreams: who comes back has no more than who stays; nor
// has a request to an app, each of which is a session.
func TestSessionCapOutlivesStreams(t *testing.T) {
	t.Parallel()
	const perSecond, size, times = 1 << 20, 128 << 10, 12
	w := newWorld(t, HubConfig{SessionRate: perSecond}, echo)
	w.run(t)
	const least = time.Second * (times*2*size - perSecond/4) / perSecond
	var all sync.WaitGroup
	all.Go(func() {
		began := time.Now()
		for range times {
			c := openAs(t, w, "usr_a")
			w.hub.Join(c, "one")
			if _, err := c.Write(make([]byte, size)); err != nil {
				t.Error(err)
			}
			if _, err := io.ReadFull(c, make([]byte, size)); err != nil {
				t.Error(err)
			}
			c.Close()
		}
		if took := time.Since(began); took < least*9/10 {
			t.Errorf("over %d streams a session carried its bytes in %v, which is under %v", times, took, least)
		}
	})
	for range 2 {
		all.Go(func() {
			began, pass := time.Now(), w.hub.Pass(t.Context(), "usr_a")
			for range 2 * times {
				pass(size)
			}
			if took := time.Since(began); took < least*9/10 || took > 2*least*9/10 {
				t.Errorf("a request passed %d bytes in %v, want %v", 2*times*size, took, least)
			}
		})
	}
	all.Wait()
}

// TestCapsAreNotForgottenInUse: many others do not get a user with an open
// stream a second limiter, and with it twice the bytes.
func TestCapsAreNotForgottenInUse(t *testing.T) {
	t.Parallel()
	w := newWorld(t, HubConfig{UserRate: 1 << 20}, echo)
	w.run(t)
	first := openAs(t, w, "usr_a")
	defer first.Close()
	w.hub.mu.Lock()
	for i := range 3 * maxRates {
		w.hub.bytes(fmt.Sprint("user ", i), 1<<20)
	}
	kept := len(w.hub.rates)
	w.hub.mu.Unlock()
	if kept > maxRates {
		t.Errorf("%d limiters are kept that hold nobody up", kept)
	}
	second := openAs(t, w, "usr_a")
	defer second.Close()
	if first.caps.user != second.caps.user {
		t.Error("two streams of a user have a cap each")
	}
}
