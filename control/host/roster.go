package host

import (
	"context"
	"encoding/json"
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

	reading atomic.Bool // the pulses are

	mu     sync.RWMutex // guards what follows
	hosts  []*entry     // by name
	byID   map[string]*entry
	dirty  map[string]struct{}
	all    bool // nothing is known: read every host
	pulsed time.Time
}

// entry is a host; all but its JSON changes in place.
type entry struct {
	name    string
	status  string
	labels  map[string]string
	text    string // what a search looks in
	machine []byte // JSON of Machine
	version int64  // of the row
	pulse   Pulse
}

const (
	freshPulse = time.Second     // younger: not read again
	stalePulse = 5 * time.Second // older: not shown
	inParts    = 1000            // hosts read at a time
	lookers    = 1000            // who may share a look
	hearWithin = 10 * time.Second
)

// capacityChanged is the scheduler's channel: the id of a host, of whose GPUs
// somebody took or gave back some.
const capacityChanged = "capacity_changed"

func newRoster(pool *pg.Pool, log *slog.Logger) *roster {
	r := &roster{pool: pool, log: log, all: true, byID: map[string]*entry{}, dirty: map[string]struct{}{}}
	r.feed = pg.NewFeed(pool, r.heard, Changed, capacityChanged)
	r.looks = pg.NewGroup(lookers, func(ctx context.Context, _ []struct{}) error { return r.look(ctx) })
	return r
}

// get returns the JSON of a page.
func (r *roster) get(ctx context.Context, f Filter) ([]byte, error) {
	if err := r.looks.Do(ctx, struct{}{}); err != nil {
		return nil, fmt.Errorf("look at the fleet: %w", err)
	}
	return r.page(f)
}

func (r *roster) heard(payload string) {
	host, _, _ := strings.Cut(payload, " ")
	r.mu.Lock()
	defer r.mu.Unlock()
	if host == "" {
		r.all = true
		return
	}
	r.dirty[host] = struct{}{}
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
	case age > freshPulse && r.reading.CompareAndSwap(false, true):
		go func() { // nobody waits for it
			defer r.reading.Store(false)
			ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), stalePulse)
			defer cancel()
			if err := r.readPulses(ctx); err != nil {
				r.log.Warn("read what hosts report", "err", err)
			}
		}()
	}
	return r.read(ctx)
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
	for i := range beats {
		b := &beats[i]
		e := r.byID[b.id]
		if e != nil {
			e.pulse = b.pulse
		}
		if e == nil || e.version != b.version {
			r.dirty[b.id] = struct{}{}
		}
	}
	r.pulsed = start
	return nil
}

// read reads the hosts that were noted as changed.
func (r *roster) read(ctx context.Context) error {
	r.mu.Lock()
	ids, all := slices.Collect(maps.Keys(r.dirty)), r.all
	clear(r.dirty)
	r.all = false
	r.mu.Unlock()
	if len(ids) == 0 && !all {
		return nil
	}
	err := r.readAgain(ctx, ids, all)
	if err != nil {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.all = r.all || all
		for _, id := range ids {
			r.dirty[id] = struct{}{}
		}
	}
	return err
}

func (r *roster) readAgain(ctx context.Context, ids []string, all bool) error {
	if all {
		ids = nil
	}
	fresh := map[string]*entry{}
	for after := ""; ; {
		hosts, err := readRoster(ctx, r.pool, ids, after, inParts)
		if err != nil {
			return err
		}
		for i := range hosts {
			e, err := newEntry(&hosts[i])
			if err != nil {
				return err
			}
			fresh[hosts[i].ID] = e
		}
		if len(hosts) < inParts {
			break
		}
		after = hosts[len(hosts)-1].ID
	}
	r.put(fresh, ids, all)
	return nil
}

// put replaces what is known of hosts, or with all of everything; those that were
// not found are gone.
func (r *roster) put(fresh map[string]*entry, ids []string, all bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
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

func newEntry(h *known) (*entry, error) {
	machine, err := json.Marshal(&h.Machine)
	if err != nil {
		return nil, fmt.Errorf("encode host %s: %w", h.ID, err)
	}
	return &entry{name: h.Name, status: h.Status, labels: h.Labels, text: searched(&h.Host), machine: machine, version: h.Version, pulse: h.Pulse}, nil
}
