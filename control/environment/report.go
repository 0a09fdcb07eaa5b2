package environment

import (
	"context"
	"fmt"
	"time"

	"github.com/remotegpu/remotegpu/control/pg"
	"github.com/remotegpu/remotegpu/control/scheduler"
	"github.com/remotegpu/remotegpu/protocol"
)

// Report takes what a host says of its workloads. The latest wins: a report
// that is not newer than the last one, by epoch and sequence, changes nothing.
func (s *Service) Report(ctx context.Context, host string, st protocol.Status) error {
	return pg.InTx(ctx, s.pool, func(tx pg.Tx) error {
		last, fresh, err := claim(ctx, tx, host, &st)
		if err != nil || !fresh {
			return err
		}
		all, err := lockHost(ctx, tx, host)
		if err != nil {
			return err
		}
		doc, err := documentOf(ctx, tx, host)
		if err != nil {
			return err
		}
		told, err := takeEvents(ctx, tx, host, all, st.Events, last)
		if err != nil {
			return err
		}
		reported := make(map[string]*protocol.WorkloadStatus, len(st.Workloads))
		for i := range st.Workloads {
			reported[st.Workloads[i].ID] = &st.Workloads[i]
		}
		for i := range all {
			if err := s.take(ctx, tx, report{&all[i], reported[all[i].ID], &st, doc, told[all[i].ID]}); err != nil {
				return fmt.Errorf("take report of %s: %w", all[i].ID, err)
			}
		}
		return nil
	})
}

// report is what a host says of one environment.
type report struct {
	env    *Environment
	status *protocol.WorkloadStatus // nil: the host does not have it
	whole  *protocol.Status
	doc    document
	told   bool // events of it were taken
}

// take brings one environment up to date with what its host says.
func (s *Service) take(ctx context.Context, tx pg.Tx, r report) error {
	e, before := r.env, *r.env
	needs := r.doc.carries(e.Generation)
	switch {
	case r.status == nil && e.Want == wantDeleted && r.whole.Applied >= needs:
		if err := s.erase(ctx, tx, e); err != nil {
			return err
		}
		e.Phase = "deleted"
		return announce(ctx, tx, e, before.Phase)
	case r.status != nil && r.whole.Observed >= needs:
		e.take(r.status)
	}
	if e.Want == wantStopped && e.Phase == protocol.PhaseStopped && e.Placed {
		if err := scheduler.Release(ctx, tx, e.ID); err != nil {
			return err
		}
	}
	if e.Phase == protocol.PhasePulling && before.Phase != e.Phase {
		if err := tell(ctx, tx, e, nil, protocol.SeverityNormal, "Pulling", "Image "+e.Image+" is on its way to host "+e.HostName+"."); err != nil {
			return err
		}
		r.told = true
	}
	changed := !e.same(&before)
	if changed {
		if err := save(ctx, tx, e); err != nil {
			return err
		}
	}
	if r.told || changed && (e.Phase != before.Phase || e.Message != before.Message) {
		return announce(ctx, tx, e, before.Phase)
	}
	return nil
}

// effective is what the host shall do now: a drained host runs nothing.
func (e *Environment) effective() string {
	if e.Want == wantRunning && (!e.Placed || e.HostState == hostDrained) {
		return wantStopped
	}
	return e.Want
}

// take writes what the host says into e.
func (e *Environment) take(st *protocol.WorkloadStatus) {
	phase, message := settle(e.effective(), e.Revision, *st)
	if e.Want != wantRunning || e.Placed { // else it waits for a host, whatever is left there
		e.Phase, e.Message = phase, message
	}
	if e.Want == wantRunning && e.HostState == hostDrained {
		e.Phase = protocol.PhasePending
		e.Message = "host " + e.HostName + " is being drained or maintained; it starts again when the host is active"
	}
	e.ReportedRevision, e.Pid, e.Restarts, e.Address = st.Revision, st.Pid, st.Restarts, st.Address
	e.StartedAt, e.RetryAt = moment(st.StartedAt), moment(st.RetryAt)
	e.ExitCode, e.Pulled, e.PullTotal = st.ExitCode, st.Done, st.Total
}

// same compares what a report can change.
func (e *Environment) same(o *Environment) bool {
	return e.Phase == o.Phase && e.Message == o.Message && e.ReportedRevision == o.ReportedRevision && e.Pid == o.Pid && e.Restarts == o.Restarts &&
		e.Address == o.Address && sameTime(e.StartedAt, o.StartedAt) && sameTime(e.RetryAt, o.RetryAt) && e.Pulled == o.Pulled && e.PullTotal == o.PullTotal &&
		(e.ExitCode == nil) == (o.ExitCode == nil) && (e.ExitCode == nil || *e.ExitCode == *o.ExitCode)
}

func sameTime(a, b *time.Time) bool {
	return (a == nil) == (b == nil) && (a == nil || a.Equal(*b))
}

func moment(ms int64) *time.Time {
	if ms == 0 {
		return nil
	}
	t := time.UnixMilli(ms).UTC()
	return &t
}

// takeEvents keeps each event of the host's environments once and returns
// which of them have new ones.
func takeEvents(ctx context.Context, tx pg.Tx, host string, all []Environment, list []protocol.Event, last uint64) (map[string]bool, error) {
	byID := make(map[string]*Environment, len(all))
	for i := range all {
		byID[all[i].ID] = &all[i]
	}
	told, highest := map[string]bool{}, last
	for _, ev := range list {
		if ev.Seq <= last {
			continue
		}
		highest = max(highest, ev.Seq)
		e := byID[ev.Workload]
		if e == nil {
			continue // of the host itself, or of an environment that is gone
		}
		if err := tell(ctx, tx, e, moment(ev.At), severity(ev.Severity), ev.Reason, ev.Message); err != nil {
			return nil, err
		}
		told[e.ID] = true
	}
	if highest == last {
		return told, nil
	}
	return told, setEventSeq(ctx, tx, host, highest)
}

func severity(s string) string {
	if s == protocol.SeverityNormal || s == protocol.SeveritySecurity {
		return s
	}
	return protocol.SeverityWarning
}
