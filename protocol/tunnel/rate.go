package tunnel

import (
	"maps"
	"time"

	"golang.org/x/time/rate"
)

// maxRates is how many limiters are kept before full ones are looked for.
const maxRates = 4096

// minBurst is how many bytes pass at once where a cap is small.
const minBurst = 128 << 10

// limiter returns the one of this name, which all streams share that it is
// for. It needs mu.
func (h *Hub) limiter(name string, perSecond, burst int) *rate.Limiter {
	l := h.rates[name]
	if l == nil {
		if len(h.rates) >= maxRates {
			maps.DeleteFunc(h.rates, func(_ string, l *rate.Limiter) bool { return l.Tokens() >= float64(l.Burst()) })
		}
		l = rate.NewLimiter(rate.Limit(perSecond), burst)
		h.rates[name] = l
	}
	return l
}

// byteCaps returns what bounds the bytes of a stream. It needs mu.
func (h *Hub) byteCaps(host, user string) (caps byteCaps) {
	for _, c := range []struct {
		name      string
		perSecond int
	}{{"bytes of host " + host, h.cfg.HostRate}, {"bytes of user " + user, h.cfg.UserRate}} {
		if c.perSecond > 0 {
			caps = append(caps, h.limiter(c.name, c.perSecond, max(c.perSecond/4, minBurst)))
		}
	}
	return caps
}

// byteCaps bound what a stream and others carry, both directions together.
type byteCaps []*rate.Limiter

// wait lets n bytes pass: whoever carries them waits meanwhile, reads no more,
// and so slows their sender down.
func (b byteCaps) wait(n int, closed <-chan struct{}) {
	var longest time.Duration
	now := time.Now()
	for _, l := range b {
		for left := n; left > 0; {
			part := min(left, l.Burst())
			longest = max(longest, l.ReserveN(now, part).DelayFrom(now))
			left -= part
		}
	}
	if longest <= 0 {
		return
	}
	t := time.NewTimer(longest)
	defer t.Stop()
	select {
	case <-t.C:
	case <-closed:
	}
}
