package link

import (
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

// longest is of the delays in a minute of outage that has begun.
func longest(r *retry, inUse bool) (d time.Duration) {
	for range 30 {
		d = max(d, r.next(inUse))
	}
	return d
}

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
		r = retry{}
		r.next(true)
		r.told(spread)
		r.next(false) // the first, which is soon: it was our own line
		if d := longest(&r, false); d <= spread/2 || d > spread {
			t.Errorf("nobody waits, and it comes back after at most %s of %s", d, spread)
		}
		if d := longest(&r, true); d > earlyLimit {
			t.Errorf("somebody waits, and it comes back after up to %s", d)
		}
		r = retry{busy: true}
		if r.patience() <= sayWithin {
			t.Error("is in no more patience with it")
		}
	})
}
