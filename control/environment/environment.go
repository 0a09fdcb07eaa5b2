// Package environment keeps what people work in: containers with GPUs.
//
// It owns environments, their wanted and reported state and their events. It
// does not choose hosts (scheduler), send documents (dispatch) or carry shells
// (access). Its invariant: a change of what is wanted, the GPUs that go with
// it, its audit entry and the host's new document are one transaction; and an
// environment keeps its name, and its host with its files, for life, unless
// the host is retired.
//
// What is wanted and what the person sees:
//
//	create ──► pending ──► pulling ──► starting ──► running ◄──► backoff
//	             ▲  (waits for a host)                │
//	   start, restart                                ├──► exited, failed
//	             │                                   ▼ stop
//	          stopped ◄───────────────────────── stopping
//	  delete, from anywhere: deleting, until the host says that it is gone
package environment

import (
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/remotegpu/remotegpu/control/errs"
	"github.com/remotegpu/remotegpu/control/scheduler"
	"github.com/remotegpu/remotegpu/protocol"
)

// Environment is a container with GPUs and files that outlive it.
type Environment struct {
	ID        string             `db:"id" json:"id"`
	Workspace string             `db:"workspace_id" json:"workspace"`
	Name      string             `db:"name" json:"name" doc:"Unique in the workspace; the container's hostname and the user name for ssh"`
	Owner     string             `db:"owner_id" json:"owner" doc:"Who made it"`
	Image     string             `db:"image" json:"image" doc:"{control} as registry means the built-in one"`
	Command   []string           `db:"command" json:"command" doc:"Empty: the container waits for sessions"`
	Env       map[string]string  `db:"env" json:"env,omitempty"`
	User      string             `db:"run_as" json:"user,omitempty"`
	Workdir   string             `db:"workdir" json:"workdir,omitempty"`
	Resources Resources          `db:"resources" json:"resources"`
	Mounts    []Mount            `db:"mounts" json:"mounts"`
	Affinity  scheduler.Affinity `db:"affinity" json:"affinity"`
	Prefer    scheduler.Affinity `db:"prefer" json:"prefer"`
	Restart   string             `db:"restart" json:"restart" enum:"always,on-failure,never"`
	Priority  int                `db:"priority" json:"priority"`
	Host      string             `db:"host_id" json:"host,omitempty" doc:"Id of the host that has its files; empty: not placed yet"`
	HostName  string             `db:"host_name" json:"host_name,omitempty"`
	GPUs      []string           `db:"gpus" json:"gpus" doc:"UUIDs that it holds now"`
	Revision  uint64             `db:"revision" json:"revision" doc:"Grows with every new container"`
	Want      string             `db:"want" json:"want" enum:"running,stopped,deleted"`
	CreatedAt time.Time          `db:"created_at" json:"created_at"`
	ChangedAt time.Time          `db:"changed_at" json:"changed_at" doc:"When it came into its phase"`

	Phase     string     `db:"phase" json:"phase" doc:"pending, pulling, starting, running, backoff, stopping, stopped, exited, failed, deleting or unreachable"`
	Message   string     `db:"message" json:"message,omitempty" doc:"Why it is in this phase and what to do next"`
	Pid       uint32     `db:"pid" json:"pid,omitempty" doc:"Of the container's first process, on the host"`
	StartedAt *time.Time `db:"started_at" json:"started_at,omitempty"`
	ExitCode  *int       `db:"exit_code" json:"exit_code,omitempty"`
	Restarts  uint32     `db:"restarts" json:"restarts"`
	RetryAt   *time.Time `db:"retry_at" json:"retry_at,omitempty"`
	Pulled    uint64     `db:"pulled" json:"pulled,omitempty" doc:"Bytes"`
	PullTotal uint64     `db:"pull_total" json:"pull_total,omitempty" doc:"Bytes, as far as known"`
	Address   string     `db:"address" json:"address,omitempty" doc:"In the environment's own network"`

	Generation       uint64 `db:"generation" json:"-"`        // of the host's document that carries the last change
	ReportedRevision uint64 `db:"reported_revision" json:"-"` // of the container that exists
	Bytes            int    `db:"document_bytes" json:"-"`    // about what it takes in its host's document
	Placed           bool   `db:"placed" json:"-"`            // holds an allocation
	WaitsFor         string `db:"waits_for" json:"-"`         // the scheduler's sentence while it waits; else empty
	HostState        string `db:"host_state" json:"-"`        // hostUp, hostAway …; empty without a host
}

