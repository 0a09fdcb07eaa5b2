package scheduler

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync"

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

// Retry gives waiting workloads another try, in a transaction of their owner
// that calls PlaceAll.
type Retry func(ctx context.Context, workloads []string) error

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

// attempts is how many hosts are tried that others fill up meanwhile, the first
// of them, patience, by the strategy.
const (
	attempts = 16
	patience = 2
)

// Place finds a host for r and allocates what it asks, in the caller's
// transaction; else r waits in the queue. A workload that has its allocation
// already keeps it. The caller has locked its workload's row.
func (s *Service) Place(ctx context.Context, tx pg.Tx, r Request) (Decision, error) {
	all, err := s.PlaceAll(ctx, tx, []Request{r})
	if err != nil {
		return Decision{}, err
	}
	return all[0], nil
}

// record writes queue and history of those that were settled. A request that
// waits for the same reason as before is no news, and one that is new and can
// never be served is not kept.
func record(ctx context.Context, tx pg.Tx, settled []entry) error {
	var placed, waiting []entry
	var news, queued []string
	for _, e := range settled {
		switch {
		case e.d.Placed():
			e.outcome = outcomePlaced
			placed, news = append(placed, e), append(news, e.d.Host+" "+e.r.Workload)
			if !e.r.New {
				queued = append(queued, e.r.Workload)
			}
		case !e.d.Never:
			e.outcome = outcomeWaiting
			waiting = append(waiting, e)
		case !e.r.New:
			e.outcome = outcomeRefused
			waiting = append(waiting, e)
		}
	}
	waited, err := dequeue(ctx, tx, queued)
	if err != nil {
		return err
	}
	for i := range placed {
		placed[i].waited = waited[placed[i].r.Workload]
	}
	if waiting, err = enqueue(ctx, tx, waiting); err != nil {
		return err
	}
	if len(waiting) > 0 {
		news = append(news, somebodyWaits) // what became free meanwhile is for them too
	}
	if len(news) == 0 {
		return nil
	}
	if err := insertPlacements(ctx, tx, append(placed, waiting...)); err != nil {
		return err
	}
	return pg.NotifyAll(ctx, tx, capacityChanged, news)
}

// Release gives back what a workload has, and takes it out of the queue. It is
// no error if there is nothing.
func Release(ctx context.Context, tx pg.Tx, workload string) error {
	if _, err := dequeue(ctx, tx, []string{workload}); err != nil {
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
