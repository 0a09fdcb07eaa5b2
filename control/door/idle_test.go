package door

import (
	"errors"
	"io"
	"net"
	"os"
	"testing"
	"time"
)

// timedPair is a connection of a clock of its own, and the other end.
func timedPair(t *testing.T) (c *timed, there net.Conn) {
	t.Helper()
	raw, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer raw.Close()
	if there, err = net.Dial("tcp", raw.Addr().String()); err != nil {
		t.Fatal(err)
	}
	l := idleListener{raw, &clock{far: 100 * time.Millisecond, around: 80 * time.Millisecond}}
	here, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { here.Close(); there.Close() })
	return here.(*timed), there
}

// ends fails unless do ends by the deadline that set sets, at the earliest after so long.
func ends(t *testing.T, what string, after time.Duration, set func(time.Time) error, do func() error) {
	t.Helper()
	start := time.Now()
	if err := set(start.Add(after)); err != nil {
		t.Fatal(err)
	}
	err := do()
	if !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("%s: %v", what, err)
	}
	if took := time.Since(start); took < after || took > after+5*time.Second {
		t.Errorf("%s took %v, not %v", what, took, after)
	}
}

func TestFarDeadlines(t *testing.T) {
	t.Parallel()
	c, there := timedPair(t)
	buf := make([]byte, 1<<20)
	read := func() error { _, err := c.Read(buf); return err }
	write := func() error {
		for {
			if _, err := c.Write(buf); err != nil { // nobody reads
				return err
			}
		}
	}
	for _, step := range []struct {
		what  string
		after time.Duration
		set   func(time.Time) error
		do    func() error
	}{
		{"a far read", 300 * time.Millisecond, c.SetReadDeadline, read},
		{"a near read", 20 * time.Millisecond, c.SetReadDeadline, read},
		{"a far read after a near one", 300 * time.Millisecond, c.SetReadDeadline, read},
		{"a read that is late", 0, func(time.Time) error { return c.SetReadDeadline(time.Now().Add(-time.Hour)) }, read},
		{"a far write", 300 * time.Millisecond, c.SetWriteDeadline, write},
		{"a near write", 20 * time.Millisecond, c.SetWriteDeadline, write},
		{"a far read of both", 300 * time.Millisecond, c.SetDeadline, read},
		{"a far write of both", 300 * time.Millisecond, c.SetDeadline, write},
		{"a read whose near deadline was moved", 300 * time.Millisecond, func(far time.Time) error {
			return errors.Join(c.SetReadDeadline(time.Now().Add(50*time.Millisecond)), c.SetReadDeadline(far))
		}, read},
	} {
		ends(t, step.what, step.after, step.set, step.do)
	}

	// What was moved, or taken away, does not end a read.
	for i, later := range []time.Time{time.Now().Add(time.Hour), time.Now().Add(time.Hour), {}, {}} {
		soon := time.Now().Add([]time.Duration{150 * time.Millisecond, 50 * time.Millisecond}[i%2]) // far, near
		if err := errors.Join(c.SetReadDeadline(soon), c.SetReadDeadline(later)); err != nil {
			t.Fatal(err)
		}
		time.AfterFunc(400*time.Millisecond, func() { _, _ = there.Write([]byte("x")) })
		if n, err := c.Read(buf); n != 1 || err != nil {
			t.Errorf("read %d bytes, %v", n, err)
		}
	}
}

// TestTheClockStops: nothing runs on for connections that are closed, and one that
// comes then is looked after again.
func TestTheClockStops(t *testing.T) {
	t.Parallel()
	c, _ := timedPair(t)
	k := c.clock
	c.Close()
	c.Close() // counts once
	eventually := time.Now().Add(10 * time.Second)
	for running(k) && time.Now().Before(eventually) {
		time.Sleep(10 * time.Millisecond)
	}
	if running(k) {
		t.Error("the clock of no connection runs")
	}
	here, there := net.Pipe()
	defer there.Close()
	again := k.wrap(here)
	defer again.Close()
	ends(t, "a read of a later connection", 200*time.Millisecond, again.SetReadDeadline, func() error { _, err := io.ReadFull(again, make([]byte, 1)); return err })
}

func running(k *clock) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.running
}
