package host

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/remotegpu/remotegpu/control/errs"
	"github.com/remotegpu/remotegpu/control/pg"
)

// roster is the fleet as lists show it, in memory and as JSON, so that a page
// costs no look at the thousand rows that are on it. Who asks gets everything
// that was committed before: notifications tell which hosts are to be read
// again. What changes all the time, and what nobody told of, is seen within
// seconds.
type roster struct {
	pool  *pg.Pool
	log   *slog.Logger
	feed  *pg.Feed
	looks *pg.Group[struct{}] // those who ask at once share a look

	news    chan struct{} // something is to be read again
	reading sync.Mutex    // of hosts is one at a time: the newer never comes before the older
	beating atomic.Bool   // the pulses are being read

	mu     sync.RWMutex // guards what follows
	hosts  []*entry     // by name
	byID   map[string]*entry
	dirty  map[string]bool // hosts to read again; false: nobody told, and who asks does not wait for it
	all    bool            // nothing is known: read every host
	pulsed time.Time
}

// entry is a host; its JSON is replaced as a whole, since answers still have it.
type entry struct {
	name    string
	status  string
	labels  map[string]string
	text    string // what a search looks in
	version int64  // of the row
	machine []byte // JSON of Machine, to be gone on with
	pulse   []byte // that of Pulse without its beginning, and a comma
}

const (
	freshPulse = 3 * time.Second  // younger: not read again
	stalePulse = 10 * time.Second // older: not shown
	inParts    = 1000             // hosts read in one statement
	lookers    = 1000             // who may share a look
	settle     = 100 * time.Millisecond
	untold     = 100 // hosts of which nobody told, read in that time at most
	hearWithin = 10 * time.Second
)

// capacityChanged is the scheduler's channel: the id of a host, of whose GPUs
// somebody took or gave back some.
const capacityChanged = "capacity_changed"

func newRoster(pool *pg.Pool, log *slog.Logger) *roster {
	r := &roster{pool: pool, log: log, news: make(chan struct{}, 1), all: true, byID: map[string]*entry{}, dirty: map[string]bool{}}
	r.feed = pg.NewFeed(pool, r.heard, Changed, capacityChanged)
	r.looks = pg.NewGroup(lookers, func(ctx context.Context, _ []struct{}) error { return r.look(ctx) })
	return r
}

// get returns the JSON of a page.
func (r *roster) get(ctx context.Context, f Filter) ([][]byte, error) {
	if err := r.looks.Do(ctx, struct{}{}); err != nil {
		return nil, fmt.Errorf("look at the fleet: %w", err)
	}
	return r.page(f), nil
}

func (r *roster) heard(payload string) {
	host, _, _ := strings.Cut(payload, " ")
	r.mu.Lock()
	defer r.mu.Unlock()
	if host == "" {
		r.all = true
	} else {
		r.dirty[host] = true
	}
	r.wake()
}

func (r *roster) wake() {
	select {
	case r.news <- struct{}{}:
	default:
	}
}

// ahead reads what has changed before anybody asks, until ctx ends; for a tenth of
// the time, since nobody may ask at all.
func (r *roster) ahead(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-r.news:
		}
		start := time.Now()
		bounded, cancel := context.WithTimeout(ctx, time.Minute)
		if err := r.read(bounded, untold); err != nil && ctx.Err() == nil {
			r.log.Warn("read hosts ahead", "err", err) // who asks tries again
		}
		cancel()
		select {
		case <-ctx.Done():
		case <-time.After(min(stalePulse, max(settle, 9*time.Since(start)))): // what comes meanwhile is read together
		}
	}
}

// look brings the roster up to date.
func (r *roster) look(ctx context.Context) error {
	if err := r.sync(ctx); err != nil {
		return err
	}
	r.mu.RLock()
	age := time.Since(r.pulsed)
	r.mu.RUnlock()
	switch {
	case age > stalePulse:
		if err := r.readPulses(ctx); err != nil {
			return err
		}
	case age > freshPulse && r.beating.CompareAndSwap(false, true):
		go func() { // nobody waits for it
			defer r.beating.Store(false)
			ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), stalePulse)
			defer cancel()
			if err := r.readPulses(ctx); err != nil {
				r.log.Warn("read what hosts report", "err", err)
			}
		}()
	}
	return r.read(ctx, 0)
}

func (r *roster) sync(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, hearWithin)
	defer cancel()
	err := r.feed.Sync(ctx)
	if errors.Is(err, context.DeadlineExceeded) {
		return errs.E(errs.Unavailable, "The server does not hear its database right now; try again in a moment.", err)
	}
	return err
}

// readPulses notes what hosts report, and hosts that are not as they were though nobody
// said so.
func (r *roster) readPulses(ctx context.Context) error {
	start := time.Now()
	beats, err := readBeats(ctx, r.pool)
	if err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.pulsed = start
	for i := range beats {
		b := &beats[i]
		e := r.byID[b.id]
		if e == nil || e.version != b.version {
			r.dirty[b.id] = r.dirty[b.id]
			r.wake()
		}
		if e != nil {
			e.pulse = b.pulse
		}
	}
	return nil
}

// read reads the hosts that were noted as changed, and so many of which nobody told.
func (r *roster) read(ctx context.Context, untold int) error {
	r.reading.Lock()
	defer r.reading.Unlock()
	ids, all := r.take(untold)
	if len(ids) == 0 && !all {
		return nil
	}
	err := r.readAgain(ctx, ids, all)
	if err != nil {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.all = r.all || all
		for _, id := range ids {
			r.dirty[id] = true
		}
	}
	return err
}

// take returns what is to be read now.
func (r *roster) take(untold int) (ids []string, all bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if all, r.all = r.all, false; all {
		clear(r.dirty)
	}
	for id, told := range r.dirty {
		if !told {
			untold--
		}
		if told || untold >= 0 {
			ids = append(ids, id)
			delete(r.dirty, id)
		}
	}
	if len(r.dirty) > 0 {
		r.wake()
	}
	return ids, all
}

func (r *roster) readAgain(ctx context.Context, ids []string, all bool) (err error) {
	if all {
		if ids, err = allHosts(ctx, r.pool); err != nil {
			return err
		}
	}
	fresh := make(map[string]*entry, len(ids))
	for part := range slices.Chunk(ids, inParts) {
		hosts, err := readRoster(ctx, r.pool, part)
		if err != nil {
			return err
		}
		for i := range hosts {
			if fresh[hosts[i].ID], err = newEntry(&hosts[i]); err != nil {
				return err
			}
		}
	}
	r.put(fresh, ids, all)
	return nil
}

// put replaces what is known of hosts, or with all of everything; those that were
// not found are gone.
func (r *roster) put(fresh map[string]*entry, ids []string, all bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	maps.DeleteFunc(r.dirty, func(id string, told bool) bool { return !told && fresh[id] != nil }) // or the pulses tell again
	sorted := !all
	if all {
		r.byID = fresh
		ids = nil
	}
	for _, id := range ids {
		was, is := r.byID[id], fresh[id]
		switch {
		case was != nil && is != nil:
			sorted = sorted && was.name == is.name
			*was = *is
		case is != nil:
			r.byID[id], sorted = is, false
		case was != nil:
			delete(r.byID, id)
			sorted = false
		}
	}
	if !sorted {
		r.hosts = slices.SortedFunc(maps.Values(r.byID), func(a, b *entry) int { return strings.Compare(a.name, b.name) })
	}
}
