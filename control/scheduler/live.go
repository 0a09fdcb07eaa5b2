package scheduler

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/remotegpu/remotegpu/control/pg"
)

// live is the fleet in memory, kept up to date by notifications, so that a
// decision need not read it all. It may lag behind; that costs another try and
// nothing else, for a host is looked at again under its lock. What a decision
// takes is booked at once, so that those who decide in the same moment do not
// all run for one host; the next look at the host in the database is the truth.
type live struct {
	stale chan struct{} // of one: something has changed

	mu     sync.Mutex // guards what follows
	fleet  *Fleet     // nil: not followed, read the database
	dirty  map[string]bool
	all    bool                 // everything is dirty
	booked map[string]time.Time // hosts, since when
}

// changed notes that a host, or with an empty id anything, is not as it was.
func (l *live) changed(host string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	defer poke(l.stale)
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
	l.fleet, l.booked = fleet, map[string]time.Time{}
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
	delete(l.booked, h.ID)
	return true
}

// book notes what d takes of the followed fleet. It needs mu.
func (l *live) book(r Request, d Decision) {
	l.fleet.Take(r, d)
	l.booked[d.Host] = time.Now()
}

// lapse looks again at hosts with which nothing has happened for so long after a
// decision: its transaction has failed.
func (l *live) lapse(after time.Duration) {
	l.mu.Lock()
	var late []string
	for host, since := range l.booked {
		if time.Since(since) > after {
			late = append(late, host)
			delete(l.booked, host)
		}
	}
	l.mu.Unlock()
	for _, host := range late {
		l.changed(host)
	}
}

// drop ends following.
func (l *live) drop() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.fleet = nil
}

// with calls fn with the fleet as it is known, or with one read from db when
// nobody follows it. Others wait while fn has one that is followed: it must not
// touch the database.
func (l *live) with(ctx context.Context, db pg.DB, fn func(f *Fleet, followed bool)) error {
	l.mu.Lock()
	if l.fleet != nil {
		defer l.mu.Unlock()
		fn(l.fleet, true)
		return nil
	}
	l.mu.Unlock()
	hosts, err := readHosts(ctx, db, "")
	if err == nil {
		fn(NewFleet(hosts), false)
	}
	return err
}

// copied returns a fleet of one's own.
func (l *live) copied(ctx context.Context, db pg.DB) (f *Fleet, err error) {
	err = l.with(ctx, db, func(known *Fleet, _ bool) {
		hosts := make([]Host, len(known.nodes))
		for i := range known.nodes {
			hosts[i] = known.nodes[i].host
			hosts[i].GPUs = slices.Clone(hosts[i].GPUs)
		}
		f = NewFleet(hosts)
	})
	return f, err
}
