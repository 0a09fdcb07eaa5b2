package account

import (
	"context"
	"net/netip"
	"strings"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"github.com/remotegpu/remotegpu/control/door"
	"github.com/remotegpu/remotegpu/control/errs"
)

// How often somebody may show what is wrong.
const (
	tryBurst = 10 // passwords for one account from one network
	tryEvery = 6 * time.Second
	netBurst = 60 // passwords for any account, and wrong tokens, from one network
	netEvery = time.Second
	slotWait = 10 * time.Second // for a password to be checked at all
	maxKnown = 10_000           // entries of each kind; the oldest ones are forgotten
	tooMany  = "Too many logins from your address; try again in a minute."
)

// guesses makes guessing slow, and keeps who guesses from locking out anybody
// else: not from elsewhere, for all limits are those of a network (an IPv6
// address counts as its /64); not from the same network, for who has been
// right there before only has limits of their own; and not by being many, for
// checking passwords has a slot that only those can take.
type guesses struct {
	mu    sync.Mutex // guards what follows
	limit map[origin]*rate.Limiter
	right map[origin]struct{} // who has logged in there, since this server runs
	lines map[netip.Prefix]*line
}

// origin is a network and who it says to be there: an account, a token's hash,
// or nobody for the network as a whole.
type origin struct {
	from netip.Prefix
	who  string
}

func newGuesses() *guesses {
	return &guesses{limit: map[origin]*rate.Limiter{}, right: map[origin]struct{}{}, lines: map[netip.Prefix]*line{}}
}

func newOrigin(remote, who string) origin {
	return origin{door.Network(remote), strings.ToLower(who)}
}

// password reports whether one more password may be tried.
func (g *guesses) password(o origin) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.of(o, tryEvery, tryBurst).Allow() {
		return false
	}
	_, right := g.right[o]
	return right || g.of(origin{from: o.from}, netEvery, netBurst).Allow()
}

// token reports whether a token may be looked up: not when too many wrong ones
// came from its network, unless this one was right there before.
func (g *guesses) token(o origin) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	_, right := g.right[o]
	return right || g.of(origin{from: o.from}, netEvery, netBurst).Tokens() >= 1
}

// wrong counts a wrong token.
func (g *guesses) wrong(o origin) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.of(origin{from: o.from}, netEvery, netBurst).Allow()
}

func (g *guesses) isRight(o origin) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	_, right := g.right[o]
	return right
}

func (g *guesses) setRight(o origin) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if len(g.right) >= maxKnown {
		for old := range g.right { // any: it costs its owner a wait at most
			delete(g.right, old)
			break
		}
	}
	g.right[o] = struct{}{}
}

// of returns a limiter; g.mu is held. Those that are full say nothing and are
// forgotten; if all of so many are in use, some attacker's are.
func (g *guesses) of(o origin, every time.Duration, burst int) *rate.Limiter {
	if len(g.limit) >= maxKnown {
		for old, l := range g.limit {
			if l.Tokens() >= float64(l.Burst()) {
				delete(g.limit, old)
			}
		}
		for old := range g.limit {
			if len(g.limit) < maxKnown*3/4 {
				break
			}
			delete(g.limit, old)
		}
	}
	l, ok := g.limit[o]
	if !ok {
		l = rate.NewLimiter(rate.Every(every), burst)
		g.limit[o] = l
	}
	return l
}

// turn waits for a turn to check a password: one of a network at a time, so that
// no network fills the queue; after a wrong one the place rests for thrice as
// long as it took, so that guesses take a quarter of it at most.
func (g *guesses) turn(ctx context.Context, o origin) (release func(right bool), err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, slotWait, errBusy)
	defer cancel()
	line := g.line(o.from)
	select {
	case line.place <- struct{}{}:
	case <-ctx.Done():
		g.leave(o.from, line)
		return nil, context.Cause(ctx)
	}
	leave := func() {
		<-line.place
		g.leave(o.from, line)
	}
	slot, err := takeSlot(ctx, g.isRight(o))
	if err != nil {
		leave()
		return nil, err
	}
	start := time.Now()
	return func(right bool) {
		leave()
		if right {
			g.setRight(o)
			<-slot
			return
		}
		time.AfterFunc(3*time.Since(start), func() { <-slot })
	}, nil
}

// line is the queue of one network.
type line struct {
	place chan struct{} // of one
	long  int           // who waits, and who is at it; guarded by guesses.mu
}

func (g *guesses) line(from netip.Prefix) *line {
	g.mu.Lock()
	defer g.mu.Unlock()
	l := g.lines[from]
	if l == nil {
		l = &line{place: make(chan struct{}, 1)}
		g.lines[from] = l
	}
	l.long++
	return l
}

func (g *guesses) leave(from netip.Prefix, l *line) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if l.long--; l.long == 0 {
		delete(g.lines, from)
	}
}

var errBusy = errs.E(errs.Unavailable, "Very many people try to log in now; try again in a minute, or use an API token.")

// takeSlot waits for a place to check a password in. There is one that only
// those get who were right before.
func takeSlot(ctx context.Context, right bool) (slot chan struct{}, err error) {
	reserved := argonReserved
	if !right {
		reserved = nil // never ready
	}
	select {
	case argonSlots <- struct{}{}:
		return argonSlots, nil
	case reserved <- struct{}{}:
		return reserved, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}
