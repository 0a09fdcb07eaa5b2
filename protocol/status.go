package protocol

import (
	"fmt"
	"slices"
)

// Epoch counts an agent's connections: it grows with every CONNECT, over
// restarts too (the agent keeps it on disk). Everything that a connection says
// carries it, and control ignores what an older one left behind.
type Epoch = uint64

// Hello is the agent's first message on every connection. Control answers with
// the desired document when Observed or Digest differ from its own. A status that
// observes less than its hello says that the agent has lost what it obeyed.
type Hello struct {
	Version      int       `cbor:"1,keyasint"`
	Epoch        Epoch     `cbor:"2,keyasint"`
	BootID       string    `cbor:"3,keyasint"`           // of the host's kernel
	Agent        string    `cbor:"4,keyasint"`           // agent version, "0.1.0"
	Observed     uint64    `cbor:"5,keyasint"`           // highest generation that was obeyed; 0: none
	Applied      uint64    `cbor:"6,keyasint"`           // generation that containerd agrees with; ≤ Observed
	Digest       []byte    `cbor:"7,keyasint,omitempty"` // SHA-256 of that document
	Capabilities []string  `cbor:"8,keyasint,omitempty"` // "session", "gpu.cdi", "gpu.sim", …
	ClockOffset  int64     `cbor:"9,keyasint,omitempty"` // milliseconds that the host's clock is ahead of control's
	Inventory    Inventory `cbor:"10,keyasint"`
}

// Presence says whether a host is there. The will is the same message with
// Online false and the epoch of the connection that it belongs to.
type Presence struct {
	Version int   `cbor:"1,keyasint"`
	Epoch   Epoch `cbor:"2,keyasint"`
	Online  bool  `cbor:"3,keyasint"`
}

// Phases of a workload on a host, as the agent sees them.
const (
	PhasePending  = "pending"  // seen in the document, nothing done yet
	PhasePulling  = "pulling"  // the image is on its way: Done and Total
	PhaseStarting = "starting" // container being made
	PhaseRunning  = "running"
	PhaseBackoff  = "backoff" // it ended or could not start; tried again at RetryAt
	PhaseStopping = "stopping"
	PhaseStopped  = "stopped"
	PhaseExited   = "exited" // ended and, by its restart policy, stays so
	PhaseFailed   = "failed" // cannot run until its document changes
)

// Status is the whole truth of a host, written by the agent, repeated until an
// Ack names its Seq. The latest wins.
type Status struct {
	Version   int              `cbor:"1,keyasint"`
	Epoch     Epoch            `cbor:"2,keyasint"`
	Seq       uint64           `cbor:"3,keyasint"` // grows with every new status, over restarts too
	Observed  uint64           `cbor:"4,keyasint"`
	Applied   uint64           `cbor:"5,keyasint"`
	Workloads []WorkloadStatus `cbor:"6,keyasint,omitempty"`
	Events    []Event          `cbor:"7,keyasint,omitempty"` // those not acknowledged yet, oldest first, at most MaxEvents
	Usage     Usage            `cbor:"8,keyasint"`
	Fault     string           `cbor:"9,keyasint,omitempty"` // why the host can start and stop nothing, one sentence for a person; empty: it can
}

// MaxEvents is how many events one Status carries.
const MaxEvents = 64

// WorkloadStatus is one workload on the host, wanted or still being removed.
type WorkloadStatus struct {
	ID        string `cbor:"1,keyasint"`
	Revision  uint64 `cbor:"2,keyasint"` // of the container that exists; 0: none
	Phase     string `cbor:"3,keyasint"`
	Message   string `cbor:"4,keyasint,omitempty"` // one sentence for a person: what is wrong and what to do next
	Pid       uint32 `cbor:"5,keyasint,omitempty"` // of the container's first process, on the host
	StartedAt int64  `cbor:"6,keyasint,omitempty"` // Unix milliseconds
	ExitCode  *int   `cbor:"7,keyasint,omitempty"` // of the last run; nil while none ended
	Restarts  uint32 `cbor:"8,keyasint,omitempty"`
	RetryAt   int64  `cbor:"9,keyasint,omitempty"`  // Unix milliseconds, in PhaseBackoff
	Done      uint64 `cbor:"10,keyasint,omitempty"` // bytes pulled
	Total     uint64 `cbor:"11,keyasint,omitempty"` // bytes to pull, as far as known
	Address   string `cbor:"12,keyasint,omitempty"` // in the environment's own network
}

// Severities of an event.
const (
	SeverityNormal   = "normal"
	SeverityWarning  = "warning"
	SeveritySecurity = "security" // somebody tried what they must not
)

// Event is something that happened on the host and is reported exactly once:
// it stays in every Status until an Ack names its Seq.
type Event struct {
	Seq      uint64 `cbor:"1,keyasint"`
	At       int64  `cbor:"2,keyasint"`           // Unix milliseconds
	Severity string `cbor:"3,keyasint"`           // SeverityNormal, SeverityWarning or SeveritySecurity
	Reason   string `cbor:"4,keyasint"`           // CamelCase word for machines: "Pulled", "DesiredRefused"
	Message  string `cbor:"5,keyasint"`           // one sentence for a person
	Workload string `cbor:"6,keyasint,omitempty"` // empty: the host itself
}

// Usage is what the host has left, for the scheduler's and people's eyes; the
// time series are in TelemetryBatch.
type Usage struct {
	CPUPercent float32    `cbor:"1,keyasint,omitempty"`
	MemoryUsed uint64     `cbor:"2,keyasint,omitempty"` // bytes
	DiskUsed   uint64     `cbor:"3,keyasint,omitempty"` // bytes, of the file system that holds containers
	Load1      float32    `cbor:"4,keyasint,omitempty"`
	UptimeSecs uint64     `cbor:"5,keyasint,omitempty"`
	GPUUsed    []GPUUsage `cbor:"6,keyasint,omitempty"`
}

