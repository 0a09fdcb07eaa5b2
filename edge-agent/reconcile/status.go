package reconcile

import (
	"cmp"
	"errors"
	"fmt"
	"math/rand/v2"
	"reflect"
	"slices"
	"time"

	"github.com/remotegpu/remotegpu/protocol"
)

// Bounds of the delay before another try.
const (
	firstDelay = time.Second
	lastDelay  = 5 * time.Minute
	finalDelay = time.Minute
)

// delay is the full-jitter exponential back-off: random, below a limit that
// doubles from firstDelay to lastDelay. What is final is looked at again about
// every finalDelay, in case somebody repaired the host.
func delay(attempts int, final bool) time.Duration {
	if final {
		return finalDelay/2 + rand.N(finalDelay/2)
	}
	limit := lastDelay
	if attempts < 10 {
		limit = min(firstDelay<<(attempts-1), lastDelay)
	}
	return max(rand.N(limit), 100*time.Millisecond)
}

// publish writes what Statuses, Fault and Applied return.
func (l *Loop) publish(steps []Step) {
	next := make(map[string]Step, len(steps))
	for _, s := range steps {
		next[s.Workload] = s
	}
	var list []protocol.WorkloadStatus
	settled := l.desired != nil && l.down == "" && l.seen > 0
	for id, t := range l.tracks {
		s, open := next[id]
		list = append(list, l.status(id, t, s, open))
		settled = settled && t.flight == nil && t.need <= l.seen && (!open || t.fault != nil)
	}
	slices.SortFunc(list, func(a, b protocol.WorkloadStatus) int { return cmp.Compare(a.ID, b.ID) })
	l.mu.Lock()
	changed := !reflect.DeepEqual(list, l.statuses) || l.fault != l.down
	l.statuses, l.fault = list, l.down
	if settled && l.desired.Generation > l.applied {
		l.applied, changed = l.desired.Generation, true
	}
	l.mu.Unlock()
	if changed {
		l.cfg.Changed()
	}
}

// status is one workload for a person. s is its next step if open.
func (l *Loop) status(id string, t *track, s Step, open bool) protocol.WorkloadStatus {
	st := protocol.WorkloadStatus{ID: id, Phase: protocol.PhasePending}
	c, have := l.container(id, t.wish.Revision)
	if have {
		fill(&st, c)
	}
	switch {
	case t.fault != nil && t.fault.Final && open:
		st.Phase, st.Message = protocol.PhaseFailed, t.fault.Message
	case t.flight != nil && t.flight.step.Kind != Reap:
		st.Phase = phaseOf(t.flight.step.Kind)
		st.Message = t.flight.step.Reason
		st.Done, st.Total = t.flight.progress()
	case t.fault != nil && open && time.Now().Before(t.retryAt):
		st.Phase, st.Message, st.RetryAt = protocol.PhaseBackoff, t.fault.Message, t.retryAt.UnixMilli()
	case open:
		st.Phase, st.Message = idlePhase(t.wish, s, c), s.Reason
	default:
		st.Phase, st.Message = goal(t.wish, c, have)
	}
	if t.fault != nil && have && c.State == Running && c.Revision != t.wish.Revision && t.wish.ID != "" {
		st.Message += "; the container from before runs on"
	}
	if l.down != "" {
		st.Message = l.down
	}
	st.Message = protocol.Cut(st.Message)
	return st
}

func fill(st *protocol.WorkloadStatus, c Container) {
	st.Revision, st.ExitCode, st.Restarts, st.Address = c.Revision, c.ExitCode, c.Restarts, c.Address
	if !c.StartedAt.IsZero() {
		st.StartedAt = c.StartedAt.UnixMilli()
	}
	if c.State == Running {
		st.Pid = c.Pid
	}
}

// goal is the phase of a workload with nothing left to do.
func goal(w protocol.Workload, c Container, have bool) (phase, message string) {
	switch {
	case w.ID == "":
		return protocol.PhaseStopping, ""
	case w.Want == protocol.WantStopped:
		return protocol.PhaseStopped, ""
	case !have:
		return protocol.PhasePending, ""
	case c.State == Running:
		return protocol.PhaseRunning, ""
	case w.Limits.Disk > 0 && c.Disk > w.Limits.Disk:
		return protocol.PhaseFailed, diskSentence(w, c)
	}
	return protocol.PhaseExited, exitSentence(c.ExitCode)
}

// idlePhase is the phase of a workload whose next step has not begun.
func idlePhase(w protocol.Workload, s Step, c Container) string {
	if w.ID != "" && c.State == Running && c.Revision == w.Revision {
		return protocol.PhaseRunning
	}
	if s.Kind == Pull || s.Kind == Wait {
		return protocol.PhasePending
	}
	return phaseOf(s.Kind)
}

func phaseOf(k Kind) string {
	switch k {
	case Pull:
		return protocol.PhasePulling
	case Create, Start:
		return protocol.PhaseStarting
	case Reap:
		return protocol.PhaseExited
	case Stop, Remove, Purge:
		return protocol.PhaseStopping
	}
	return protocol.PhasePending
}

// container is the one that a status tells of: of the wanted revision if there
// is one, else any.
func (l *Loop) container(id string, revision uint64) (Container, bool) {
	var found Container
	ok := false
	for _, c := range l.have.Containers {
		if cmp.Or(c.Workload, c.ID) == id && (!ok || c.Revision == revision) {
			found, ok = c, true
		}
	}
	return found, ok
}

func (f *flight) progress() (done, total uint64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.done, f.total
}

// exitSentence says for a person how a container ended.
func exitSentence(code *int) string {
	switch {
	case code == nil:
		return "it ended while nobody watched, as in a reboot of the host"
	case *code == 0:
		return "its command ended without error"
	case *code == 127:
		return "it ended with code 127: the command was not found in the image; change the command or the image"
	case *code == 126:
		return "it ended with code 126: the command cannot be executed; check its permissions and that it is built for this kind of machine"
	case *code == 137:
		return "it ended with code 137: it was killed, often because the memory limit was reached; its log and events say more"
	}
	return fmt.Sprintf("its command ended with code %d; its log says more", *code)
}

// sentence is the text of err for a person.
func sentence(err error) string {
	var f *Fault
	if errors.As(err, &f) {
		return f.Message
	}
	return err.Error()
}
