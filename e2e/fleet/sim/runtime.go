package sim

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/remotegpu/remotegpu/edge-agent/reconcile"
	"github.com/remotegpu/remotegpu/protocol"
)

// Runtime is a container runtime in memory. Like containerd it has no memory of
// wishes: it does steps and tells what is there.
type Runtime struct {
	step time.Duration // what a step takes at most

	mu     sync.Mutex // guards what follows
	boxes  map[string]*reconcile.Container
	images map[string]uint64   // workload → revision
	left   map[string]struct{} // workloads with volumes
	pid    uint32
	notify func(reconcile.Notice)
	down   bool
}

var _ reconcile.Runtime = (*Runtime)(nil)

func newRuntime(step time.Duration) *Runtime {
	return &Runtime{step: step, boxes: map[string]*reconcile.Container{}, images: map[string]uint64{}, left: map[string]struct{}{}, pid: 1000}
}

// Containers returns what there is, by workload and revision.
func (r *Runtime) Containers() []reconcile.Container {
	r.mu.Lock()
	defer r.mu.Unlock()
	list := make([]reconcile.Container, 0, len(r.boxes))
	for _, c := range r.boxes {
		list = append(list, *c)
	}
	slices.SortFunc(list, func(a, b reconcile.Container) int { return int(a.Pid) - int(b.Pid) })
	return list
}

// Running returns how many containers run.
func (r *Runtime) Running() (n int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, c := range r.boxes {
		if c.State == reconcile.Running {
			n++
		}
	}
	return n
}

// runs reports whether a workload's container does.
func (r *Runtime) runs(workload string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, c := range r.boxes {
		if c.Workload == workload && c.State == reconcile.Running {
			return true
		}
	}
	return false
}

// Crash ends a workload's container with a code, as its program may at any time.
func (r *Runtime) Crash(workload string, code int) {
	r.mu.Lock()
	notify := r.notify
	var id string
	for _, c := range r.boxes {
		if c.Workload == workload && c.State == reconcile.Running {
			c.State, c.Unreaped, c.ExitCode, c.ExitedAt, id = reconcile.Exited, true, &code, time.Now(), c.ID
		}
	}
	r.mu.Unlock()
	if id != "" && notify != nil {
		notify(reconcile.Notice{Container: id})
	}
}

// Down makes the runtime unreachable, or reachable again; its containers run on.
func (r *Runtime) Down(yes bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.down = yes
}

// Observe returns what there is.
func (r *Runtime) Observe(context.Context) (reconcile.Have, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.down {
		return reconcile.Have{}, reconcile.Faultf(reconcile.ErrUnavailable, "the container runtime does not answer")
	}
	h := reconcile.Have{Images: make(map[string]uint64, len(r.images))}
	for _, c := range r.boxes {
		h.Containers = append(h.Containers, *c)
	}
	for id, rev := range r.images {
		h.Images[id] = rev
	}
	for id := range r.left {
		h.Leftovers = append(h.Leftovers, id)
	}
	slices.Sort(h.Leftovers)
	slices.SortFunc(h.Containers, func(a, b reconcile.Container) int { return int(a.Revision) - int(b.Revision) })
	return h, nil
}

// do takes the time of a step and then does it.
func (r *Runtime) do(ctx context.Context, step func() error) error {
	if r.step > 0 {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(rand.N(r.step)):
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.down {
		return fmt.Errorf("do a step: %w", reconcile.ErrUnavailable)
	}
	return step()
}

// Pull has any image there is.
func (r *Runtime) Pull(ctx context.Context, w protocol.Workload, progress func(done, total uint64)) error {
	progress(1, 2)
	return r.do(ctx, func() error {
		r.images[w.ID] = w.Revision
		return nil
	})
}

// Create makes the container of a workload's revision.
func (r *Runtime) Create(ctx context.Context, w protocol.Workload) error {
	return r.do(ctx, func() error {
		id := fmt.Sprintf("%s-%d", w.ID, w.Revision)
		if r.boxes[id] == nil {
			r.boxes[id] = &reconcile.Container{ID: id, Workload: w.ID, Revision: w.Revision, State: reconcile.Created, GPUs: slices.Clone(w.GPUs), Grace: time.Second}
		}
		r.left[w.ID] = struct{}{}
		return nil
	})
}

// Start starts a container.
func (r *Runtime) Start(ctx context.Context, _ protocol.Workload, c reconcile.Container) error {
	return r.do(ctx, func() error {
		b := r.boxes[c.ID]
		if b == nil {
			return errors.New("there is no such container")
		}
		if b.State == reconcile.Running {
			return nil
		}
		if b.State == reconcile.Exited {
			b.Restarts++
		}
		r.pid++
		b.State, b.Pid, b.StartedAt, b.Unreaped = reconcile.Running, r.pid, time.Now(), false
		return nil
	})
}

// Reap notes how a container ended.
func (r *Runtime) Reap(ctx context.Context, c reconcile.Container) error {
	return r.do(ctx, func() error {
		if b := r.boxes[c.ID]; b != nil {
			b.Unreaped = false
		}
		return nil
	})
}

// Stop ends a container.
func (r *Runtime) Stop(ctx context.Context, c reconcile.Container) error {
	return r.do(ctx, func() error {
		if b := r.boxes[c.ID]; b != nil && b.State == reconcile.Running {
			code := 143 // of SIGTERM
			b.State, b.ExitCode, b.ExitedAt = reconcile.Exited, &code, time.Now()
		}
		return nil
	})
}

// Remove deletes a container.
func (r *Runtime) Remove(ctx context.Context, c reconcile.Container) error {
	return r.do(ctx, func() error {
		delete(r.boxes, c.ID)
		return nil
	})
}

// Purge deletes what is left of a workload.
func (r *Runtime) Purge(ctx context.Context, workload string) error {
	return r.do(ctx, func() error {
		delete(r.left, workload)
		delete(r.images, workload)
		return nil
	})
}

// Sweep has nothing to do: images cost nothing.
func (r *Runtime) Sweep(context.Context, []protocol.Workload) error { return nil }

// Watch tells of crashes.
func (r *Runtime) Watch(ctx context.Context, notify func(reconcile.Notice)) error {
	r.mu.Lock()
	r.notify = notify
	r.mu.Unlock()
	<-ctx.Done()
	return ctx.Err()
}