// GPUUsage is one GPU now.
type GPUUsage struct {
	UUID        string  `cbor:"1,keyasint"`
	Utilisation float32 `cbor:"2,keyasint,omitempty"` // percent
	MemoryUsed  uint64  `cbor:"3,keyasint,omitempty"` // bytes
	Temperature float32 `cbor:"4,keyasint,omitempty"` // °C
	PowerWatts  float32 `cbor:"5,keyasint,omitempty"`
	Healthy     bool    `cbor:"6,keyasint"`
}

// Ack is control's answer: what it has stored. Zero fields say nothing.
type Ack struct {
	Version   int    `cbor:"1,keyasint"`
	Status    uint64 `cbor:"2,keyasint,omitempty"` // Status.Seq
	Event     uint64 `cbor:"3,keyasint,omitempty"` // highest Event.Seq with none missing before it
	Telemetry uint64 `cbor:"4,keyasint,omitempty"` // highest sequence with none missing before it
	Spread    uint64 `cbor:"5,keyasint,omitempty"` // seconds over which idle hosts come back when they lose this server
}

// MaxSpread is the most that a host waits, in seconds.
const MaxSpread = 300

// Validate checks the version and what a hostile host could send too much of.
func (h *Hello) Validate() error {
	if err := checkVersion("hello", h.Version); err != nil {
		return err
	}
	if len(h.Capabilities) > 64 || len(h.Digest) > 64 || tooLong(h.BootID, h.Agent) || anyTooLong(h.Capabilities) ||
		tooMany(h.Epoch, h.Observed, h.Applied) {
		return fmt.Errorf("hello is over its limits")
	}
	return h.Inventory.Validate()
}

// Validate checks the version.
func (p *Presence) Validate() error {
	if tooMany(p.Epoch) {
		return fmt.Errorf("presence is over its limits")
	}
	return checkVersion("presence", p.Version)
}

// Validate checks the version, what a hostile host could send too much of, and
// that a database takes it: hosts that say something at once share a transaction.
func (s *Status) Validate() error {
	if err := checkVersion("status", s.Version); err != nil {
		return err
	}
	if len(s.Workloads) > 2*MaxWorkloads || len(s.Events) > MaxEvents || len(s.Fault) > MaxText || unkept(s.Fault) || tooMany(s.Epoch, s.Seq, s.Observed, s.Applied) {
		return fmt.Errorf("status is over its limits")
	}
	for _, w := range s.Workloads {
		if tooLong(w.ID, w.Phase, w.Address) || len(w.Message) > MaxText || tooMany(w.Revision, w.Done, w.Total) ||
			unkept(w.ID, w.Phase, w.Address, w.Message) || noMoments(w.StartedAt, w.RetryAt) || w.ExitCode != nil && int(int32(*w.ExitCode)) != *w.ExitCode {
			return fmt.Errorf("status of workload %.40q is over its limits", w.ID)
		}
	}
	for _, e := range s.Events {
		if tooLong(e.Severity, e.Reason, e.Workload) || len(e.Message) > MaxText || tooMany(e.Seq) ||
			unkept(e.Severity, e.Reason, e.Workload, e.Message) || noMoments(e.At) {
			return fmt.Errorf("event %d is over its limits", e.Seq)
		}
	}
	return s.Usage.validate()
}

// Fit makes of a status one that Validate takes, whatever programs and registries
// had a say in: control hears nothing of a host whose status it refuses. Of more
// workloads than there may be those go first that are on their way out, and what
// is applied is not said, for what is missing would pass for removed.
func (s *Status) Fit() {
	for i := range s.Events {
		s.Events[i].Message = Cut(s.Events[i].Message)
	}
	if len(s.Workloads) > 2*MaxWorkloads {
		leaving := func(w WorkloadStatus) bool { return w.Phase == PhaseStopping }
		staying := slices.DeleteFunc(slices.Clone(s.Workloads), leaving)
		for _, w := range s.Workloads {
			if leaving(w) {
				staying = append(staying, w)
			}
		}
		s.Workloads, s.Applied = staying[:2*MaxWorkloads], 0
	}
	for i := range s.Workloads {
		w := &s.Workloads[i]
		w.Message, w.Done, w.Total = Cut(w.Message), min(w.Done, maxCount), min(w.Total, maxCount)
	}
}

func (u *Usage) validate() error {
	if len(u.GPUUsed) > maxGPUs || !finite(u.CPUPercent, u.Load1) || tooMany(u.MemoryUsed, u.DiskUsed, u.UptimeSecs) {
		return fmt.Errorf("usage is over its limits")
	}
	for _, g := range u.GPUUsed {
		if err := g.Validate(); err != nil {
			return err
		}
	}
	return nil
}

// Validate checks what a hostile host could send too much of.
func (g *GPUUsage) Validate() error {
	if g.UUID == "" || tooLong(g.UUID) || unkept(g.UUID) || tooMany(g.MemoryUsed) || !finite(g.Utilisation, g.Temperature, g.PowerWatts) {
		return fmt.Errorf("usage of GPU %.40q is over its limits", g.UUID)
	}
	return nil
}

// Validate checks the version and that nobody is kept away for long.
func (a *Ack) Validate() error {
	if a.Spread > MaxSpread {
		return fmt.Errorf("ack is over its limits")
	}
	return checkVersion("ack", a.Version)
}

func checkVersion(document string, version int) error {
	if version != Version {
		return fmt.Errorf("%s has version %d, this program knows %d: upgrade the older end", document, version, Version)
	}
	return nil
}
