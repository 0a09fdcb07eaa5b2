package broker

import (
	"net/netip"
	"sync"
	"time"
)

// limit bounds what addresses that nobody knows yet can do: how often they
// connect, and how many connections of theirs have not authenticated. An IPv6
// address counts as its /64, which is what one customer gets.
type limit struct {
	cfg Config
	now func() time.Time

	mu      sync.Mutex // guards what follows
	from    map[netip.Prefix]*source
	pending int
	swept   time.Time
}

type source struct {
	pending int
	tokens  float64 // connections that may come at once
	at      time.Time
}

func newLimit(cfg Config) *limit {
	return &limit{cfg: cfg, now: time.Now, from: map[netip.Prefix]*source{}}
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
