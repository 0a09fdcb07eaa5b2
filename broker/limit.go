package broker

import (
	"net/netip"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// limit bounds what addresses that nobody knows yet can do: how often they
// connect, and how many connections of theirs have not authenticated. An IPv6
// address counts as its /64, which is what one customer gets. Of those who are
// known it bounds how often one comes anew: each time costs its will, its birth
// and what they set going.
type limit struct {
	cfg Config
	now func() time.Time

	mu      sync.Mutex // guards what follows
	from    map[netip.Prefix]*source
	pending int
	swept   time.Time
	comes   map[string]*rate.Limiter // by principal
	forgot  time.Time                // when comes was last cleaned
}

type source struct {
	pending int
	tokens  float64 // connections that may come at once
	at      time.Time
}

func newLimit(cfg Config) *limit {
	return &limit{cfg: cfg, now: time.Now, from: map[netip.Prefix]*source{}, comes: map[string]*rate.Limiter{}}
}

func network(a netip.Addr) netip.Prefix {
	bits := 32
	if a = a.Unmap(); a.Is6() {
		bits = 64
	}
	p, _ := a.Prefix(bits) // an invalid address has the zero prefix
	return p
}

// enter takes a connection in, or refuses it.
func (l *limit) enter(a netip.Addr) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := l.now()
	l.sweep(now)
	s := l.from[network(a)]
	if s == nil {
		s = &source{tokens: float64(l.cfg.ConnectBurst), at: now}
		l.from[network(a)] = s
	}
	s.tokens = min(float64(l.cfg.ConnectBurst), s.tokens+l.cfg.ConnectRate*now.Sub(s.at).Seconds())
	s.at = now
	if s.tokens < 1 || s.pending >= l.cfg.MaxPerAddress || l.pending >= l.cfg.MaxPending {
		return false
	}
	s.tokens--
	s.pending++
	l.pending++
	return true
}

// settle says that a connection has authenticated, or is gone.
func (l *limit) settle(a netip.Addr) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.pending--
	l.from[network(a)].pending--
}

// sweep forgets addresses that have all their tokens back, now and then.
func (l *limit) sweep(now time.Time) {
	full := time.Duration(float64(l.cfg.ConnectBurst) / l.cfg.ConnectRate * float64(time.Second))
	if now.Sub(l.swept) < full {
		return
	}
	l.swept = now
	for p, s := range l.from {
		if s.pending == 0 && now.Sub(s.at) > full {
			delete(l.from, p)
		}
	}
}

// again reports whether a principal may connect once more now.
func (l *limit) again(id string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := l.now()
	if now.Sub(l.forgot) > time.Minute {
		l.forgot = now
		for who, r := range l.comes {
			if r.TokensAt(now) >= float64(r.Burst()) {
				delete(l.comes, who)
			}
		}
	}
	r := l.comes[id]
	if r == nil {
		r = rate.NewLimiter(rate.Limit(l.cfg.AgainRate), l.cfg.AgainBurst)
		l.comes[id] = r
	}
	return r.AllowN(now, 1)
}

// Pace is how fast one client is read: who sends more waits for itself, by
// TCP's own back-pressure, and costs nobody else anything.
type Pace struct{ packets, bytes *rate.Limiter }

// NewPace returns the one that cfg says; the zero Config has the defaults.
func NewPace(cfg Config) Pace {
	cfg.defaults()
	return Pace{
		rate.NewLimiter(rate.Limit(cfg.PacketRate), cfg.PacketBurst),
		rate.NewLimiter(rate.Limit(cfg.ByteRate), maxBurst),
	}
}

// Allow reports whether a packet of size bytes may be worked on now, where
// nobody can wait.
func (p Pace) Allow(size int) bool {
	now := time.Now()
	return p.packets.AllowN(now, 1) && p.bytes.AllowN(now, size)
}

// wait returns when a packet of size bytes may be worked on.
func (p Pace) wait(size int) {
	now := time.Now()
	wait := p.packets.ReserveN(now, 1).DelayFrom(now)
	if size > 0 {
		wait = max(wait, p.bytes.ReserveN(now, size).DelayFrom(now))
	}
	time.Sleep(wait)
}
