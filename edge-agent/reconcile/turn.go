package reconcile

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/remotegpu/remotegpu/protocol"
)

// turn does what is due: look, begin steps, sweep, report.
func (l *Loop) turn(ctx context.Context) {
	if ctx.Err() != nil {
		return
	}
	if l.stale && !l.looking {
		l.observe(ctx)
	}
	var steps []Step
	if l.desired != nil && l.seen > 0 {
		steps = Plan(l.desired.Workloads, l.have)
		if l.down == "" {
			for _, s := range steps {
				l.begin(ctx, s)
			}
			l.sweep(ctx)
		}
		l.settle(steps)
	}
	l.publish(steps)
}

func (l *Loop) observe(ctx context.Context) {
	l.asked++
	l.looking, l.stale = true, false
	number := l.asked
	l.work.Go(func() {
		short, cancel := context.WithTimeout(ctx, observeWithin)
		defer cancel()
		have, err := l.cfg.Runtime.Observe(short)
		select {
		case l.observed <- observation{number, have, err}:
		case <-ctx.Done():
		}
	})
}

// look takes an observation over.
func (l *Loop) look(o observation) {
	l.looking = false
	if o.err != nil {
		if l.down == "" {
			l.cfg.Log.Warn("container runtime does not answer", "err", o.err)
			l.event(protocol.SeverityWarning, "RuntimeDown", sentence(o.err), "")
		}
		l.down = sentence(o.err)
		return
	}
	if l.down != "" {
		l.cfg.Log.Info("container runtime answers again")
		l.event(protocol.SeverityNormal, "RuntimeUp", "containerd answers again", "")
	}
	l.down, l.have, l.seen = "", o.have, o.number
	for _, c := range o.have.Containers {
		if t := l.tracks[c.Workload]; t != nil && t.flight == nil && t.need <= o.number {
			l.ended(t, c)
		}
	}
}

// ended notes once how a run of a wanted container came to its end, and when
// it may start again.
func (l *Loop) ended(t *track, c Container) {
	key := fmt.Sprint(c.ID, c.Restarts, c.ExitedAt.UnixNano())
	if c.State != Exited || c.Revision != t.wish.Revision || t.wish.Want != protocol.WantRunning || t.exit == key {
		return
	}
	t.exit = key
	full := t.wish.Limits.Disk > 0 && c.Disk > t.wish.Limits.Disk
	again := restarts(t.wish.Restart, c.ExitCode)
	if c.Unreaped && !full {
		severity := protocol.SeverityNormal
		if c.ExitCode == nil || *c.ExitCode != 0 {
			severity = protocol.SeverityWarning
		}
		l.event(severity, "Exited", exitSentence(c.ExitCode), c.Workload)
	}
	if full || !again {
		return
	}
	if c.ExitedAt.Sub(c.StartedAt) >= longRun {
		t.attempts = 0
	}
	t.postpone(Wait, Faultf(nil, "%s", exitSentence(c.ExitCode)))
}

// postpone counts a failure; the next try comes after a random delay whose
// limit doubles each time.
func (t *track) postpone(kind Kind, f *Fault) {
	t.attempts++
	t.failed, t.fault = kind, f
	t.retryAt = time.Now().Add(delay(t.attempts, f.Final))
}

// begin starts a step if the workload is free for it.
func (l *Loop) begin(ctx context.Context, s Step) {
	t := l.tracks[s.Workload]
	if t == nil {
		t = &track{}
		l.tracks[s.Workload] = t
	}
	if s.Kind == Wait || t.flight != nil || t.need > l.seen {
		return
	}
	if time.Now().Before(t.retryAt) && s.Kind != Reap {
		return
	}
	if same(s, t.last) {
		t.last = Step{}
		t.postpone(s.Kind, Faultf(nil, "%s had no effect", s.Kind))
		return
	}
	stepCtx, cancel := context.WithCancel(ctx)
	f := &flight{step: s, cancel: cancel}
	t.flight = f
	l.work.Go(func() {
		defer cancel()
		begun := time.Now()
		err := l.do(stepCtx, f)
		select {
		case l.finished <- finish{s.Workload, f, err, time.Since(begun)}:
		case <-ctx.Done():
		}
	})
}

func same(a, b Step) bool {
	return a.Kind == b.Kind && a.Want.Revision == b.Want.Revision && a.Container.ID == b.Container.ID &&
		a.Container.State == b.Container.State && a.Container.Restarts == b.Container.Restarts &&
		a.Container.ExitedAt.Equal(b.Container.ExitedAt)
}

// stepWithin bounds every step but a pull, whose bytes are watched instead.
const stepWithin = 2 * time.Minute

func (l *Loop) do(ctx context.Context, f *flight) error {
	r, s := l.cfg.Runtime, f.step
	if s.Kind != Pull {
		short, cancel := context.WithTimeout(ctx, stepWithin+s.Container.Grace)
		defer cancel()
		ctx = short
	}
	switch s.Kind {
	case Pull:
		return r.Pull(ctx, s.Want, func(done, total uint64) {
			f.mu.Lock()
			f.done, f.total = done, total
			f.mu.Unlock()
			l.poke()
		})
	case Create:
		return r.Create(ctx, s.Want)
	case Start:
		return r.Start(ctx, s.Want, s.Container)
	case Reap:
		return r.Reap(ctx, s.Container)
	case Stop:
		return r.Stop(ctx, s.Container)
	case Remove:
		return r.Remove(ctx, s.Container)
	case Purge:
		return r.Purge(ctx, s.Workload)
	}
	return nil
}

