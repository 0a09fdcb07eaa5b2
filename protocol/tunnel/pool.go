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
	Serve      func(ctx context.Context, c *Conn, h protocol.StreamHeader)
	MaxStreams int // open at a time; 0: 1024
	Log        *slog.Logger
}

const (
	maxSpares     = 8
	maxAnswers    = 64 // dials under way for requests
	busyFor       = time.Minute
	backoffMin    = 500 * time.Millisecond
	backoffMax    = 60 * time.Second
	headerTimeout = 15 * time.Second
)

// Pool is the agent's side: it keeps warm connections, one when idle and more
// while the host is in use, and dials when asked.
type Pool struct {
	cfg     PoolConfig
	answers chan struct{}
	wake    chan struct{}

	mu       sync.Mutex      // guards what follows
	ctx      context.Context // of Run; nil before
	idle     int             // spares that wait for a header, or are being dialled
	active   int             // streams being served
	want     int             // spares that control asked for
	usedAt   time.Time       // last stream
	failures int             // dials that failed in a row
	retryAt  time.Time
}

// NewPool returns a pool; Run makes it work.
func NewPool(cfg PoolConfig) *Pool {
	if cfg.MaxStreams == 0 {
		cfg.MaxStreams = 1024
	}
	return &Pool{cfg: cfg, answers: make(chan struct{}, maxAnswers), wake: make(chan struct{}, 1)}
}

// Run keeps spares until ctx ends. It returns nil.
func (p *Pool) Run(ctx context.Context) error {
	p.mu.Lock()
	p.ctx = ctx
	p.mu.Unlock()
	for ctx.Err() == nil {
		wait := p.fill(ctx)
		select {
		case <-ctx.Done():
		case <-p.wake:
		case <-time.After(wait):
		}
	}
	return nil
}

// fill starts the spares that are missing, one at a time after failures, and
// returns when to look again.
func (p *Pool) fill(ctx context.Context) time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	if wait := time.Until(p.retryAt); wait > 0 {
		return wait
	}
	for p.idle < p.target() {
		p.idle++
		go p.spare(ctx)
		if p.failures > 0 {
			break // one try shows whether the server is back
		}
	}
	return 10 * time.Second
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
	if err != nil {
		p.failed(err)
		return
	}
	stop := context.AfterFunc(ctx, func() { c.Close() })
	defer stop()
	p.mu.Lock()
	p.failures = 0
	p.mu.Unlock()
	head, err := c.ReadMessage(maxHead)
	p.mu.Lock()
	p.idle--
	p.mu.Unlock()
	p.kick()
	if err != nil {
		c.Close()
		p.cfg.Log.Debug("spare connection ended", "err", err)
		return
	}
	p.serve(ctx, c, head)
}

// failed notes a dial that failed and sets when to try again: full jitter, so
// that a fleet does not come back in step.
func (p *Pool) failed(err error) {
	p.mu.Lock()
	p.idle--
	p.failures++
	most := min(backoffMax, backoffMin<<min(p.failures, 10))
	wait := backoffMin/2 + rand.N(most)
	p.retryAt = time.Now().Add(wait)
	first := p.failures == 1
	p.mu.Unlock()
	p.kick()
	if first {
		p.cfg.Log.Warn("tunnel cannot be dialled, trying on", "err", err)
	}
}

func (p *Pool) kick() {
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// Request answers control's wish for a stream. It never blocks; what is
// expired or too much is dropped, and control asks again.
func (p *Pool) Request(d protocol.Dial) {
	p.mu.Lock()
	ctx := p.ctx
	p.want = int(min(d.Spares, maxSpares))
	p.usedAt = time.Now()
	p.mu.Unlock()
	p.kick()
	if ctx == nil || d.Token == "" {
		return
	}
	select {
	case p.answers <- struct{}{}:
	default:
		p.cfg.Log.Warn("too many requests for streams at once, one was dropped")
		return
	}
	go func() {
		defer func() { <-p.answers }()
		p.answer(ctx, d.Token)
	}()
}

func (p *Pool) answer(ctx context.Context, token string) {
	c, err := p.cfg.Dial(ctx, token)
	if err != nil {
		p.cfg.Log.Warn("dial a stream that was asked for", "err", err)
		return
	}
	guard := time.AfterFunc(headerTimeout, func() { c.Close() })
	head, err := c.ReadMessage(maxHead)
	if !guard.Stop() || err != nil {
		c.Close()
		return
	}
	go p.serve(ctx, c, head) // answers bounds dialling, MaxStreams what is served
}

// serve hands one stream over and closes it after.
func (p *Pool) serve(ctx context.Context, c *Conn, head []byte) {
	defer c.Close()
	stop := context.AfterFunc(ctx, func() { c.CloseWithError(errors.New("the agent is stopping")) })
	defer stop()
	var h protocol.StreamHeader
	if err := protocol.Unmarshal(head, &h); err != nil {
		c.CloseWithError(err)
		return
	}
	p.mu.Lock()
	full := p.active >= p.cfg.MaxStreams
	if !full {
		p.active++
		p.usedAt = time.Now()
	}
	p.mu.Unlock()
	if full {
		_ = Reply(c, protocol.ReplyLimit, fmt.Sprintf("This host serves %d streams already; close some and try again.", p.cfg.MaxStreams))
		return
	}
	p.kick()
	p.cfg.Serve(ctx, c, h)
	p.mu.Lock()
	p.active--
	p.mu.Unlock()
}

// Reply answers a stream's header: an empty code opens it.
func Reply(c *Conn, code, message string) error {
	b, err := protocol.Marshal(protocol.StreamReply{Version: protocol.Version, Code: code, Message: message})
	if err != nil {
		return err
	}
	return c.WriteMessage(b)
}
