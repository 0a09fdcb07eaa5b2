package chaos

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"
)

// System is what is broken, as the test that has built it passes it in.
type System struct {
	Faults []Fault
	// Look sees how things are; was is the look before, for what cannot be seen
	// now. Levels are asked for when all is quiet, which now.Quiet says.
	Look func(was, now *Seen)
	// Rest makes no more wishes and returns what has not come to rest, empty if all has.
	Rest func(ctx context.Context) string
	// Resume lets wishes be made again; Clear unmakes all that came since the start.
	Resume, Clear func()
	Log           func(format string, args ...any)
}

// Run is one run of a plan.
type Run struct {
	System
	Seed   uint64
	Shape  Shape
	For    time.Duration // no round begins later; 0: all of the plan is played
	Calm   time.Duration // most that a calm may take
	Replay string        // the command that does it again

	began  time.Time
	mu     sync.Mutex // guards what follows
	report Report
	first  *Seen
	was    *Seen
}

// every is the time between two looks.
const every = time.Second

// Do runs the plan and returns what happened. It ends early at the first break.
func (r *Run) Do(ctx context.Context) *Report {
	r.began = time.Now()
	r.report = Report{Seed: r.Seed, Replay: r.Replay, Shape: r.Shape, Began: r.began, Checked: map[string]int{}}
	r.was = &Seen{}
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	plan := Plan(r.Seed, r.Faults, r.Shape)
	r.calm(ctx) // what is at rest before anything breaks is the start level
	for round := range r.Shape.Rounds {
		if ctx.Err() != nil || r.broken() || r.For > 0 && time.Since(r.began) > r.For {
			break
		}
		r.report.Rounds++
		r.Resume()
		r.storm(ctx, slices.DeleteFunc(slices.Clone(plan), func(s Strike) bool { return s.Round != round }))
		r.calm(ctx)
	}
	if !r.broken() {
		r.Clear()
		r.calm(ctx)
	}
	r.report.Took = time.Since(r.began)
	return &r.report
}

// storm plays a round's strikes and looks meanwhile. All are mended when it returns.
func (r *Run) storm(ctx context.Context, strikes []Strike) {
	began := time.Now()
	over := make(chan struct{})
	var all sync.WaitGroup
	for _, s := range strikes {
		all.Go(func() {
			select {
			case <-time.After(time.Until(began.Add(s.At))):
				r.strike(ctx, s)
			case <-ctx.Done():
			}
		})
	}
	go func() { all.Wait(); close(over) }()
	for {
		select {
		case <-over:
			return
		case <-time.After(every):
			r.look(false)
		}
	}
}

func (r *Run) strike(ctx context.Context, s Strike) {
	if r.broken() {
		return
	}
	f := r.Faults[s.Fault]
	hit := Struck{At: time.Since(r.began), Name: f.Name, Part: fmt.Sprint(f.On, " ", s.Hit.Part), Lasts: s.Lasts}
	r.Log("%s: %s on %s for %v", hit.At.Round(time.Millisecond), hit.Name, hit.Part, s.Lasts)
	if err := f.Do(ctx, s.Hit); err != nil {
		hit.Err = err.Error()
	}
	select {
	case <-time.After(s.Lasts):
	case <-ctx.Done():
	}
	if f.Undo != nil {
		if err := f.Undo(context.WithoutCancel(ctx), s.Hit); err != nil {
			hit.Err = strings.TrimPrefix(hit.Err+"; undo: "+err.Error(), "; ")
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.report.Struck = append(r.report.Struck, hit)
	if hit.Err != "" {
		r.fail("the injector works", hit.Name+" on "+hit.Part+": "+hit.Err)
	}
}

// calm waits until all is at rest and what must hold then does.
func (r *Run) calm(ctx context.Context) {
	began := time.Now()
	for ctx.Err() == nil && !r.broken() {
		r.look(false)
		why := r.Rest(ctx)
		if why == "" {
			why = r.look(true)
		}
		r.mu.Lock()
		if took := time.Since(began); why == "" {
			r.report.Rests = append(r.report.Rests, took)
		} else if took > r.Calm {
			r.fail("all comes to rest", fmt.Sprintf("not within %v: %s", r.Calm, why))
		}
		r.mu.Unlock()
		if why == "" {
			return
		}
		time.Sleep(every)
	}
}

// look sees and checks. It returns what does not hold of that which must at rest.
func (r *Run) look(quiet bool) (unrest string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := &Seen{At: time.Since(r.began), Quiet: quiet}
	r.Look(r.was, now)
	if quiet && r.first == nil {
		r.first = now
	}
	for _, v := range Invariants {
		if v.Quiet && !quiet {
			continue
		}
		r.report.Checked[v.Name]++
		if what := v.Check(r.first, r.was, now); what == "" {
			continue
		} else if v.Quiet {
			unrest = v.Name + ": " + what
		} else {
			r.fail(v.Name, what)
		}
	}
	r.was = now
	return unrest
}

// fail notes the first break; r.mu is held.
func (r *Run) fail(invariant, what string) {
	if r.report.Broke != nil {
		return
	}
	r.report.Broke = &Break{At: time.Since(r.began), Invariant: invariant, What: what}
	r.Log("BROKEN after %v: %s: %s", r.report.Broke.At.Round(time.Millisecond), invariant, what)
}

func (r *Run) broken() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.report.Broke != nil
}
