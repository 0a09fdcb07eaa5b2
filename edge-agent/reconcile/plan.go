package reconcile

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/remotegpu/remotegpu/protocol"
)

// Kind of a step.
type Kind int

// Kinds. Wait is no work: the workload has to wait for another one.
const (
	Wait Kind = iota
	Pull
	Create
	Start
	Reap
	Stop
	Remove
	Purge
)

func (k Kind) String() string {
	return [...]string{"wait", "pull", "create", "start", "reap", "stop", "remove", "purge"}[k]
}

// Step is the next thing to do for one workload.
type Step struct {
	Kind      Kind
	Workload  string            // whose step it is; a container without workload goes by its own id
	Want      protocol.Workload // Pull, Create, Start
	Container Container         // Start, Reap, Stop, Remove
	Reason    string            // Wait, Stop: a sentence for a person, where there is one
}

// Plan returns the next step of every workload that is not as it shall be, at
// most one each, sorted by workload. It is pure: the same arguments give the
// same steps.
func Plan(want []protocol.Workload, have Have) []Step {
	p := planner{wanted: make(map[string]bool, len(want)), own: map[string][]Container{}, have: have, want: want}
	for _, c := range have.Containers {
		key := cmp.Or(c.Workload, c.ID)
		p.own[key] = append(p.own[key], c)
	}
	var steps []Step
	for _, w := range want {
		p.wanted[w.ID] = true
		if s, ok := p.next(w); ok {
			s.Workload = w.ID
			steps = append(steps, s)
		}
	}
	steps = append(steps, p.orphans()...)
	slices.SortFunc(steps, func(a, b Step) int { return cmp.Compare(a.Workload, b.Workload) })
	return steps
}

type planner struct {
	want   []protocol.Workload
	have   Have
	wanted map[string]bool
	own    map[string][]Container // by workload
}

// next is the step of one wanted workload.
func (p *planner) next(w protocol.Workload) (Step, bool) {
	current, others := split(p.own[w.ID], w.Revision)
	if w.Want == protocol.WantStopped {
		return drop(p.own[w.ID])
	}
	if current == nil {
		return p.make(w, others)
	}
	if len(others) > 0 {
		return drop(others)
	}
	return p.keep(w, *current)
}

// make leads to a container of the wanted revision. The old one runs on until
// the new image is here, so that a misspelt image costs nobody their files;
// only a GPU that another workload waits for ends it at once.
func (p *planner) make(w protocol.Workload, others []Container) (Step, bool) {
	ready := p.have.Images[w.ID] == w.Revision && w.Revision != 0
	switch {
	case len(others) > 0 && (ready || p.blocking(w.ID, others)):
		return drop(others)
	case !ready:
		return Step{Kind: Pull, Want: w}, true
	}
	return Step{Kind: Create, Want: w}, true
}

// keep leads a container of the wanted revision to where its policy says.
func (p *planner) keep(w protocol.Workload, c Container) (Step, bool) {
	full := w.Limits.Disk > 0 && c.Disk > w.Limits.Disk
	switch c.State {
	case Running:
		if full {
			return Step{Kind: Stop, Container: c, Reason: diskSentence(w, c)}, true
		}
		return Step{}, false
	case Unclear:
		return Step{Kind: Wait, Container: c, Reason: "the container's process does not answer containerd; it is left alone and looked at again"}, true
	case Exited:
		if c.Unreaped {
			return Step{Kind: Reap, Container: c}, true
		}
		if full || !restarts(w.Restart, c.ExitCode) {
			return Step{}, false
		}
	}
	if id, gpu := p.holder(w); id != "" {
		return Step{Kind: Wait, Container: c, Reason: fmt.Sprintf("waits for GPU %s, which %s is giving back", gpu, id)}, true
	}
	return Step{Kind: Start, Want: w, Container: c}, true
}

// orphans are the steps of everything that nobody wants.
func (p *planner) orphans() []Step {
	var steps []Step
	for id, list := range p.own {
		if !p.wanted[id] {
			s, _ := drop(list)
			s.Workload = id
			steps = append(steps, s)
		}
	}
	for _, id := range p.have.Leftovers {
		if !p.wanted[id] && len(p.own[id]) == 0 {
			steps = append(steps, Step{Kind: Purge, Workload: id})
		}
	}
	return steps
}

// drop ends and removes containers one after the other.
func drop(list []Container) (Step, bool) {
	for _, c := range list {
		if c.State == Running {
			return Step{Kind: Stop, Container: c}, true
		}
	}
	for _, c := range list {
		return Step{Kind: Remove, Container: c}, true
	}
	return Step{}, false
}

// blocking reports whether a workload other than id wants a GPU that one of
// list holds.
func (p *planner) blocking(id string, list []Container) bool {
	for _, w := range p.want {
		if w.ID == id || w.Want != protocol.WantRunning {
			continue
		}
		for _, c := range list {
			if shared(w.GPUs, c.GPUs) != "" {
				return true
			}
		}
	}
	return false
}

// holder returns another workload whose container holds a GPU that w wants.
func (p *planner) holder(w protocol.Workload) (workload, gpu string) {
	for _, c := range p.have.Containers {
		if c.Workload == w.ID || c.State == Created || c.State == Exited {
			continue
		}
		if gpu := shared(w.GPUs, c.GPUs); gpu != "" {
			return cmp.Or(c.Workload, c.ID), gpu
		}
	}
	return "", ""
}

func shared(a, b []string) string {
	for _, x := range a {
		if slices.Contains(b, x) {
			return x
		}
	}
	return ""
}

func split(list []Container, revision uint64) (current *Container, others []Container) {
	for i, c := range list {
		if c.Revision == revision && current == nil {
			current = &list[i]
			continue
		}
		others = append(others, c)
	}
	return current, others
}

// restarts is the restart policy: whether a container that ended with code
// (nil: unknown) is started again.
func restarts(policy string, code *int) bool {
	switch policy {
	case protocol.RestartAlways:
		return true
	case protocol.RestartOnFailure:
		return code == nil || *code != 0
	}
	return false
}

func diskSentence(w protocol.Workload, c Container) string {
	return fmt.Sprintf("stopped: its own files take %s, over the limit of %s; raise the disk limit, or restart it to begin with fresh files (volumes stay)",
		size(c.Disk), size(w.Limits.Disk))
}

// size writes bytes for people: "1.5 GiB".
func size(n uint64) string {
	const units = "KMGTPE"
	if n < 1024 {
		return fmt.Sprintf("%d B", n)
	}
	f, u := float64(n)/1024, 0
	for f >= 1024 && u < len(units)-1 {
		f, u = f/1024, u+1
	}
	return fmt.Sprintf("%.1f %ciB", f, units[u])
}