// Resources is what an environment may use. Zero: no GPUs, no limit.
type Resources struct {
	GPUs      int    `json:"gpus,omitempty" minimum:"0" maximum:"64"`
	GPUModel  string `json:"gpu_model,omitempty" maxLength:"64" doc:"Part of the model's name, in any case"`
	GPUMemory uint64 `json:"gpu_memory,omitempty" doc:"Least memory of each GPU, bytes"`
	MilliCPU  uint64 `json:"milli_cpu,omitempty" doc:"Thousandths of a core"`
	Memory    uint64 `json:"memory,omitempty" doc:"Bytes"`
	Disk      uint64 `json:"disk,omitempty" doc:"Bytes of the container's own files"`
	Shm       uint64 `json:"shm,omitempty" doc:"Bytes of /dev/shm; 0: 64 MiB"`
	Pids      uint64 `json:"pids,omitempty" doc:"Processes and threads; 0: 4096"`
}

// Mount is a folder that outlives the container, on its host.
type Mount struct {
	Target string `json:"target" maxLength:"256" doc:"Absolute path in the container"`
	Volume string `json:"volume" maxLength:"64" doc:"Name of a folder kept for the environment until it is deleted"`
}

// What is wanted of an environment.
const (
	wantRunning = protocol.WantRunning
	wantStopped = protocol.WantStopped
	wantDeleted = "deleted"
)

// Phases beyond those that an agent reports.
const (
	PhaseDeleting    = "deleting"
	PhaseUnreachable = "unreachable" // its host is offline; it may well go on there
)

// Whereabouts of an environment's host.
const (
	hostUp   = "up"
	hostAway = "away" // offline: keeps everything
	hostGone = "gone" // retired: its files are lost

	hostDrained = "drained" // draining or in maintenance: runs nothing
)

// Starting reports whether the environment is on its way to running.
func (e *Environment) Starting() bool {
	return slices.Contains([]string{protocol.PhasePending, protocol.PhasePulling, protocol.PhaseStarting}, e.Phase)
}

// Advice says what to do about an environment that does not run.
func (e *Environment) Advice() string {
	switch {
	case e.Phase == protocol.PhaseStopped, e.Phase == protocol.PhaseStopping:
		return "Start it: remotegpu env start " + e.Name
	case e.Phase == protocol.PhaseFailed && e.Want == wantStopped: // its host was retired
		return sentence(e.Message) + "Start it: remotegpu env start " + e.Name
	case e.Phase == protocol.PhaseExited, e.Phase == protocol.PhaseFailed:
		return sentence(e.Message) + "Then: remotegpu env restart " + e.Name
	case e.Phase == protocol.PhaseBackoff:
		return sentence(e.Message) + "It is tried again by itself; see: remotegpu env events " + e.Name
	case e.Phase == PhaseDeleting:
		return "Create a new one: remotegpu env create"
	}
	return sentence(e.Message) + "See: remotegpu env events " + e.Name
}

// sentence is a message as it stands between others.
func sentence(message string) string {
	if message == "" {
		return ""
	}
	first, size := utf8.DecodeRuneInString(message)
	return string(unicode.ToUpper(first)) + strings.TrimSuffix(message[size:], ".") + ". "
}

// operation is what a person does to an environment.
type operation string

const (
	opStart   operation = "start"
	opStop    operation = "stop"
	opRestart operation = "restart"
	opDelete  operation = "delete"
)

// effect is what an operation does in a phase.
type effect int

const (
	refuse  effect = iota // with a sentence
	nothing               // it is so already
	run                   // wanted running, in a new container
	halt                  // wanted stopped
	remove                // wanted gone
)

// legal is every operation in every stored phase. What is not in it is refused.
var legal = map[operation]map[string]effect{
	opStart: {
		protocol.PhasePending: nothing, protocol.PhasePulling: nothing, protocol.PhaseStarting: nothing, protocol.PhaseRunning: nothing, protocol.PhaseBackoff: nothing,
		protocol.PhaseStopping: run, protocol.PhaseStopped: run, protocol.PhaseExited: run, protocol.PhaseFailed: run,
	},
	opStop: {
		protocol.PhasePending: halt, protocol.PhasePulling: halt, protocol.PhaseStarting: halt, protocol.PhaseRunning: halt, protocol.PhaseBackoff: halt,
		protocol.PhaseStopping: nothing, protocol.PhaseStopped: nothing, protocol.PhaseExited: halt, protocol.PhaseFailed: halt,
	},
	opRestart: {
		protocol.PhasePending: nothing, protocol.PhasePulling: run, protocol.PhaseStarting: run, protocol.PhaseRunning: run, protocol.PhaseBackoff: run,
		protocol.PhaseExited: run, protocol.PhaseFailed: run,
	},
	opDelete: {
		protocol.PhasePending: remove, protocol.PhasePulling: remove, protocol.PhaseStarting: remove, protocol.PhaseRunning: remove, protocol.PhaseBackoff: remove,
		protocol.PhaseStopping: remove, protocol.PhaseStopped: remove, protocol.PhaseExited: remove, protocol.PhaseFailed: remove, PhaseDeleting: nothing,
	},
}

