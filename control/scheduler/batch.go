package scheduler

import (
	"cmp"
	"context"
	"maps"
	"slices"
	"time"

	"github.com/remotegpu/remotegpu/control/errs"
	"github.com/remotegpu/remotegpu/control/pg"
)

// batch is what is placed in one transaction.
type batch struct {
	asked []Request
	out   []Decision      // by request
	open  []int           // requests that are not settled, in the order in which they are served
	truth map[string]Host // under their locks: nobody changes them before we are done
}

// PlaceAll does for each request what Place does, the higher priority first, and
// all in few statements. It fails as a whole.
func (s *Service) PlaceAll(ctx context.Context, tx pg.Tx, all []Request) ([]Decision, error) {
	start := time.Now()
	set, err := settings(ctx, tx)
	if err != nil {
		return nil, err
	}
	b := &batch{asked: slices.Clone(all), out: make([]Decision, len(all)), truth: map[string]Host{}}
	for i := range b.asked {
		b.asked[i].Strategy = cmp.Or(b.asked[i].Strategy, set.Strategy)
	}
	if err := b.begin(ctx, tx); err != nil {
		return nil, err
	}
	settled := slices.Clone(b.open)
	if err := s.settle(ctx, tx, b, set.last); err != nil {
		return nil, err
	}
	entries := make([]entry, len(settled))
	for k, i := range settled {
		entries[k] = entry{r: all[i], d: b.out[i], took: time.Since(start)}
	}
	return b.out, record(ctx, tx, entries)
}

// Forget takes back what was decided for workloads whose transaction has failed.
// Without it that is noticed some seconds later.
func (s *Service) Forget(workloads []string) {
	s.live.mu.Lock()
	defer s.live.mu.Unlock()
	for _, w := range workloads {
		s.live.unbook(w)
	}
}

// begin finds who has a place already and keeps it.
func (b *batch) begin(ctx context.Context, tx pg.Tx) error {
	var old []string
	for i := range b.asked {
		if !b.asked[i].New {
			old = append(old, b.asked[i].Workload)
		}
	}
	kept, err := held(ctx, tx, old)
	if err != nil {
		return err
	}
	for i := range b.asked {
		if d, has := kept[b.asked[i].Workload]; has {
			b.out[i] = d
		} else {
			b.open = append(b.open, i)
		}
	}
	slices.SortStableFunc(b.open, func(x, y int) int { return cmp.Compare(b.asked[y].Priority, b.asked[x].Priority) })
	return nil
}

// settle decides until the chosen hosts, looked at again under their locks,
// still have what was seen.
func (s *Service) settle(ctx context.Context, tx pg.Tx, b *batch, last string) error {
	for round := range attempts {
		if err := s.decide(ctx, tx, b, last); err != nil {
			return err
		}
		last = "" // from here on the fleet knows
		if err := b.lock(ctx, tx); err != nil {
			return err
		}
		var fit, lost []int
		for _, i := range b.open {
			switch d := &b.out[i]; {
			case !d.Placed():
			case b.fits(i):
				fit = append(fit, i)
			default:
				lost = append(lost, i)
			}
		}
		taken, err := allocate(ctx, tx, b.asked, b.out, fit)
		if err != nil {
			return err
		}
		for _, i := range taken {
			delete(b.truth, b.out[i].Host) // it is not what we saw
		}
		if lost = append(lost, taken...); len(lost) == 0 {
			return nil
		}
		for _, i := range lost {
			if round >= patience {
				b.asked[i].Strategy = Random // others are after the same hosts, step by step
			}
		}
		b.open = slices.DeleteFunc(b.open, func(i int) bool { return b.out[i].Placed() && !slices.Contains(lost, i) })
	}
	what := b.asked[b.open[0]].what()
	return errs.Ef(errs.Unavailable, "Hosts fill up faster than %s can be placed; try again.", what)
}

// decide looks at the fleet as it is known, and at hosts that were seen closer.
func (s *Service) decide(ctx context.Context, tx pg.Tx, b *batch, last string) error {
	return s.live.with(ctx, tx, func(f *Fleet, followed bool) {
		for _, i := range b.open {
			if followed {
				s.live.unbook(b.asked[i].Workload) // of a try before
			}
		}
		back := f.lend(b.truth) // what others see comes by notification alone, in the order of commits
		f.After(last)
		for _, i := range b.open {
			b.out[i] = f.Decide(b.asked[i])
			f.Take(b.asked[i], b.out[i])
		}
		back()
		for _, i := range b.open {
			if d := b.out[i]; followed && d.Placed() {
				_, lent := b.truth[d.Host]
				s.live.book(b.asked[i], d, lent)
			}
		}
	})
}

// lock keeps others from the chosen hosts and notes what they have, always in the
// same order.
func (b *batch) lock(ctx context.Context, tx pg.Tx) error {
	names := map[string]string{}
	for _, i := range b.open {
		if d := b.out[i]; d.Placed() {
			if _, seen := b.truth[d.Host]; !seen {
				names[d.Host] = d.HostName
			}
		}
	}
	if len(names) == 0 {
		return nil
	}
	hosts, err := lockHosts(ctx, tx, slices.Sorted(maps.Keys(names)))
	if err != nil {
		return err
	}
	for id, name := range names {
		b.truth[id] = Host{ID: id, Name: name, State: Offline} // unless it is there: it has been retired
	}
	for _, h := range hosts {
		h.Name = names[h.ID] // which the request may name
		b.truth[h.ID] = h
	}
	return nil
}

// fits takes what a request was promised of its locked host, if that is there.
func (b *batch) fits(i int) bool {
	one := NewFleet([]Host{b.truth[b.out[i].Host]})
	d := one.Place(b.asked[i])
	if !d.Placed() {
		return false
	}
	b.out[i].GPUs = d.GPUs
	one.Take(b.asked[i], d)
	b.truth[d.Host] = one.nodes[0].host
	return true
}