// finish takes the end of a step over.
func (l *Loop) finish(f finish) {
	t, s := l.tracks[f.key], f.flight.step
	t.flight = nil
	l.stale = true
	t.need = l.asked + 1
	log := l.cfg.Log.With("env", s.Workload, "step", s.Kind.String())
	switch {
	case f.err == nil:
		log.Info("step done", "took", f.took)
		if !f.flight.obsolete {
			l.succeed(t, s, f.took)
		}
	case f.flight.obsolete:
		log.Debug("step cancelled", "err", f.err)
	case errors.Is(f.err, ErrUnavailable): // no blame, but no hurry either
		log.Warn("step cut off", "err", f.err)
		t.retryAt = time.Now().Add(retryDown)
	default:
		log.Warn("step failed", "err", f.err)
		l.fail(t, s, f.err)
	}
}

func (l *Loop) succeed(t *track, s Step, took time.Duration) {
	t.last = s
	if t.fault != nil && t.failed == s.Kind {
		t.attempts, t.fault, t.retryAt = 0, nil, time.Time{}
	}
	switch s.Kind {
	case Pull:
		l.event(protocol.SeverityNormal, "Pulled", fmt.Sprintf("Image %s is here after %s.", s.Want.Image, took.Round(10*time.Millisecond)), s.Workload)
	case Start:
		t.fault, t.retryAt = nil, time.Time{} // attempts stay until it has run for long
		l.event(protocol.SeverityNormal, "Started", fmt.Sprintf("Container %s runs.", s.Container.ID), s.Workload)
	case Stop:
		severity, text := protocol.SeverityNormal, "Container "+s.Container.ID+" was stopped."
		if s.Reason != "" {
			severity, text = protocol.SeverityWarning, s.Reason
		}
		l.event(severity, "Stopped", text, s.Workload)
	case Purge:
		l.event(protocol.SeverityNormal, "Removed", "Everything of "+s.Workload+" is removed from the host.", s.Workload)
	}
}

func (l *Loop) fail(t *track, s Step, err error) {
	t.last = Step{}
	var f *Fault
	switch {
	case errors.As(err, &f):
	case errors.Is(err, context.DeadlineExceeded):
		f = Faultf(err, "%s took too long; the host or its disks may be overloaded, it is tried again", s.Kind)
	default:
		f = Faultf(err, "%s did not work: %v", s.Kind, err)
	}
	news := t.fault == nil || t.fault.Message != f.Message
	t.postpone(s.Kind, f)
	if news {
		l.event(protocol.SeverityWarning, reasons[s.Kind], f.Message, s.Workload)
	}
}

// reasons are the words of events about steps that failed.
var reasons = map[Kind]string{
	Pull: "PullFailed", Create: "CreateFailed", Start: "StartFailed", Reap: "ReapFailed",
	Stop: "StopFailed", Remove: "RemoveFailed", Purge: "PurgeFailed",
}

// notice takes over what the runtime reported by itself. That the kernel ends
// processes for memory is told now and then: a workload can have it happen a hundred
// times a second, and the events of others must not drown in that.
func (l *Loop) notice(n Notice) {
	if !n.OutOfMemory {
		l.stale = true
		return
	}
	for _, c := range l.have.Containers {
		t := l.tracks[c.Workload]
		if c.ID == n.Container && t != nil && time.Since(t.starved) >= starvedEvery {
			t.starved = time.Now()
			l.event(protocol.SeverityWarning, "OutOfMemory",
				"the kernel ended one of its processes: the memory limit is reached; raise the limit or use less", c.Workload)
		}
	}
}

// settle clears the faults of workloads that need nothing more and drops the
// tracks of those that are gone.
func (l *Loop) settle(steps []Step) {
	if l.down != "" {
		return
	}
	open := make(map[string]bool, len(steps))
	for _, s := range steps {
		open[s.Workload] = true
	}
	for id, t := range l.tracks {
		if open[id] || t.flight != nil || t.need > l.seen {
			continue
		}
		t.fault = nil
		if t.wish.ID == "" {
			delete(l.tracks, id)
		}
	}
}

// sweep lets the runtime clean up now and then.
func (l *Loop) sweep(ctx context.Context) {
	if time.Since(l.swept) < sweepEvery || !l.sweeping.CompareAndSwap(false, true) {
		return
	}
	l.swept = time.Now()
	want := l.desired.Workloads
	l.work.Go(func() {
		defer l.sweeping.Store(false)
		if err := l.cfg.Runtime.Sweep(ctx, want); err != nil && ctx.Err() == nil {
			l.cfg.Log.Warn("image clean-up did not finish", "err", err)
		}
	})
}

func (l *Loop) event(severity, reason, message, workload string) {
	l.cfg.Event(protocol.Event{
		At: time.Now().UnixMilli(), Severity: severity, Reason: reason,
		Message: protocol.Cut(cmp.Or(message, reason)), Workload: workload,
	})
}
