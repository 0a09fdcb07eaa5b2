package resume

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"time"

	"github.com/remotegpu/remotegpu/protocol"
)

// Attempt is what the other end must be told with the request for a transport.
type Attempt struct {
	Received uint64 // bytes that we have
	Resume   bool   // the pipe exists: nothing new may be made in its place
}

// State is a change that a person may want to see.
type State struct {
	Connected bool
	Since     time.Time // of the interruption that has begun or ended
	Err       error     // why it began
}

// DialConfig is what the dialling end needs.
type DialConfig struct {
	Config
	// Dial opens a transport. An error that is Final, or *Refused by the other
	// end, ends the pipe; one with a RetryAfter method says when to try again.
	Dial   func(ctx context.Context, a Attempt) (io.ReadWriteCloser, error)
	Notify func(State) // nil: nobody wants to know
}

const (
	retryMin   = 250 * time.Millisecond
	retryMost  = 4 * time.Second
	dialLimit  = 6 * time.Second // for one try at first, later more
	dialMost   = 20 * time.Second
	firstLimit = 30 * time.Second // for the very first transport
	firstTries = 3
)

// Client is the dialling end of a pipe.
type Client struct {
	*Conn
	cfg  DialConfig
	news chan struct{} // of one: a link was lost or is suspect
	poke chan struct{} // of one
}

// Dial makes the pipe over a first transport, and finds new ones when they are
// needed, until the pipe ends. A first one that cannot be had is an error at once;
// one that is lost before the other end has said a word gets a few more tries.
func Dial(ctx context.Context, cfg DialConfig) (*Client, error) {
	d := &Client{Conn: newConn(cfg.Config), cfg: cfg, news: make(chan struct{}, 1), poke: make(chan struct{}, 1)}
	d.onLink = func() { signal(d.news) }
	l, err := d.first(ctx)
	if err != nil {
		return nil, err
	}
	if err := d.start(l); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	go func() {
		<-d.done
		cancel()
	}()
	go d.run(ctx)
	return d, nil
}

func (d *Client) first(ctx context.Context) (*link, error) {
	ctx, cancel := context.WithTimeout(ctx, firstLimit)
	defer cancel()
	for try := 1; ; try++ {
		l, err := d.open(ctx, Attempt{}, firstLimit)
		if !errors.Is(err, ErrLost) || try == firstTries {
			return l, err
		}
		select {
		case <-time.After(retryMin):
		case <-ctx.Done():
			return nil, err
		}
	}
}

// Poke says that the network may have changed: the transport has a moment to
// answer or gets a rival, and a wait for the next try ends.
func (d *Client) Poke() {
	signal(d.poke)
	d.mu.Lock()
	defer d.mu.Unlock()
	if l := d.link; l != nil {
		l.patience = pokePatience
		l.ask()
		time.AfterFunc(2*pokePatience, func() { // the ping may not leave at once
			d.mu.Lock()
			defer d.mu.Unlock()
			if d.link == l && d.err == nil {
				l.judge()
			}
		})
	}
}

func signal(ch chan struct{}) {
	select {
	case ch <- struct{}{}:
	default:
	}
}

// open dials one transport and reads the other end's hello.
func (d *Client) open(ctx context.Context, a Attempt, limit time.Duration) (*link, error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	t, err := d.cfg.Dial(ctx, a)
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { t.Close() })
	l := newLink(d.Conn, t)
	l.helloSaid = true
	if l.sent, err = l.readHello(); !stop() && err == nil {
		err = ctx.Err()
	}
	if err != nil {
		t.Close()
		return nil, err
	}
	return l, nil
}

// readHello reads what the answering end says first.
func (l *link) readHello() (uint64, error) {
	kind, payload, err := l.in.Next()
	switch {
	case err != nil:
		return 0, fmt.Errorf("%w: %w", ErrLost, err)
	case byte(kind) == frameRefuse:
		return 0, &Refused{string(payload[:min(len(payload), maxText)])}
	case kind == protocol.FrameExit:
		return 0, Final(ErrOld)
	case byte(kind) != frameHello:
		return 0, Final(fmt.Errorf("the other end begins with a frame of type %#x", byte(kind)))
	}
	n, _, err := number(payload)
	return n, err
}

// start makes l the link and lets it run.
func (d *Client) start(l *link) error {
	old, err := d.use(l)
	if err != nil {
		l.t.Close()
		return Final(err)
	}
	if old != nil {
		old.drop(errReplaced)
	}
	go l.writeFrames()
	go func() { l.drop(l.readFrames()) }()
	time.AfterFunc(lookEvery, l.look)
	return nil
}

// run dials anew whenever the link is lost or does not answer.
func (d *Client) run(ctx context.Context) {
	for ctx.Err() == nil {
		select {
		case <-ctx.Done():
			return
		case <-d.news:
		}
		if since, err, bad := d.trouble(); bad {
			d.notify(State{Since: since, Err: err})
			if d.reconnect(ctx, since, err) {
				d.notify(State{Connected: true, Since: since})
			}
		}
	}
}

// trouble says since when the link is lost or silent, and why.
func (d *Client) trouble() (since time.Time, err error, bad bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	switch l := d.link; {
	case d.err != nil:
		return since, nil, false
	case l == nil:
		return d.lostAt, d.lastErr, true
	case l.suspect:
		return l.asked, errors.New("the connection does not answer"), true
	}
	return since, nil, false
}

// reconnect tries until there is a link that answers, the pipe has ended, or
// the time is over. It reports whether there is one.
func (d *Client) reconnect(ctx context.Context, since time.Time, err error) bool {
	patience := d.patience()
	limit := dialLimit
	for try := 0; ; try++ {
		if !d.pause(ctx, delay(try, err)) {
			return false
		}
		if _, _, bad := d.trouble(); !bad {
			return ctx.Err() == nil // the old one has answered after all
		}
		if time.Since(since) > d.Conn.cfg.Keep {
			d.end(fmt.Errorf("the server could not be reached for %v, so the session has been given up: %w", d.Conn.cfg.Keep, err))
			return false
		}
		var l *link
		l, err = d.open(ctx, Attempt{Received: d.has(), Resume: true}, limit)
		if err == nil {
			l.patience = patience
			err = d.start(l)
		}
		switch {
		case err == nil:
			return true
		case isFinal(err):
			d.end(err)
			return false
		}
		limit = min(limit*3/2, dialMost)
	}
}

// patience is for how long the next link may be silent: longer than the last,
// if that was only slow.
func (d *Client) patience() time.Duration {
	d.mu.Lock()
	defer d.mu.Unlock()
	if l := d.link; l != nil && l.suspect {
		return min(2*l.patience, suspectMost)
	}
	return suspectAfter
}

func (d *Client) has() uint64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.received
}

// delay is none before the first try, and then full jitter; a server that has
// said when to come back knows better.
func delay(try int, err error) time.Duration {
	var later interface{ RetryAfter() time.Duration }
	if errors.As(err, &later) {
		return min(later.RetryAfter(), 2*retryMost)
	}
	if try == 0 {
		return 0
	}
	return rand.N(min(retryMin<<min(try, 10), retryMost))
}

// pause waits, and reports whether to go on.
func (d *Client) pause(ctx context.Context, wait time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-d.poke:
	case <-time.After(wait):
	}
	return true
}

func (d *Client) notify(s State) {
	if d.cfg.Notify != nil {
		d.cfg.Notify(s)
	}
}
