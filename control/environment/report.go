package environment

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/remotegpu/remotegpu/control/pg"
	"github.com/remotegpu/remotegpu/control/scheduler"
	"github.com/remotegpu/remotegpu/protocol"
)

// Report takes what hosts say of their workloads. The latest wins: a report
// that is not newer than the host's last one, by epoch and sequence, changes
// nothing.
func (s *Service) Report(ctx context.Context, tx pg.Tx, said map[string]*protocol.Status) error {
	last, err := claim(ctx, tx, said)
	if err != nil || len(last) == 0 {
		return err
	}
	hosts := slices.Sorted(maps.Keys(last))
	all, err := lockHosts(ctx, tx, hosts)
	if err != nil {
		return err
	}
	docs, err := documentsOf(ctx, tx, hosts)
	if err != nil {
		return err
	}
	news := &news{told: map[string]bool{}, highest: map[string]uint64{}}
	byID := make(map[string]*Environment, len(all))
	for i := range all {
		byID[all[i].ID] = &all[i]
	}
	for _, host := range hosts {
		news.takeEvents(host, said[host].Events, last[host], byID)
	}
	reported := workloadsOf(said)
	for i := range all {
		e := &all[i]
		if err := s.take(ctx, tx, report{e, reported[key{e.Host, e.ID}], said[e.Host], docs[e.Host], news}); err != nil {
			return fmt.Errorf("take report of %s: %w", e.ID, err)
		}
	}
	return news.write(ctx, tx)
}

// key is a workload on a host: a host may say what it likes of another's.
type key struct{ host, workload string }

func workloadsOf(said map[string]*protocol.Status) map[key]*protocol.WorkloadStatus {
	all := map[key]*protocol.WorkloadStatus{}
	for host, st := range said {
		for i := range st.Workloads {
			all[key{host, st.Workloads[i].ID}] = &st.Workloads[i]
		}
	}
	return all
}

// report is what a host says of one environment.
type report struct {
	env    *Environment
	status *protocol.WorkloadStatus // nil: the host does not have it
	whole  *protocol.Status
	doc    document
	news   *news
}

// take brings one environment up to date with what its host says.
func (s *Service) take(ctx context.Context, tx pg.Tx, r report) error {
	e, before := r.env, *r.env
	needs := r.doc.carries(e.Generation)
	switch {
	case r.status == nil && e.Want == wantDeleted && r.whole.Applied >= needs:
		e.Phase = "deleted"
		r.news.gone = append(r.news.gone, e)
		return r.news.change(e, before.Phase)
	case r.status != nil && r.whole.Observed >= needs:
		e.take(r.status)
	}
	if e.Want == wantStopped && e.Phase == protocol.PhaseStopped && e.Placed {
		if err := scheduler.Release(ctx, tx, e.ID); err != nil {
			return err
		}
	}
	if e.Phase == protocol.PhasePulling && before.Phase != e.Phase {
		r.news.tell(e, e.happens("Pulling", "Image "+e.Image+" is on its way to host "+e.HostName+"."))
	}
	changed := !e.same(&before)
	if changed {
		r.news.changed = append(r.news.changed, e)
	}
	if r.news.told[e.ID] || changed && (e.Phase != before.Phase || e.Message != before.Message) {
		return r.news.change(e, before.Phase)
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
