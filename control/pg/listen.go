package pg

import (
	"context"
	"crypto/rand"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
)

// Notify wakes every Listen on channel when tx commits. Payload is at most 8000
// bytes.
func Notify(ctx context.Context, db DB, channel, payload string) error {
	if _, err := db.Exec(ctx, "select pg_notify($1, $2)", channel, payload); err != nil {
		return fmt.Errorf("notify %s: %w", channel, err)
	}
	return nil
}

// NotifyAll is Notify for many payloads, or none; equal ones are sent once.
func NotifyAll(ctx context.Context, db DB, channel string, payloads []string) error {
	if len(payloads) == 0 {
		return nil
	}
	if _, err := db.Exec(ctx, "select pg_notify($1, p) from unnest($2::text[]) p", channel, payloads); err != nil {
		return fmt.Errorf("notify %s: %w", channel, err)
	}
	return nil
}

// Listen calls fn for every notification on channel until ctx ends. After every
// (re)connection it calls fn with an empty payload first, so that nothing sent
// before is missed: fn then looks for itself.
func Listen(ctx context.Context, pool *Pool, channel string, fn func(payload string)) error {
	return listen(ctx, pool, []string{channel}, func(_, payload string) { fn(payload) })
}

// ListenMany is Listen for who does the work of many at once: what comes while fn
// is at work is handed over together, each payload once. With nil anything may
// have been missed.
func ListenMany(ctx context.Context, pool *Pool, channel string, fn func(payloads []string)) error {
	g := gathered{waiting: map[string]struct{}{}, wake: make(chan struct{}, 1)}
	go func() { _ = Listen(ctx, pool, channel, g.add) }() // it returns nil, with ctx
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-g.wake:
		}
		if now, some := g.take(); some {
			fn(now)
		}
	}
}

// gathered is what has come and was not handed over yet.
type gathered struct {
	wake chan struct{} // of one: something may have come

	mu      sync.Mutex // guards what follows
	waiting map[string]struct{}
	all     bool
}

func (g *gathered) add(payload string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if payload == "" {
		g.all = true
	} else {
		g.waiting[payload] = struct{}{}
	}
	select {
	case g.wake <- struct{}{}:
	default:
	}
}

// take returns what has come, nil for anything; some is false when that is
// nothing, for what woke us may have been handed over with what came before it.
func (g *gathered) take() (payloads []string, some bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	some = g.all || len(g.waiting) > 0
	if !g.all {
		payloads = slices.Sorted(maps.Keys(g.waiting))
	}
	g.all = false
	clear(g.waiting)
	return payloads, some
}

// Feed is Listen on several channels for who keeps a copy of what is in the
// database: it can be asked to have heard everything that was committed.
type Feed struct {
	pool     *Pool
	channels []string
	own      string // a channel on which it calls itself
	fn       func(payload string)

	mu      sync.Mutex // guards what follows
	calls   int
	waiting map[string]chan struct{} // by the payload of the call
}

// NewFeed returns a feed that calls fn as Listen does, while it runs.
func NewFeed(pool *Pool, fn func(payload string), channels ...string) *Feed {
	own := "feed_" + strings.ToLower(rand.Text())
	return &Feed{pool: pool, channels: append(channels, own), own: own, fn: fn, waiting: map[string]chan struct{}{}}
}

// Run listens until ctx ends.
func (f *Feed) Run(ctx context.Context) error {
	return listen(ctx, f.pool, f.channels, func(channel, payload string) {
		if channel != f.own {
			f.fn(payload)
		}
		f.release(channel, payload)
	})
}

// Sync returns when fn has been called for all that was committed before: it
// sends a notification too, and they come in the order of the commits.
func (f *Feed) Sync(ctx context.Context) error {
	done := make(chan struct{})
	f.mu.Lock()
	f.calls++
	call := fmt.Sprint(f.calls)
	f.waiting[call] = done
	f.mu.Unlock()
	err := Notify(ctx, f.pool, f.own, call)
	if err == nil {
		select {
		case <-done:
			return nil
		case <-ctx.Done():
			err = ctx.Err()
		}
	}
	f.mu.Lock()
	delete(f.waiting, call)
	f.mu.Unlock()
	return err
}

// release lets those go on whose call was heard; after a (re)connection all, for
// fn knows that it may have missed anything.
func (f *Feed) release(channel, payload string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for call, done := range f.waiting {
		if channel == "" || channel == f.own && call == payload {
			close(done)
			delete(f.waiting, call)
		}
	}
}

// listen calls fn with channel and payload; both are empty after a (re)connection.
func listen(ctx context.Context, pool *Pool, channels []string, fn func(channel, payload string)) error {
	for ctx.Err() == nil {
		_ = listenOnce(ctx, pool, channels, fn) // a lost connection is not worth a line: the next try tells
		select {
		case <-ctx.Done():
		case <-time.After(500 * time.Millisecond):
		}
	}
	return nil
}

func listenOnce(ctx context.Context, pool *Pool, channels []string, fn func(channel, payload string)) error {
	pooled, err := pool.Acquire(ctx)
	if err != nil {
		return err
	}
	conn := pooled.Hijack() // a listening connection must not go back to others
	defer conn.Close(context.WithoutCancel(ctx))
	for _, channel := range channels {
		if _, err := conn.Exec(ctx, "listen "+pgx.Identifier{channel}.Sanitize()); err != nil {
			return err
		}
	}
	fn("", "")
	for {
		n, err := conn.WaitForNotification(ctx)
		if err != nil {
			return err
		}
		fn(n.Channel, n.Payload)
	}
}
