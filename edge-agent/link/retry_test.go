package link

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"testing"
	"testing/synctest"
	"time"
)

// outage asks for delays for as long as given and returns the longest.
func outage(r *retry, lasts time.Duration) time.Duration {
	var longest time.Duration
	for end := time.Now().Add(lasts); time.Now().Before(end); {
		d := r.next(false)
		longest = max(longest, d)
		time.Sleep(max(d, time.Millisecond))
	}
	return longest
}

const spread = 40 * time.Second

func TestRetry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var r retry
		if d := r.next(false); d != 0 {
			t.Errorf("first try after %s", d)
		}
		if d := outage(&r, earlyFor-earlyLimit); d > earlyLimit {
			t.Errorf("waits %s in the first minutes", d)
		}
		if d := outage(&r, time.Hour); d <= earlyLimit || d > lastLimit {
			t.Errorf("waits at most %s in a long outage", d)
		}
		r.up()
		time.Sleep(stableAfter + time.Second)
		r.down()
		if d := r.next(false); d > firstLimit {
			t.Errorf("waits %s after a connection that worked", d)
		}
		r.up()
		outage(&r, time.Minute)
		r.leave()
		if d := r.next(false); d < 300*time.Millisecond || d > 3*time.Second {
			t.Errorf("waits %s after a server that stops", d)
		}
		if d := r.next(false); d > firstLimit {
			t.Errorf("waits %s where the next one is not there yet", d)
		}
		r.up()
		r.down() // at once: no reason to hurry
		r.reject(true)
		if d := outage(&r, time.Hour); d <= earlyLimit || d > refusedLimit {
			t.Errorf("waits at most %s while it is refused", d)
		}
		r.up()
		r.slow(true)
		if d := outage(&r, 10*time.Minute); d <= busyLimit || d > lastLimit {
			t.Errorf("waits at most %s for a server that is busy", d)
		}
		var longest, later time.Duration
		for range 50 {
			r = retry{}
			r.told(spread)
			for range 2 { // at the start; the first of an outage, which may be our own line
				r.next(false)
			}
			longest = max(longest, r.next(false))
			later = max(later, r.next(false))
			r = retry{}
			r.told(spread)
			for range 10 {
				if d := r.next(true); d > earlyLimit {
					t.Fatalf("somebody waits, and it comes back after %s", d)
				}
			}
		}
		if longest <= spread/2 || longest > spread {
			t.Errorf("nobody waits, and it comes back after at most %s of %s", longest, spread)
		}
		r = retry{rejected: true}
		r.told(10 * spread)
		if d := outage(&r, time.Hour); d > refusedLimit {
			t.Errorf("waits %s while it is refused", d)
		}
		r = retry{}
		r.told(10 * spread)
		outage(&r, 12*spread)
		if d := outage(&r, time.Hour); d > lastLimit {
			t.Errorf("waits %s in a long outage of a very large fleet", d)
		}
		if later <= spread/4 || later > spread/2 {
			t.Errorf("nobody waits, and after it came too early it comes back after at most %s of %s", later, spread/2)
		}
		r = retry{busy: true}
		if r.patience() <= sayWithin {
			t.Error("is in no more patience with it")
		}
	})
}

// TestTookTooLong: only a server that was found can be too busy.
func TestTookTooLong(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0") // takes connections and says nothing
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	dial := func(c, handshake time.Duration) error {
		d := net.Dialer{Timeout: c}
		conn, err := d.DialContext(t.Context(), "tcp", l.Addr().String())
		if err != nil {
			return fmt.Errorf("connect: %w", err)
		}
		defer conn.Close()
		ctx, cancel := context.WithTimeout(t.Context(), handshake)
		defer cancel()
		return tls.Client(conn, &tls.Config{ServerName: "server"}).HandshakeContext(ctx)
	}
	if err := dial(time.Nanosecond, time.Minute); err == nil || tookTooLong(err) {
		t.Errorf("nobody was found, and it is taken for a busy server: %v", err)
	}
	if err := dial(time.Minute, 50*time.Millisecond); err == nil || !tookTooLong(err) {
		t.Errorf("a server that does not answer is not taken for a busy one: %v", err)
	}
}
