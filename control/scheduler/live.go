package scheduler

import (
	"context"
	"slices"
	"sync"

	"github.com/remotegpu/remotegpu/control/pg"
)

// live is the fleet in memory, kept up to date by notifications, so that a
// decision need not read it all. It may lag behind; that costs another try and
// nothing else, for a host is looked at again under its lock.
type live struct {
	mu    sync.Mutex // guards all
	fleet *Fleet     // nil: not followed, read the database
	dirty map[string]bool
	all   bool // everything is dirty
}

// changed notes that a host, or with an empty id anything, is not as it was.
func (l *live) changed(host string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if host == "" {
		l.all = true
		return
	}
	if l.dirty == nil {
		l.dirty = map[string]bool{}
	}
	l.dirty[host] = true
}

// refresh reads what was noted as changed.
func (l *live) refresh(ctx context.Context, pool *pg.Pool) error {
	l.mu.Lock()
	dirty, all := l.dirty, l.all || l.fleet == nil
	l.dirty, l.all = nil, false
	l.mu.Unlock()
	if all || len(dirty) > 100 {
		return l.reload(ctx, pool)
	}
	for host := range dirty {
		now, err := readHosts(ctx, pool, host)
		if err != nil {
			l.changed("")
			return err
		}
		if len(now) == 0 || !l.put(now[0]) { // it came or went: the order by name is another
			return l.reload(ctx, pool)
		}
	}
	return nil
}

func (l *live) reload(ctx context.Context, pool *pg.Pool) error {
	hosts, err := readHosts(ctx, pool, "")
	if err != nil {
		l.changed("")
		return err
	}
	fleet := NewFleet(hosts)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.fleet = fleet
	return nil
}

// put replaces what is known of a host, if it is known.
func (l *live) put(h Host) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.fleet == nil { // somebody has stopped following
		return false
	}
	if i, known := l.fleet.byID[h.ID]; !known || l.fleet.nodes[i].host.Name != h.Name {
		return false
	}
	l.fleet.Put(h)
	return true
}

// drop ends following.
func (l *live) drop() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.fleet = nil
}

// with calls fn with the fleet as it is known, or with one read from db when
// nobody follows it. Others wait meanwhile: fn must not touch the database.
func (l *live) with(ctx context.Context, db pg.DB, fn func(f *Fleet)) error {
	l.mu.Lock()
	if l.fleet != nil {
		defer l.mu.Unlock()
		fn(l.fleet)
		return nil
	}
	l.mu.Unlock()
	hosts, err := readHosts(ctx, db, "")
	if err == nil {
		fn(NewFleet(hosts))
	}
	return err
}

// copied returns a fleet of one's own.
func (l *live) copied(ctx context.Context, db pg.DB) (f *Fleet, err error) {
	err = l.with(ctx, db, func(known *Fleet) {
		hosts := make([]Host, len(known.nodes))
		for i := range known.nodes {
			hosts[i] = known.nodes[i].host
			hosts[i].GPUs = slices.Clone(hosts[i].GPUs)
		}
		f = NewFleet(hosts)
	})
	return f, err
}
