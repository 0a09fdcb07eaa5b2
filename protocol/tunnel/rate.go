package tunnel

import (
	"context"
	"maps"
	"strings"
	"time"

	"golang.org/x/time/rate"

	"github.com/remotegpu/remotegpu/protocol"
)

// maxRates is how many limiters are kept before those that hold nobody up are
// looked for.
const maxRates = 4096

const (
	minBurst        = 128 << 10 // bytes that pass at once where a cap is small
	piecesPerSecond = 100       // so small are the pieces of those who share a cap
	minPiece        = 1 << 10
)

// limiter returns the one of this name, which all streams share that it is
// for. It needs mu.
func (h *Hub) limiter(name string, perSecond, burst int) *rate.Limiter {
	l := h.rates[name]
	if l == nil {
		if len(h.rates) >= h.mostRates {
			h.forgetRates()
		}
		l = rate.NewLimiter(rate.Limit(perSecond), burst)
		h.rates[name] = l
	}
	return l
}

// forgetRates drops limiters that are full. One that an open stream has stays:
// the next stream would get another one, and both together twice the bytes. It
// needs mu.
func (h *Hub) forgetRates() {
	used := map[*rate.Limiter]bool{}
	for _, streams := range h.open {
		for conn := range streams {
			used[conn.caps.host], used[conn.caps.user], used[conn.caps.session] = true, true, true
		}
	}
	maps.DeleteFunc(h.rates, func(_ string, l *rate.Limiter) bool { return !used[l] && l.Tokens() >= float64(l.Burst()) })
	h.mostRates = max(maxRates, 2*len(h.rates))
}

// byteCaps bound what a stream carries, both directions together: those of its
// host and user with all their other streams, that of its session with those
// that the session went over before. Nil: no cap.
type byteCaps struct{ host, user, session *rate.Limiter }

// byteCaps returns those of a stream that is a session by itself. One that many
// share has only its host's: Pass bounds who uses it. It needs mu.
func (h *Hub) byteCaps(host, user string) (caps byteCaps) {
	caps.host = h.bytes("host "+host, h.cfg.HostRate)
	if isOwn(user) {
		caps.user, caps.session = h.bytes("user "+user, h.cfg.UserRate), newBytes(h.cfg.SessionRate)
	}
	return caps
}

// isOwn reports whether a stream is one user's.
func isOwn(user string) bool { return strings.HasPrefix(user, protocol.PrefixUser) }

// bytes needs mu.
func (h *Hub) bytes(of string, perSecond int) *rate.Limiter {
	if perSecond <= 0 {
		return nil
	}
	return h.limiter("bytes of "+of, perSecond, burstOf(perSecond))
}

func newBytes(perSecond int) *rate.Limiter {
	if perSecond <= 0 {
		return nil
	}
	return rate.NewLimiter(rate.Limit(perSecond), burstOf(perSecond))
}

func burstOf(perSecond int) int { return max(perSecond/4, minBurst) }

// Join makes a stream part of a session that goes on over several: they share
// its cap, so that coming back gives nobody more. Nothing uses the stream yet.
func (h *Hub) Join(c *Conn, session string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	c.caps.session = h.bytes("session "+session, h.cfg.SessionRate)
}

// Pass returns what waits until n bytes of a user's request may pass that goes
// by a stream which many share, or until ctx ends.
func (h *Hub) Pass(ctx context.Context, user string) func(n int) {
	request := newBytes(h.cfg.SessionRate)
	return func(n int) {
		h.mu.Lock()
		caps := byteCaps{user: h.bytes("user "+user, h.cfg.UserRate), session: request}
		h.mu.Unlock()
		caps.wait(n, ctx.Done())
	}
}

// wait lets n bytes pass: whoever carries them waits meanwhile, reads no more,
// and so slows their sender down. They pass in pieces, or a key would wait for
// all that others carry who share a cap.
func (b *byteCaps) wait(n int, closed <-chan struct{}) {
	all := [...]*rate.Limiter{b.host, b.user, b.session}
	piece := n
	for _, l := range all {
		if l != nil {
			piece = min(piece, max(int(l.Limit())/piecesPerSecond, minPiece))
		}
	}
	for ; n > 0; n -= piece {
		piece = min(piece, n)
		var longest time.Duration
		now := time.Now()
		for _, l := range all {
			if l != nil {
				longest = max(longest, l.ReserveN(now, piece).DelayFrom(now))
			}
		}
		if !pause(longest, closed) {
			return
		}
	}
}

// pause reports whether it was not cut short.
func pause(d time.Duration, closed <-chan struct{}) bool {
	if d <= 0 {
		return true
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-closed:
		return false
	}
}
