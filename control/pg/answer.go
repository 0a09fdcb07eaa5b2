package pg

import (
	"context"
	"sync"
)

// Shared answers those who ask for the same at the same moment with one look at
// the database, which began after all of them had asked: what was done before
// is seen, as if each had looked. Nobody may change what others have too.
type Shared[K comparable, V any] struct {
	look func(ctx context.Context, key K) (V, error)

	mu  sync.Mutex // guards all
	all map[K]*sharing[V]
}

type sharing[V any] struct {
	group  *Group[*answer[V]]
	askers int
}

type answer[V any] struct {
	v   V
	err error
}

// sharers is how many may have one answer.
const sharers = 1000

// NewShared returns one that looks with look.
func NewShared[K comparable, V any](look func(ctx context.Context, key K) (V, error)) *Shared[K, V] {
	return &Shared[K, V]{look: look, all: map[K]*sharing[V]{}}
}

// Get returns what look gives for key.
func (s *Shared[K, V]) Get(ctx context.Context, key K) (V, error) {
	on := s.join(key)
	defer s.leave(key, on)
	var got answer[V]
	if err := on.group.Do(ctx, &got); err != nil {
		var none V
		return none, err
	}
	return got.v, got.err
}

func (s *Shared[K, V]) join(key K) *sharing[V] {
	s.mu.Lock()
	defer s.mu.Unlock()
	on := s.all[key]
	if on == nil {
		on = &sharing[V]{group: NewGroup(sharers, func(ctx context.Context, askers []*answer[V]) error {
			v, err := s.look(ctx, key)
			for _, to := range askers {
				*to = answer[V]{v, err}
			}
			return nil
		})}
		s.all[key] = on
	}
	on.askers++
	return on
}

func (s *Shared[K, V]) leave(key K, on *sharing[V]) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if on.askers--; on.askers == 0 {
		delete(s.all, key)
	}
}