// allow says what op does to e now, or why not.
func (e *Environment) allow(op operation) (effect, error) {
	if what := legal[op][e.Phase]; what != refuse {
		return what, nil
	}
	if e.Phase == PhaseDeleting {
		return refuse, errs.Ef(errs.Conflict, "Environment %s is being deleted; create a new one instead.", e.Name)
	}
	return refuse, errs.Ef(errs.Conflict, "Environment %s is %s; start it with: remotegpu env start %s", e.Name, e.Phase, e.Name)
}

// settle is the phase to store for what a host reports of an environment,
// given what is wanted: what the container from before does is not the news.
func settle(want string, revision uint64, reported protocol.WorkloadStatus) (phase, message string) {
	switch want {
	case wantDeleted:
		return PhaseDeleting, reported.Message
	case wantStopped:
		if reported.Phase == protocol.PhaseStopped {
			return protocol.PhaseStopped, ""
		}
		return protocol.PhaseStopping, reported.Message
	}
	switch {
	case reported.Phase == protocol.PhaseStopped, reported.Phase == protocol.PhaseStopping:
		return protocol.PhaseStarting, reported.Message
	case reported.Phase == protocol.PhaseRunning && reported.Revision != revision:
		return protocol.PhaseStarting, "the container from before runs until the new one can start"
	case !known[reported.Phase]:
		return protocol.PhasePending, "the host says " + reported.Phase + ", which this control plane does not know; upgrade it"
	}
	return reported.Phase, reported.Message
}

var known = map[string]bool{
	protocol.PhasePending: true, protocol.PhasePulling: true, protocol.PhaseStarting: true, protocol.PhaseRunning: true, protocol.PhaseBackoff: true,
	protocol.PhaseStopping: true, protocol.PhaseStopped: true, protocol.PhaseExited: true, protocol.PhaseFailed: true,
}

// present completes e for a person: why it waits, and what its host's absence
// means for it.
func (e *Environment) present() {
	if e.WaitsFor != "" && e.Want == wantRunning {
		e.Phase, e.Message = protocol.PhasePending, e.WaitsFor
		return
	}
	if e.HostState != hostAway {
		return
	}
	switch e.Phase {
	case protocol.PhaseStopped, protocol.PhaseExited, protocol.PhaseFailed:
	case PhaseDeleting:
		e.Message = fmt.Sprintf("host %s is offline; the environment goes when the host is back, or when a platform admin retires it", e.HostName)
	default:
		e.Message = fmt.Sprintf("host %s is offline; the environment was %s and, with the host itself up, goes on there. What you ask for now happens when the host is back", e.HostName, e.Phase)
		e.Phase = PhaseUnreachable
	}
}

// request is what the scheduler is asked for.
func (e *Environment) request() scheduler.Request {
	r := e.Resources
	return scheduler.Request{
		Workload: e.ID, Workspace: e.Workspace, Priority: e.Priority, OS: "linux",
		GPUs: r.GPUs, GPUModel: r.GPUModel, GPUMemory: r.GPUMemory, MilliCPU: r.MilliCPU, Memory: r.Memory, Disk: r.Disk,
		Require: e.Affinity, Prefer: e.Prefer, Home: e.Host,
	}
}

// workload is the environment in its host's document. What does not run is
// kept short there.
func (e *Environment) workload() protocol.Workload {
	w := protocol.Workload{
		ID: e.ID, Revision: e.Revision, Name: e.Name, Workspace: e.Workspace, Want: wantStopped,
		Image: e.Image, User: e.User, Workdir: e.Workdir, Restart: e.Restart, PullAuth: builtIn(e.Image),
		Limits: protocol.Limits{MilliCPU: e.Resources.MilliCPU, Memory: e.Resources.Memory, Pids: e.Resources.Pids, Shm: e.Resources.Shm, Disk: e.Resources.Disk},
	}
	if e.effective() == wantRunning {
		w.Want, w.GPUs, w.Command, w.Env = wantRunning, e.GPUs, e.Command, e.Env
		for _, m := range e.Mounts {
			w.Mounts = append(w.Mounts, protocol.Mount{Target: m.Target, Volume: m.Volume})
		}
	}
	return w
}

// documentBytes is about what e takes in its host's document while it runs.
func (e *Environment) documentBytes() (int, error) {
	running := *e
	running.Want, running.Placed, running.HostState = wantRunning, true, hostUp
	for range e.Resources.GPUs {
		running.GPUs = append(running.GPUs, strings.Repeat("x", 48)) // "GPU-" and a UUID, or a longer one
	}
	b, err := protocol.Marshal(running.workload())
	return len(b), err
}
