package pg

import (
	"context"
	"errors"
	"sync"
	"time"
)

// groupWithin bounds one turn of a Group.
const groupWithin = 30 * time.Second

// Group does together what is asked for at the same moment, so that many share
// one transaction. Who comes alone is served at once; who comes while others are
// served waits for them, with all who come meanwhile. When it fails for several,
// each is tried alone: nobody gets the error of another.
type Group[T any] struct {
	do  func(ctx context.Context, all []T) error
	max int

	mu      sync.Mutex // guards what follows
	waiting []*asked[T]
	busy    bool
}

type asked[T any] struct {
	what T
	done chan error // of one
}

// NewGroup returns a group that does at most so many at a time with do, which
// leaves in each T what became of it alone.
func NewGroup[T any](most int, do func(ctx context.Context, all []T) error) *Group[T] {
	return &Group[T]{do: do, max: most}
}

// Do has what done, and returns when it is; or when ctx ends, and then it may be
// done nevertheless, as with any commit.
func (g *Group[T]) Do(ctx context.Context, what T) error {
	a := &asked[T]{what, make(chan error, 1)}
	g.mu.Lock()
	g.waiting = append(g.waiting, a)
	if !g.busy {
		g.busy = true
		go g.serve(context.WithoutCancel(ctx))
	}
	g.mu.Unlock()
	select {
	case err := <-a.done:
		return err
	case <-ctx.Done():
		g.withdraw(a)
		return ctx.Err()
	}
}

// serve takes turns until nobody waits.
func (g *Group[T]) serve(ctx context.Context) {
	for {
		g.mu.Lock()
		now := g.waiting[:min(g.max, len(g.waiting))]
		g.waiting = g.waiting[len(now):]
		g.busy = len(now) > 0
		g.mu.Unlock()
		if len(now) == 0 {
			return
		}
		g.turn(ctx, now)
	}
}

func (g *Group[T]) turn(ctx context.Context, now []*asked[T]) {
	err := g.try(ctx, now)
	apart := err != nil && len(now) > 1 && !IsAway(err) && !IsFull(err) && !errors.Is(err, context.DeadlineExceeded) // what ails all does not go away
	for _, a := range now {
		if apart {
			a.done <- g.try(ctx, []*asked[T]{a})
			continue
		}
		a.done <- err
	}
}

func (g *Group[T]) try(ctx context.Context, now []*asked[T]) error {
	ctx, cancel := context.WithTimeout(ctx, groupWithin)
	defer cancel()
	all := make([]T, len(now))
	for i, a := range now {
		all[i] = a.what
	}
	return g.do(ctx, all)
}

// withdraw lets nobody be served who has left the queue.
func (g *Group[T]) withdraw(a *asked[T]) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for i, w := range g.waiting {
		if w == a {
			g.waiting = append(g.waiting[:i:i], g.waiting[i+1:]...)
			return
		}
	}
}
