package tunnel

import (
	"context"
	"maps"
	"strings"
	"time"

	"golang.org/x/time/rate"

	"github.com/remotegpu/remotegpu/protocol"
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

// byteCaps returns what bounds the bytes of a stream; one that is nobody's own
// has no user's. It needs mu.
func (h *Hub) byteCaps(host, user string) (caps byteCaps) {
	if h.cfg.HostRate > 0 {
		caps = append(caps, h.bytes("host "+host, h.cfg.HostRate))
	}
	if h.cfg.UserRate > 0 && strings.HasPrefix(user, protocol.PrefixUser) {
		caps = append(caps, h.bytes("user "+user, h.cfg.UserRate))
	}
	return caps
}

// bytes needs mu.
func (h *Hub) bytes(of string, perSecond int) *rate.Limiter {
	return h.limiter("bytes of "+of, perSecond, max(perSecond/4, minBurst))
}

// Pass waits until n bytes of a user may pass that go by a stream which many
// share, or until ctx ends.
func (h *Hub) Pass(ctx context.Context, user string, n int) {
	if h.cfg.UserRate <= 0 {
		return
	}
	h.mu.Lock()
	caps := byteCaps{h.bytes("user "+user, h.cfg.UserRate)}
	h.mu.Unlock()
	caps.wait(n, ctx.Done())
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
