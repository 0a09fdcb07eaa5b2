package reconcile

import (
	"context"
	"log/slog"
	"reflect"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/remotegpu/remotegpu/protocol"
)

// How often things happen.
const (
	resync        = 10 * time.Second // what no event told
	retryDown     = time.Second      // while the runtime does not answer
	observeWithin = 20 * time.Second
	sweepEvery    = 10 * time.Minute
	longRun       = 10 * time.Minute // a run this long clears the restart delay
	starvedEvery  = time.Minute      // between events of one workload's lack of memory
)

// Config is what a Loop needs. Runtime is required, the rest may be nil.
type Config struct {
	Runtime Runtime
	Changed func()               // Statuses or Applied differ from before; must not block
	Event   func(protocol.Event) // called once per event, without Seq; must not block
	Log     *slog.Logger
}

// Loop makes the host agree with the last document it was given.
type Loop struct {
	cfg  Config
	kick chan struct{} // capacity 1: pending or a progress has changed

	mu       sync.Mutex // guards the fields below
	pending  *protocol.Desired
	statuses []protocol.WorkloadStatus
	fault    string
	applied  uint64

	// Everything below belongs to the goroutine of Run.
	desired  *protocol.Desired
	have     Have
	seen     uint64 // number of the observation that have is from; 0: none yet
	asked    uint64 // number of the last observation begun
	looking  bool   // one is in flight
	stale    bool   // something happened since it began
	down     string // why the runtime cannot be reached, for a person; empty: it can
	tracks   map[string]*track
	observed chan observation
	finished chan finish
	notices  chan Notice
	swept    time.Time
	sweeping atomic.Bool
	work     sync.WaitGroup
}

// track is what the loop knows about one workload, wanted or being removed.
type track struct {
	wish     protocol.Workload // zero: not wanted
	flight   *flight           // the step that is being done; nil: none
	need     uint64            // observations before this number are too old for it
	last     Step              // the last step that was done without error
	attempts int               // failures in a row
	retryAt  time.Time
	failed   Kind // of the last failure; Wait: the container itself ended
	fault    *Fault
	exit     string    // the end of a run that was seen last
	starved  time.Time // when it was last told that memory lacks
}

type flight struct {
	step     Step
	cancel   context.CancelFunc
	obsolete bool // the wish changed: its end says nothing
	mu       sync.Mutex
	done     uint64 // bytes; guarded by mu
	total    uint64
}

type observation struct {
	number uint64
	have   Have
	err    error
}

type finish struct {
	key    string
	flight *flight
	err    error
	took   time.Duration
}

// New returns a loop that does nothing until Run and the first Apply.
func New(cfg Config) *Loop {
	if cfg.Changed == nil {
		cfg.Changed = func() {}
	}
	if cfg.Event == nil {
		cfg.Event = func(protocol.Event) {}
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	return &Loop{
		cfg: cfg, kick: make(chan struct{}, 1), tracks: map[string]*track{}, stale: true,
		observed: make(chan observation), finished: make(chan finish), notices: make(chan Notice, 64),
	}
}

// Apply makes d what the host shall have. The caller has verified it; a
// generation older than the last one is ignored. d must not change any more.
func (l *Loop) Apply(d *protocol.Desired) {
	l.mu.Lock()
	if l.pending == nil || d.Generation >= l.pending.Generation {
		l.pending = d
	}
	l.mu.Unlock()
	l.poke()
}

// Statuses returns every workload that is wanted or still being removed,
// sorted by id.
func (l *Loop) Statuses() []protocol.WorkloadStatus {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.statuses)
}

// Fault returns why nothing can be started or stopped, for a person; empty: it can.
func (l *Loop) Fault() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.fault
}

// Applied returns the highest generation for which every workload has reached
// its goal or its failure.
func (l *Loop) Applied() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.applied
}

func (l *Loop) poke() {
	select {
	case l.kick <- struct{}{}:
	default:
	}
}

// Run works until ctx ends. Containers run on after it; steps in flight are
// cancelled and waited for.
func (l *Loop) Run(ctx context.Context) error {
	defer l.work.Wait()
	l.work.Go(func() { l.watch(ctx) })
	tick := time.NewTicker(resync)
	defer tick.Stop()
	wake := time.NewTimer(0)
	defer wake.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-l.kick:
			l.accept()
		case o := <-l.observed:
			l.look(o)
		case f := <-l.finished:
			l.finish(f)
		case n := <-l.notices:
			l.notice(n)
		case <-tick.C:
			l.stale = true
		case <-wake.C:
			l.stale = l.stale || l.down != ""
		}
		l.turn(ctx)
		if d, ok := l.nextWake(); ok {
			wake.Reset(d)
		}
	}
}

// watch turns what the runtime reports into notices, for as long as it lives.
func (l *Loop) watch(ctx context.Context) {
	for ctx.Err() == nil {
		err := l.cfg.Runtime.Watch(ctx, func(n Notice) {
			select {
			case l.notices <- n:
			case <-ctx.Done():
			}
		})
		if err != nil && ctx.Err() == nil {
			l.cfg.Log.Debug("container events ended", "err", err)
		}
		select {
		case <-ctx.Done():
			return
		case l.notices <- Notice{}: // look at once: the runtime may be gone
		}
		select {
		case <-ctx.Done():
		case <-time.After(retryDown):
		}
	}
}

// accept takes the newest document over and cancels what it makes obsolete.
func (l *Loop) accept() {
	l.mu.Lock()
	d := l.pending
	l.mu.Unlock()
	if d == nil || d == l.desired {
		return
	}
	if l.desired != nil && d.Generation == l.desired.Generation && reflect.DeepEqual(d.Workloads, l.desired.Workloads) {
		return // control repeats itself until it is acknowledged
	}
	l.desired = d
	l.cfg.Log.Info("document applied", "gen", d.Generation, "workloads", len(d.Workloads))
	wanted := make(map[string]protocol.Workload, len(d.Workloads))
	for _, w := range d.Workloads {
		wanted[w.ID] = w
		if l.tracks[w.ID] == nil {
			l.tracks[w.ID] = &track{wish: w}
		}
	}
	for id, t := range l.tracks {
		if w := wanted[id]; !reflect.DeepEqual(w, t.wish) {
			t.change(w)
		}
	}
}

// change is a new wish: what was learned under the old one does not count.
func (t *track) change(w protocol.Workload) {
	t.wish = w
	t.attempts, t.retryAt, t.fault, t.last = 0, time.Time{}, nil, Step{}
	if t.flight != nil {
		t.flight.obsolete = true
		t.flight.cancel()
	}
}

// nextWake is how long until something is due that no channel will tell.
func (l *Loop) nextWake() (time.Duration, bool) {
	if l.down != "" {
		return retryDown, true
	}
	var next time.Time
	now := time.Now()
	for _, t := range l.tracks {
		if t.flight == nil && t.retryAt.After(now) && (next.IsZero() || t.retryAt.Before(next)) {
			next = t.retryAt
		}
	}
	if next.IsZero() {
		return 0, false
	}
	return max(time.Until(next), time.Millisecond), true
}
