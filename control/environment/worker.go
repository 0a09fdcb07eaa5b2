package environment

import (
	"context"
	"encoding/json"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/remotegpu/remotegpu/control/dispatch"
	"github.com/remotegpu/remotegpu/control/pg"
	"github.com/remotegpu/remotegpu/control/scheduler"
	"github.com/remotegpu/remotegpu/protocol"
)

// tick is how often retired hosts are looked for without being told.
const tick = 30 * time.Second

// keepEvents is how long people can look what happened.
const keepEvents = 90 * 24 * time.Hour

// hostChanged is notified by module host; the payload is the host's id.
const hostChanged = "host_changed"

// Run wakes those who wait for events, and publishes changes, until ctx ends.
func (s *Service) Run(ctx context.Context) error { return pg.Listen(ctx, s.pool, Changed, s.heard) }

// Lead follows what happens to hosts until ctx ends: in one replica at a time.
func (s *Service) Lead(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		return pg.ListenMany(ctx, s.pool, hostChanged, func(hosts []string) { s.follow(ctx, hosts) })
	})
	g.Go(func() error { return pg.Prune(ctx, s.pool, "environment_events", keepEvents, s.log) })
	g.Go(func() error {
		for t := time.NewTicker(tick); ctx.Err() == nil; {
			select {
			case <-ctx.Done():
			case <-t.C:
				s.follow(ctx, nil)
			}
		}
		return nil
	})
	return g.Wait()
}

// heard takes a notification of Changed.
func (s *Service) heard(payload string) {
	var ch Change
	if payload == "" || json.Unmarshal([]byte(payload), &ch) != nil {
		s.watch.wakeAll()
		return
	}
	s.watch.wake(ch.ID)
	if ch.Phase != "" && s.cfg.Publish != nil {
		s.cfg.Publish(ch.Workspace, "environment/"+ch.Phase, []byte(payload))
	}
}

func (s *Service) follow(ctx context.Context, hosts []string) {
	if err := s.followHosts(ctx, hosts); err != nil && ctx.Err() == nil {
		s.log.Error("follow changes of hosts", "hosts", len(hosts), "err", err)
	}
}

// followHosts gives hosts whose life changed a new document, as draining stops
// what runs there, and explains what became of environments whose host was
// retired. With nil it looks at all hosts.
func (s *Service) followHosts(ctx context.Context, hosts []string) error {
	if err := s.drained(ctx, hosts); err != nil {
		return err
	}
	lost, err := lostHosts(ctx, s.pool, hosts)
	if err != nil {
		return err
	}
	for _, id := range lost {
		if err := s.lose(ctx, id); err != nil {
			return err
		}
	}
	return nil
}

// drained gives hosts a new document where draining has begun or ended.
func (s *Service) drained(ctx context.Context, hosts []string) error {
	return pg.InTx(ctx, s.pool, func(tx pg.Tx) error {
		changed, err := noteDrained(ctx, tx, hosts)
		if err != nil {
			return err
		}
		for _, host := range changed {
			if _, err := dispatch.Touch(ctx, tx, host); err != nil {
				return err
			}
		}
		return nil
	})
}

// lose ends what was on a retired host: the deleted are gone, the others say
// what happened.
func (s *Service) lose(ctx context.Context, host string) error {
	return pg.InTx(ctx, s.pool, func(tx pg.Tx) error {
		all, err := lockHosts(ctx, tx, []string{host})
		if err != nil {
			return err
		}
		for i := range all {
			e := &all[i]
			before := e.Phase
			if e.HostState != hostGone || !e.Placed && e.Want == wantStopped && e.Phase == protocol.PhaseFailed {
				continue
			}
			if e.Want == wantDeleted {
				err = erase(ctx, tx, e)
			} else {
				err = s.orphan(ctx, tx, e)
			}
			if err != nil {
				return err
			}
			if err := announce(ctx, tx, e, before); err != nil {
				return err
			}
		}
		return nil
	})
}

func (s *Service) orphan(ctx context.Context, tx pg.Tx, e *Environment) error {
	if err := scheduler.Release(ctx, tx, e.ID); err != nil {
		return err
	}
	e.Want, e.Phase, e.Pid, e.StartedAt, e.Address = wantStopped, protocol.PhaseFailed, 0, nil, ""
	e.Message = "its host " + e.HostName + " was retired, and its files went with it; started again, it begins anew on another host with empty volumes"
	if err := tell(ctx, tx, e, nil, protocol.SeverityWarning, "HostRetired", e.Message); err != nil {
		return err
	}
	return save(ctx, tx, e)
}

// watch lets callers wait for a change of an environment.
type watch struct {
	mu  sync.Mutex // guards all
	all map[string]map[chan struct{}]bool
}

// on returns a channel that gets something when the environment changes; stop
// must be called.
func (w *watch) on(id string) (changed <-chan struct{}, stop func()) {
	ch := make(chan struct{}, 1)
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.all == nil {
		w.all = map[string]map[chan struct{}]bool{}
	}
	if w.all[id] == nil {
		w.all[id] = map[chan struct{}]bool{}
	}
	w.all[id][ch] = true
	return ch, func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		delete(w.all[id], ch)
		if len(w.all[id]) == 0 {
			delete(w.all, id)
		}
	}
}

func (w *watch) wake(id string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for ch := range w.all[id] {
		select {
		case ch <- struct{}{}:
		default: // it has been woken
		}
	}
}

func (w *watch) wakeAll() {
	w.mu.Lock()
	ids := make([]string, 0, len(w.all))
	for id := range w.all {
		ids = append(ids, id)
	}
	w.mu.Unlock()
	for _, id := range ids {
		w.wake(id)
	}
}
