package host

import (
	"context"
	"sync"

	"github.com/remotegpu/remotegpu/control/pg"
)

// pages answers who asks for the same page at the same moment with one look at
// the database, which began after all of them had asked. Consoles ask for the
// same few pages again and again.
type pages struct {
	look func(ctx context.Context, f Filter) ([]Host, error)

	mu  sync.Mutex // guards all
	all map[Filter]*sharing
}

type sharing struct {
	group  *pg.Group[*[]Host]
	askers int
}

// list returns a page that others may have too: it must not be changed.
func (s *pages) list(ctx context.Context, f Filter) (page []Host, err error) {
	s.mu.Lock()
	if s.all == nil {
		s.all = map[Filter]*sharing{}
	}
	on := s.all[f]
	if on == nil {
		on = &sharing{group: pg.NewGroup(1000, func(ctx context.Context, askers []*[]Host) error {
			hosts, err := s.look(ctx, f)
			for _, to := range askers {
				*to = hosts
			}
			return err
		})}
		s.all[f] = on
	}
	on.askers++
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if on.askers--; on.askers == 0 {
			delete(s.all, f)
		}
	}()
	got := new([]Host)
	if err := on.group.Do(ctx, got); err != nil {
		return nil, err
	}
	return *got, nil
}
