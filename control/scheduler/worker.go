package scheduler

import (
	"cmp"
	"context"
	"maps"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/remotegpu/remotegpu/control/pg"
)

// MaxTogether is how many are placed in one transaction: hosts are locked so long.
const MaxTogether = 100

const (
	retryTick  = 30 * time.Second    // whoever waits is tried again at least so often
	reloadTick = 5 * time.Minute     // the fleet in memory is read anew, should a notification have been lost
	bookedFor  = 5 * time.Second     // what a decision takes, unless its transaction is seen to end
	keepFor    = 30 * 24 * time.Hour // history
)

// Run follows the fleet until ctx ends, and wakes Lead whenever capacity
// changes.
func (s *Service) Run(ctx context.Context) error {
	defer s.live.drop()
	heard := func(payload string) {
		host, workload, placed := strings.Cut(payload, " ")
		switch {
		case host == somebodyWaits:
			poke(s.wake)
		case placed:
			s.live.committed(host, workload)
		default:
			s.live.changed(host)
		}
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return pg.Listen(ctx, s.pool, capacityChanged, heard) })
	g.Go(func() error { return pg.Listen(ctx, s.pool, hostChanged, heard) })
	g.Go(func() error {
		s.follow(ctx)
		return nil
	})
	return g.Wait()
}

func poke(ch chan<- struct{}) {
	select {
	case ch <- struct{}{}:
	default: // it is due already
	}
}

// follow keeps the fleet in memory up to date.
func (s *Service) follow(ctx context.Context) {
	reload, lapse := time.NewTicker(reloadTick), time.NewTicker(bookedFor)
	defer reload.Stop()
	defer lapse.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.live.stale:
		case <-lapse.C:
			s.live.lapse(bookedFor)
			continue
		case <-reload.C:
			s.live.changed("")
		}
		if err := s.live.refresh(ctx, s.pool); err != nil && ctx.Err() == nil {
			s.log.Error("follow the fleet", "err", err)
		}
		poke(s.wake)
	}
}

// Lead retries what waits until ctx ends: in one replica at a time.
func (s *Service) Lead(ctx context.Context) error {
	tick := time.NewTicker(retryTick)
	defer tick.Stop()
	pruned := time.Now()
	for {
		start := time.Now()
		if err := s.Turn(ctx); err != nil && ctx.Err() == nil {
			s.log.Error("retry what waits", "err", err)
		}
		if time.Since(pruned) > time.Hour {
			pruned = time.Now()
			if err := prune(ctx, s.pool, keepFor); err != nil && ctx.Err() == nil {
				s.log.Error("prune placements", "err", err)
			}
		}
		select { // however often capacity changes: half of the time is for others
		case <-ctx.Done():
			return nil
		case <-time.After(min(time.Since(start), time.Second)):
		}
		select {
		case <-ctx.Done():
			return nil
		case <-s.wake:
		case <-tick.C:
		}
	}
}

// Turn goes once through the queue, by priority, then age. It decides on one
// look at the fleet and gives a try in the database only to what can be placed
// now, or waits for another reason than before.
func (s *Service) Turn(ctx context.Context) error {
	all, err := queue(ctx, s.pool)
	if err != nil || len(all) == 0 {
		return err
	}
	set, err := settings(ctx, s.pool)
	if err != nil {
		return err
	}
	f, err := s.live.copied(ctx, s.pool)
	if err != nil {
		return err
	}
	f.After(set.last)
	var due []string
	for _, w := range all {
		w.Strategy = cmp.Or(w.Strategy, set.Strategy)
		d := f.Decide(w.Request)
		if !d.Placed() && d.Summary == w.summary {
			continue
		}
		f.Take(w.Request, d)
		due = append(due, w.Workload)
	}
	for some := range slices.Chunk(due, MaxTogether) {
		s.again(ctx, some)
	}
	return nil
}

// again lets the owners of workloads try.
func (s *Service) again(ctx context.Context, workloads []string) {
	s.mu.Lock()
	owners := maps.Clone(s.retry)
	s.mu.Unlock()
	for prefix, retry := range owners {
		var own []string
		for _, w := range workloads {
			if strings.HasPrefix(w, prefix) {
				own = append(own, w)
			}
		}
		if len(own) == 0 {
			continue
		}
		if err := retry(ctx, own); err != nil && ctx.Err() == nil {
			s.log.Error("retry placement", "workloads", len(own), "err", err)
		}
	}
}
