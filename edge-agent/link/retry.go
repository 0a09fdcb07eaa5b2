package link

import (
	"math/rand/v2"
	"sync"
	"time"

	"github.com/remotegpu/remotegpu/protocol/tunnel"
)

// Delays between attempts: random below a limit that doubles from firstLimit.
// In the first minutes of an outage it stays below earlyLimit, so that a host
// is back soon after a restart of the server. In a large fleet, where all would
// come at once and none get in, that is so for hosts that somebody waits for. The
// first attempt of the others is soon too, for it may be their own line that was
// cut; the second is some time in what the server has said, and later ones in
// half of that.
const (
	firstLimit   = 500 * time.Millisecond
	earlyLimit   = 8 * time.Second
	lastLimit    = time.Minute
	earlyFor     = 2 * time.Minute
	busyLimit    = 20 * time.Second // at least, while the server does not answer in time: it has more to do than it can
	refusedLimit = 30 * time.Second // while the server does not let us in
	leastDelay   = 50 * time.Millisecond
	stableAfter  = 30 * time.Second // a connection this old counts as one that worked
)

// retry decides when to connect next. Its zero value tries at once.
type retry struct {
	mu       sync.Mutex // guards the fields below
	tried    bool
	limit    time.Duration
	began    time.Time // of the outage
	upAt     time.Time
	rejected bool
	busy     bool // the last attempt took too long
	goes     bool // the server has said that it stops
	spread   time.Duration
	spreads  bool // the attempts of this outage are spread already
}

// next is the delay before the next attempt of a host that somebody waits for,
// or nobody.
func (r *retry) next(inUse bool) time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.tried {
		r.tried, r.limit, r.began = true, firstLimit, time.Now()
		return 0
	}
	spread := r.spread
	if inUse {
		spread = 0
	}
	if r.goes {
		r.goes = false
		return tunnel.RestartAfter() + rand.N(spread+1)
	}
	limit, highest := r.limit, lastLimit
	switch {
	case r.busy:
		limit = max(limit, busyLimit)
	case r.rejected:
		highest = refusedLimit
	case time.Since(r.began) < earlyFor:
		highest = earlyLimit
	}
	r.limit = min(2*limit, highest)
	switch {
	case limit <= firstLimit, r.rejected:
	case !r.spreads:
		r.spreads, limit = true, max(limit, spread)
	default: // came too early, as all have when the outage is long
		limit = max(limit, min(spread/2, lastLimit))
	}
	return max(rand.N(limit), leastDelay)
}

func (r *retry) up() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.upAt, r.rejected, r.busy = time.Now(), false, false
}

func (r *retry) down() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if time.Since(r.upAt) > stableAfter {
		r.limit, r.began, r.spreads = firstLimit, time.Now(), false
	}
}

// leave notes that the server stops and has said so: it, or another one, is
// there soon, and the outages before this one say nothing of it.
func (r *retry) leave() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.goes, r.limit, r.began, r.spreads = true, firstLimit, time.Now(), true
}

// told notes over how long the server wants hosts to come back.
func (r *retry) told(spread time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.spread = spread
}

func (r *retry) over() time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.spread
}

// slow notes whether the last attempt took too long, as all do when a whole
// fleet comes at once: those who come again soon keep everybody out.
func (r *retry) slow(yes bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.busy = yes
}

// patience is how long an attempt may take: one that was given up was in vain
// for the server too.
func (r *retry) patience() time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.busy {
		return 3 * sayWithin
	}
	return sayWithin
}

// reject notes whether the server answered that this host may not come in.
func (r *retry) reject(yes bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.rejected = yes
}
