package scheduler

import (
	"context"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/remotegpu/remotegpu/control/pg"
)

// live is the fleet in memory, kept up to date by notifications, so that a
// decision need not read it all. It may lag behind; that costs another try and
// nothing else, for a host is looked at again under its lock. What a decision
// takes is booked at once, so that those who decide in the same moment do not
// all run for one host; it stays booked until a look at the host in the database
// that began after its transaction was heard of.
type live struct {
	stale chan struct{} // of one: something has changed

	mu     sync.Mutex // guards what follows
	fleet  *Fleet     // nil: not followed, read the database
	dirty  map[string]bool
	all    bool                 // everything is dirty
	booked map[string][]booking // by host
	places map[string]string    // by workload: the host that is booked for it
}

// booking is what a decision takes of a host.
type booking struct {
	r     Request
	d     Decision
	since time.Time
	known time.Time // when its transaction was heard of; zero: not yet
}

// committed notes that the transaction that placed a workload on a host has ended
// well, and that the host is not as it was.
func (l *live) committed(host, workload string) {
	l.mu.Lock()
	for i := range l.booked[host] {
		if b := &l.booked[host][i]; b.r.Workload == workload {
			b.known = time.Now()
		}
	}
	l.mu.Unlock()
	l.changed(host)
}

// changed notes that a host, or with an empty id anything, is not as it was.
func (l *live) changed(host string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.note(host)
}

// note needs mu.
func (l *live) note(host string) {
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
	if all || len(dirty) > 1000 {
		return l.reload(ctx, pool)
	}
	if len(dirty) == 0 {
		return nil
	}
	start := time.Now()
	hosts, err := readHosts(ctx, pool, slices.Collect(maps.Keys(dirty)))
	if err != nil {
		l.changed("")
		return err
	}
	l.update(hosts, dirty, start)
	return nil
}

func (l *live) reload(ctx context.Context, pool *pg.Pool) error {
	start := time.Now()
	hosts, err := readHosts(ctx, pool, nil)
	if err != nil {
		l.changed("")
		return err
	}
	fleet := NewFleet(hosts)
	l.mu.Lock()
	defer l.mu.Unlock()
	before := l.booked
	l.fleet, l.booked, l.places = fleet, map[string][]booking{}, map[string]string{}
	for host, all := range before {
		l.rebook(host, all, start)
	}
	return nil
}

// update replaces what is known of the hosts in dirty by what was read since start;
// those that are not among hosts are gone.
func (l *live) update(hosts []Host, dirty map[string]bool, start time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.fleet == nil { // somebody has stopped following
		return
	}
	if l.fleet.has(hosts) && len(hosts) == len(dirty) {
		for _, h := range hosts {
			l.fleet.Put(h)
		}
	} else { // one came or went: the order by name is another
		l.fleet = l.fleet.with(hosts, dirty)
	}
	for host := range dirty {
		l.rebook(host, l.booked[host], start)
	}
}

// rebook takes again of a host that was read since start what the reader may not
// have seen. It needs mu.
func (l *live) rebook(host string, all []booking, start time.Time) {
	i, known := l.fleet.byID[host]
	var left []booking
	for _, b := range all {
		if !known || !b.known.IsZero() && b.known.Before(start) || l.fleet.nodes[i].host.has(b.d.GPUs) {
			delete(l.places, b.r.Workload)
			continue
		}
		l.fleet.Take(b.r, b.d)
		l.places[b.r.Workload] = host
		left = append(left, b)
	}
	delete(l.booked, host)
	if len(left) > 0 {
		l.booked[host] = left
	}
}

// has reports whether GPUs, of which there are some, are all taken.
func (h *Host) has(gpus []string) bool {
	n := 0
	for i := range h.GPUs {
		if h.GPUs[i].Taken && slices.Contains(gpus, h.GPUs[i].UUID) {
			n++
		}
	}
	return n > 0 && n == len(gpus)
}

// book notes what d takes of the followed fleet, and takes it if that is not done
// yet. It needs mu.
func (l *live) book(r Request, d Decision, take bool) {
	if take {
		l.fleet.Take(r, d)
	}
	l.booked[d.Host] = append(l.booked[d.Host], booking{r: r, d: d, since: time.Now()})
	l.places[r.Workload] = d.Host
}

// unbook gives back what was booked for a workload, as its transaction came to
// nothing. It needs mu.
func (l *live) unbook(workload string) {
	host, booked := l.places[workload]
	if !booked {
		return
	}
	l.booked[host] = slices.DeleteFunc(l.booked[host], func(b booking) bool {
		mine := b.r.Workload == workload
		if mine && l.fleet != nil {
			l.fleet.Give(b.r, b.d)
		}
		return mine
	})
	delete(l.places, workload)
	l.note(host) // somebody else may have got it
}

// lapse looks again at hosts of whose transaction nothing was heard for so long
// after the decision: it has failed.
func (l *live) lapse(after time.Duration) {
	l.mu.Lock()
	var late []string
	for host, all := range l.booked {
		left := slices.DeleteFunc(all, func(b booking) bool {
			old := time.Since(b.since) > after
			if old {
				delete(l.places, b.r.Workload)
			}
			return old
		})
		if l.booked[host] = left; len(left) == 0 {
			delete(l.booked, host)
		}
		if len(left) < len(all) {
			late = append(late, host)
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
	hosts, err := readHosts(ctx, db, nil)
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
