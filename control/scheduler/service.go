package scheduler

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/remotegpu/remotegpu/control/audit"
	"github.com/remotegpu/remotegpu/control/auth"
	"github.com/remotegpu/remotegpu/control/errs"
	"github.com/remotegpu/remotegpu/control/pg"
)

// Service places workloads in the database.
type Service struct {
	pool *pg.Pool
	log  *slog.Logger

	live live
	wake chan struct{} // of one: look through what waits

	mu    sync.Mutex // guards retry
	retry map[string]Retry
}

// Retry gives a waiting workload another try, in a transaction of its owner
// that calls Place.
type Retry func(ctx context.Context, workload string) error

// New returns the service; workloads of a kind wait in its queue once their
// module has called Retries.
func New(pool *pg.Pool, log *slog.Logger) *Service {
	return &Service{pool: pool, log: log, live: live{stale: make(chan struct{}, 1)}, wake: make(chan struct{}, 1), retry: map[string]Retry{}}
}

// Retries says how workloads whose id starts with prefix are tried again.
func (s *Service) Retries(prefix string, fn Retry) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.retry[prefix] = fn
}

// Outcomes in the history.
const (
	outcomePlaced  = "placed"
	outcomeWaiting = "waiting"
	outcomeRefused = "refused"
)

// attempts is how many hosts are tried that others fill up meanwhile.
const attempts = 16

// Place finds a host for r and allocates what it asks, in the caller's
// transaction; else r waits in the queue. A workload that has its allocation
// already keeps it. The caller has locked its workload's row.
func (s *Service) Place(ctx context.Context, tx pg.Tx, r Request) (Decision, error) {
	if d, err := held(ctx, tx, r.Workload); err != nil || d.Placed() {
		return d, err
	}
	start := time.Now()
	set, err := settings(ctx, tx)
	if err != nil {
		return Decision{}, err
	}
	asked := r
	r.Strategy = cmp.Or(r.Strategy, set.Strategy)
	d, err := s.settle(ctx, tx, r, set.last)
	if err != nil {
		return Decision{}, err
	}
	return d, record(ctx, tx, asked, d, time.Since(start))
}

// settle decides until the chosen host, looked at again under its lock, still
// has what was seen.
func (s *Service) settle(ctx context.Context, tx pg.Tx, r Request, last string) (Decision, error) {
	seen := map[string]Host{} // under their locks: nobody changes them before we are done
	for range attempts {
		d, err := s.decide(ctx, tx, r, last, seen)
		if err != nil || !d.Placed() {
			return d, err
		}
		now, err := lockHost(ctx, tx, d.Host)
		if err != nil {
			return Decision{}, err
		}
		now.Name = d.HostName // which a host that was retired meanwhile has lost
		seen[now.ID] = now
		one := Place(r, []Host{now})
		if !one.Placed() {
			s.live.changed(now.ID)
			continue
		}
		d.GPUs = one.GPUs
		if ok, err := allocate(ctx, tx, r, d); err != nil || ok {
			return d, err
		}
	}
	return Decision{}, errs.Ef(errs.Unavailable, "Hosts fill up faster than %s can be placed; try again.", r.what())
}

// decide looks at the fleet as it is known, and at hosts that were seen closer.
func (s *Service) decide(ctx context.Context, tx pg.Tx, r Request, last string, seen map[string]Host) (d Decision, err error) {
	err = s.live.with(ctx, tx, func(f *Fleet, followed bool) {
		back := f.lend(seen) // what others see comes by notification alone, in the order of commits
		f.After(last)
		d = f.Decide(r)
		if back(); followed && d.Placed() {
			s.live.book(r, d)
		}
	})
	return d, err
}

// record writes queue and history. A request that waits for the same reason as
// before is no news.
func record(ctx context.Context, tx pg.Tx, r Request, d Decision, took time.Duration) error {
	if d.Placed() {
		waited, err := dequeue(ctx, tx, r.Workload)
		if err != nil {
			return err
		}
		if err := insertPlacement(ctx, tx, r, d, outcomePlaced, waited, took); err != nil {
			return err
		}
		return pg.Notify(ctx, tx, capacityChanged, d.Host)
	}
	news, err := enqueue(ctx, tx, r, d)
	if err != nil || !news {
		return err
	}
	outcome := outcomeWaiting
	if d.Never {
		outcome = outcomeRefused
	}
	if err := insertPlacement(ctx, tx, r, d, outcome, 0, took); err != nil {
		return err
	}
	return pg.Notify(ctx, tx, capacityChanged, somebodyWaits) // what became free meanwhile is for r too
}

// Release gives back what a workload has, and takes it out of the queue. It is
// no error if there is nothing.
func Release(ctx context.Context, tx pg.Tx, workload string) error {
	if _, err := dequeue(ctx, tx, workload); err != nil {
		return err
	}
	host, err := deallocate(ctx, tx, workload)
	if err != nil || host == "" {
		return err
	}
	return pg.Notify(ctx, tx, capacityChanged, host)
}

// Strategy returns the strategy of requests that name none.
func (s *Service) Strategy(ctx context.Context, c auth.Caller) (Strategy, error) {
	if err := c.Require(auth.SchedulerManage, ""); err != nil {
		return "", err
	}
	set, err := settings(ctx, s.pool)
	return set.Strategy, err
}

// SetStrategy changes it, for all replicas and at once.
func (s *Service) SetStrategy(ctx context.Context, c auth.Caller, to Strategy) error {
	if err := c.Require(auth.SchedulerManage, ""); err != nil {
		return err
	}
	if !to.Valid() {
		names := make([]string, len(Strategies))
		for i, st := range Strategies {
			names[i] = string(st)
		}
		return errs.Ef(errs.Invalid, "%.30q is no strategy; use one of %s.", to, strings.Join(names, ", "))
	}
	return pg.InTx(ctx, s.pool, func(tx pg.Tx) error {
		before, err := setStrategy(ctx, tx, to)
		if err != nil {
			return err
		}
		return audit.Record(ctx, tx, c, auth.SchedulerManage, "scheduler", "", map[string]any{"strategy": to, "before": before})
	})
}

// History returns decisions, newest first: of one workload, or of all when it
// is empty.
func History(ctx context.Context, db pg.DB, workload string, before int64, limit int) ([]Placement, error) {
	if limit <= 0 || limit > 1000 {
		limit = 100
	}
	all, err := placements(ctx, db, workload, before, limit)
	if err != nil {
		return nil, fmt.Errorf("read placements: %w", err)
	}
	return all, nil
}
