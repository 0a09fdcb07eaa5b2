package reconcile

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/remotegpu/remotegpu/protocol"
)

// fake is a Runtime in memory. It fails at random while chaos is above zero,
// also after having done its work, and records breaches of the invariants.
type fake struct {
	mu       sync.Mutex
	rng      *rand.Rand
	chaos    float64
	down     bool
	faults   map[string]error // by workload: what Pull answers
	boxes    map[string]*Container
	images   map[string]uint64
	left     map[string]bool
	busy     map[string]bool
	breaches []string
	calls    map[Kind]int
	pid      uint32
	looks    int
	notify   func(Notice)
	slow     time.Duration // how long a step takes at most
}

func newFake(seed uint64) *fake {
	return &fake{
		rng: rand.New(rand.NewPCG(seed, 1)), boxes: map[string]*Container{}, images: map[string]uint64{},
		left: map[string]bool{}, busy: map[string]bool{}, faults: map[string]error{}, calls: map[Kind]int{}, slow: time.Second,
	}
}

var errChaos = errors.New("chaos")

// step runs f as the only step of a workload, with time and failures around.
func (r *fake) step(ctx context.Context, k Kind, workload string, f func() error) error {
	r.mu.Lock()
	if r.busy[workload] {
		r.breaches = append(r.breaches, fmt.Sprintf("two steps at once for %s", workload))
	}
	r.busy[workload] = true
	r.calls[k]++
	wait := time.Duration(r.rng.Int64N(int64(r.slow)))
	r.mu.Unlock()
	var err error
	select {
	case <-ctx.Done():
		err = ctx.Err()
	case <-time.After(wait):
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.busy[workload] = false
	switch {
	case err != nil:
		return err
	case r.down:
		return fmt.Errorf("step: %w", ErrUnavailable)
	case r.rng.Float64() < r.chaos/2:
		return errChaos
	}
	if err := f(); err != nil {
		return err
	}
	if r.rng.Float64() < r.chaos/2 {
		return errChaos
	}
	return nil
}

func (r *fake) Observe(context.Context) (Have, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.looks++
	if r.down {
		return Have{}, &Fault{Message: "containerd does not answer", Err: ErrUnavailable}
	}
	h := Have{Images: map[string]uint64{}}
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
	slices.SortFunc(h.Containers, func(a, b Container) int { return int(a.Revision) - int(b.Revision) })
	return h, nil
}

func (r *fake) Pull(ctx context.Context, w protocol.Workload, progress func(done, total uint64)) error {
	progress(1, 2)
	return r.step(ctx, Pull, w.ID, func() error {
		if err := r.faults[w.ID]; err != nil {
			return err
		}
		r.images[w.ID] = w.Revision
		return nil
	})
}

func (r *fake) Create(ctx context.Context, w protocol.Workload) error {
	return r.step(ctx, Create, w.ID, func() error {
		for _, c := range r.boxes {
			if c.Workload == w.ID {
				r.breaches = append(r.breaches, "second container for "+w.ID)
			}
		}
		id := fmt.Sprintf("%s-%d", w.ID, w.Revision)
		r.boxes[id] = &Container{ID: id, Workload: w.ID, Revision: w.Revision, State: Created, GPUs: w.GPUs}
		r.left[w.ID] = true
		return nil
	})
}

func (r *fake) Start(ctx context.Context, w protocol.Workload, c Container) error {
	return r.step(ctx, Start, w.ID, func() error {
		b := r.boxes[c.ID]
		if b == nil {
			return errors.New("no container")
		}
		if b.State == Running {
			return nil
		}
		if b.State == Exited {
			b.Restarts++
		}
		for _, o := range r.boxes {
			if o.State == Running && shared(o.GPUs, b.GPUs) != "" {
				r.breaches = append(r.breaches, "GPU used twice by "+o.ID+" and "+b.ID)
			}
		}
		r.pid++
		b.State, b.Pid, b.StartedAt = Running, r.pid, time.Now()
		return nil
	})
}

func (r *fake) Reap(ctx context.Context, c Container) error {
	return r.step(ctx, Reap, c.Workload, func() error {
		if b := r.boxes[c.ID]; b != nil {
			b.Unreaped = false
		}
		return nil
	})
}

func (r *fake) Stop(ctx context.Context, c Container) error {
	return r.step(ctx, Stop, c.Workload, func() error {
		r.end(c.ID, 143)
		return nil
	})
}

func (r *fake) Remove(ctx context.Context, c Container) error {
	return r.step(ctx, Remove, c.Workload, func() error {
		delete(r.boxes, c.ID)
		return nil
	})
}

func (r *fake) Purge(ctx context.Context, workload string) error {
	return r.step(ctx, Purge, workload, func() error {
		for _, c := range r.boxes {
			if c.Workload == workload {
				r.breaches = append(r.breaches, "purged under a container: "+workload)
			}
		}
		delete(r.left, workload)
		return nil
	})
}

func (r *fake) Sweep(context.Context, []protocol.Workload) error { return nil }

func (r *fake) Watch(ctx context.Context, notify func(Notice)) error {
	r.mu.Lock()
	r.notify = notify
	r.mu.Unlock()
	<-ctx.Done()
	return ctx.Err()
}

// end makes a running container end; the caller holds mu.
func (r *fake) end(id string, exit int) {
	if b := r.boxes[id]; b != nil && b.State == Running {
		b.State, b.Unreaped, b.ExitedAt, b.ExitCode, b.Pid = Exited, true, time.Now(), &exit, 0
	}
}

// crash ends a container and tells the watcher.
func (r *fake) crash(id string, exit int) {
	r.mu.Lock()
	r.end(id, exit)
	notify := r.notify
	r.mu.Unlock()
	if notify != nil {
		notify(Notice{Container: id})
	}
}

func (r *fake) set(f func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	f()
}
