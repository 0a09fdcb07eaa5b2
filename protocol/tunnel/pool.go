package tunnel

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/remotegpu/remotegpu/protocol"
)

// PoolConfig is what the agent's side of the tunnel needs.
type PoolConfig struct {
	// Dial opens a WebSocket at the control plane; token is empty for a spare.
	Dial func(ctx context.Context, token string) (*Conn, error)
	// Serve writes the StreamReply and then moves bytes until the stream ends.
	// The pool closes the stream after it, cleanly.
	Serve      func(ctx context.Context, c *Conn, h protocol.StreamHeader)
	MaxStreams int // open at a time; 0: 1024
	// Spread is over how long the idle hosts of a server come back that they
	// have lost; nil: 0.
	Spread func() time.Duration
	Log    *slog.Logger
}

const (
	maxSpares     = 8
	maxAnswers    = 64 // dials under way for requests
	busyFor       = time.Minute
	lookEvery     = 10 * time.Second
	backoffMin    = 500 * time.Millisecond
	backoffMax    = 60 * time.Second
	backoffUsed   = 2 * time.Second // at most, at a host in use
	lostAfter     = 4               // failures that a lost spare counts for at least: up to 8 s
	headerTimeout = 15 * time.Second
)

// Pool is the agent's side: it keeps warm connections, one when idle and more
// while the host is in use, and dials when asked.
type Pool struct {
	cfg     PoolConfig
	answers chan struct{}
	wake    chan struct{}

	mu       sync.Mutex          // guards what follows
	ctx      context.Context     // of Run; nil before
	spares   map[*Conn]struct{}  // that wait for a header
	dialling int                 // spares to be
	tokens   map[string]struct{} // being answered
	active   int                 // streams being served
	want     int                 // spares that control asked for
	usedAt   time.Time           // last stream
	failures int                 // in a row
	retryAt  time.Time
}

// NewPool returns a pool; Run makes it work.
func NewPool(cfg PoolConfig) *Pool {
	if cfg.MaxStreams == 0 {
		cfg.MaxStreams = 1024
	}
	if cfg.Spread == nil {
		cfg.Spread = func() time.Duration { return 0 }
	}
	return &Pool{
		cfg: cfg, answers: make(chan struct{}, maxAnswers), wake: make(chan struct{}, 1),
		spares: map[*Conn]struct{}{}, tokens: map[string]struct{}{},
	}
}

// Run keeps spares until ctx ends. It returns nil.
func (p *Pool) Run(ctx context.Context) error {
	p.mu.Lock()
	p.ctx = ctx
	p.mu.Unlock()
	for ctx.Err() == nil {
		wait := time.NewTimer(p.fill(ctx))
		select {
		case <-ctx.Done():
		case <-p.wake:
		case <-wait.C:
		}
		wait.Stop()
	}
	return nil
}

// fill makes the spares that are missing, one at a time after failures, closes
// those that are too many, and returns when to look again.
func (p *Pool) fill(ctx context.Context) time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	target := p.target()
	for c := range p.spares {
		if len(p.spares) <= target {
			break
		}
		delete(p.spares, c)
		c.Close() // a header that is on its way finds it dead, and another way
	}
	if wait := time.Until(p.retryAt); wait > 0 {
		return min(wait, lookEvery)
	}
	for len(p.spares)+p.dialling < target {
		p.dialling++
		go p.spare(ctx)
		if p.failures > 0 {
			break // one try shows whether the server is back
		}
	}
	return lookEvery
}

// target needs mu.
func (p *Pool) target() int {
	if time.Since(p.usedAt) > busyFor {
		return 1
	}
	return min(maxSpares, max(2, p.want, p.active/2))
}

// spare dials a connection and waits for its header, for as long as it lives.
func (p *Pool) spare(ctx context.Context) {
	c, err := p.cfg.Dial(ctx, "")
	p.mu.Lock()
	p.dialling--
	if err == nil {
		p.spares[c] = struct{}{}
	}
	p.mu.Unlock()
	if err != nil {
		p.failed(1, "dial a spare connection", err)
		return
	}
	defer context.AfterFunc(ctx, func() { c.Close() })()
	p.kick() // after a failure, more may be missing
	since := time.Now()
	head, err := c.ReadMessage(maxHead)
	p.mu.Lock()
	_, mine := p.spares[c] // or fill has closed it
	delete(p.spares, c)
	if err == nil || time.Since(since) > deadAfter {
		p.failures = 0
	}
	p.mu.Unlock()
	switch {
	case err == nil:
		p.serve(ctx, c, head)
	case mine:
		c.Close()
		p.failed(lostAfter, "keep a spare connection", err)
	}
}

