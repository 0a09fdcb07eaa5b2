// Package reconcile makes a host's containers agree with its desired document.
//
// It owns the decision what to do next (Plan, pure) and the one goroutine that
// does it (Loop): order, retries, restart policy and what is reported about
// every workload. It does not know containerd, networks or disks; a Runtime
// does the steps. Its invariant: what Observe sees is the truth, nothing is
// remembered over a restart of the agent, at most one step is in flight per
// workload, and no container is touched before a document has been applied.
//
// The way of one workload, one step at a time:
//
//	(nothing) -Pull-> image here -Create-> created -Start-> running
//	running   -(ends)-> exited, task dead -Reap-> exited -Start-> running
//	running   -Stop-> exited -Reap-> exited -Remove-> (nothing)
//	(gone from the document) Stop, Remove, then Purge: network, volumes, logs
package reconcile

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/remotegpu/remotegpu/protocol"
)

// State of a container, as far as containerd tells.
type State int

// States.
const (
	Created State = iota // never started
	Running
	Exited
	Unclear // its task exists but does not answer: left alone
)

func (s State) String() string {
	return [...]string{"created", "running", "exited", "unclear"}[s]
}

// Container is one container on the host, as Observe finds it.
type Container struct {
	ID        string
	Workload  string // empty: not made by an agent
	Revision  uint64
	State     State
	Unreaped  bool // Exited, but how it ended is not recorded yet
	Pid       uint32
	StartedAt time.Time // of the last run
	ExitedAt  time.Time
	ExitCode  *int // of the last run that ended; nil: none did
	Restarts  uint32
	GPUs      []string      // UUIDs
	Grace     time.Duration // between SIGTERM and SIGKILL
	Disk      uint64        // bytes of the writable layer, as last measured
	Address   string        // in the workload's network
}

// Have is everything on the host that belongs to workloads.
type Have struct {
	Containers []Container
	Images     map[string]uint64 // workload → revision whose image is here, unpacked
	Leftovers  []string          // workloads that have a network, a run dir, volumes or a log, sorted
}

// Runtime does the steps. Every method is idempotent, may be cancelled at any
// time, and returns a *Fault where it knows what a person should do next. The
// one implementation is package ctr.
type Runtime interface {
	Observe(ctx context.Context) (Have, error)
	// Pull fetches and unpacks the image; progress gets bytes here and bytes in all.
	Pull(ctx context.Context, w protocol.Workload, progress func(done, total uint64)) error
	Create(ctx context.Context, w protocol.Workload) error
	// Start attaches the network and starts the created or exited container.
	Start(ctx context.Context, w protocol.Workload, c Container) error
	// Reap records how a container ended and deletes its dead task.
	Reap(ctx context.Context, c Container) error
	// Stop ends the container with SIGTERM and, after c.Grace, SIGKILL.
	Stop(ctx context.Context, c Container) error
	// Remove deletes the container with its writable layer, running or not.
	Remove(ctx context.Context, c Container) error
	// Purge deletes what is left of a workload without containers.
	Purge(ctx context.Context, workload string) error
	// Sweep deletes images that none of want needs.
	Sweep(ctx context.Context, want []protocol.Workload) error
	// Watch calls notify for what happens to containers until it fails.
	Watch(ctx context.Context, notify func(Notice)) error
}

// Notice is something that happened to a container outside of any step.
type Notice struct {
	Container   string // id
	OutOfMemory bool   // the kernel killed one of its processes; otherwise its task ended
}

// ErrUnavailable is wrapped by errors of a Runtime that cannot be reached now.
// It blames no workload.
var ErrUnavailable = errors.New("container runtime is unavailable")

// Fault is a failure whose reason is understood.
type Fault struct {
	Final   bool   // cannot work until the document changes
	Message string // a sentence for a person: what is wrong and what to do next
	Err     error  // the cause, for the log; may be nil
}

// Faultf returns a fault that is tried again.
func Faultf(cause error, format string, args ...any) *Fault {
	return &Fault{Message: fmt.Sprintf(format, args...), Err: cause}
}

// Finalf returns a fault that stays until the document changes.
func Finalf(cause error, format string, args ...any) *Fault {
	return &Fault{Final: true, Message: fmt.Sprintf(format, args...), Err: cause}
}

func (f *Fault) Error() string {
	if f.Err == nil {
		return f.Message
	}
	return f.Message + ": " + f.Err.Error()
}

// Unwrap returns the cause.
func (f *Fault) Unwrap() error { return f.Err }