// failed sets when to try again: full jitter, so that a fleet does not come
// back in step. A spare that was lost counts for more than a dial that failed:
// all hosts lose theirs in the moment in which a server stops. At a host in use,
// which few are at a time, somebody waits for a session to go on.
func (p *Pool) failed(least int, doing string, err error) {
	var restart *Restarting
	var rejected *Rejected
	p.mu.Lock()
	p.failures++
	first := p.failures == 1
	most := min(backoffMax, backoffMin<<min(max(p.failures, least), 10))
	var spread time.Duration
	switch {
	case p.inUse():
		most = min(most, backoffUsed)
	case least == lostAfter:
		spread = p.cfg.Spread()
	}
	wait := backoffMin + rand.N(max(most, spread)-backoffMin)
	if errors.As(err, &restart) {
		wait = restart.After + rand.N(spread+1) // who restarts knows best
	}
	if errors.As(err, &rejected) && rejected.After > 0 {
		wait = rejected.After/2 + rand.N(rejected.After)
	}
	p.retryAt = time.Now().Add(wait)
	over := p.ctx == nil || p.ctx.Err() != nil
	p.mu.Unlock()
	p.kick()
	if first && !over {
		p.cfg.Log.Warn("tunnel is interrupted, trying on", "doing", doing, "err", err)
	}
}

// InUse reports whether somebody has a stream here, or had a moment ago: they
// wait for this host to come back.
func (p *Pool) InUse() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.inUse()
}

// inUse needs mu.
func (p *Pool) inUse() bool { return p.active > 0 || time.Since(p.usedAt) < busyFor }

func (p *Pool) kick() {
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// Request answers control's wish for a stream. It never blocks; what is
// expired, known or too much is dropped, and control asks again.
func (p *Pool) Request(d protocol.Dial) {
	if d.Expires != 0 && time.Now().Unix() > d.Expires {
		return
	}
	p.mu.Lock()
	ctx := p.ctx
	p.want = int(min(d.Spares, maxSpares))
	p.usedAt = time.Now()
	_, known := p.tokens[d.Token]
	if ok := ctx != nil && d.Token != "" && !known; !ok {
		p.mu.Unlock()
		p.kick()
		return
	}
	p.tokens[d.Token] = struct{}{}
	p.mu.Unlock()
	p.kick()
	select {
	case p.answers <- struct{}{}:
		go p.answer(ctx, d.Token)
	default:
		p.forget(d.Token)
		p.cfg.Log.Warn("too many requests for streams at once, one was dropped")
	}
}

func (p *Pool) forget(token string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.tokens, token)
}

func (p *Pool) answer(ctx context.Context, token string) {
	head, c, err := p.dialFor(ctx, token)
	p.forget(token)
	<-p.answers // it bounds dialling, MaxStreams what is served
	if err != nil {
		p.cfg.Log.Warn("dial a stream that was asked for", "err", err)
		return
	}
	p.serve(ctx, c, head)
}

func (p *Pool) dialFor(ctx context.Context, token string) ([]byte, *Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, headerTimeout)
	defer cancel()
	c, err := p.cfg.Dial(ctx, token)
	if err != nil {
		return nil, nil, err
	}
	stop := context.AfterFunc(ctx, func() { c.Close() })
	head, err := c.ReadMessage(maxHead)
	if !stop() && err == nil {
		err = ctx.Err()
	}
	if err != nil {
		c.Close()
		return nil, nil, err
	}
	return head, c, nil
}

// serve hands one stream over and closes it after.
func (p *Pool) serve(ctx context.Context, c *Conn, head []byte) {
	defer c.Close()
	defer context.AfterFunc(ctx, func() { c.CloseWithError(errors.New("the agent is stopping")) })()
	var h protocol.StreamHeader
	if err := protocol.Unmarshal(head, &h); err != nil {
		c.CloseWithError(err)
		return
	}
	if !p.begin() {
		text := fmt.Sprintf("This host serves %d streams already; close some and try again.", p.cfg.MaxStreams)
		err := Reply(c, protocol.StreamReply{Code: protocol.ReplyLimit, Message: text})
		if err != nil {
			c.CloseWithError(err)
		}
		return
	}
	p.cfg.Serve(ctx, c, h)
	p.end(c.broken.Load())
}

func (p *Pool) begin() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.active >= p.cfg.MaxStreams {
		return false
	}
	p.active++
	p.usedAt = time.Now()
	p.kick()
	return true
}

// end counts a stream out. What has broken it may have broken the spares too,
// and they are silent: whoever comes back must not wait until that is noticed.
func (p *Pool) end(broken bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.active--
	if broken {
		for c := range p.spares {
			delete(p.spares, c)
			c.Close()
		}
		p.kick()
	}
	p.usedAt = time.Now()
}

// Reply answers a stream's header: an empty code opens it.
func Reply(c *Conn, r protocol.StreamReply) error {
	r.Version = protocol.Version
	b, err := protocol.Marshal(r)
	if err != nil {
		return fmt.Errorf("encode stream reply: %w", err)
	}
	return c.WriteMessage(b)
}
