package gpu

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/remotegpu/remotegpu/edge-agent/gpu/wire"
	"github.com/remotegpu/remotegpu/protocol"
)

// patience is how long the child may take and how it is brought back.
type patience struct {
	start   time.Duration // for the first answer: without the persistence daemon a driver takes 2 s per GPU to wake up
	answer  time.Duration // for every later one
	first   time.Duration // pause after the first failure, doubled up to most
	most    time.Duration
	refresh time.Duration // time between two inventories
}

var childPatience = patience{start: 60 * time.Second, answer: 10 * time.Second, first: time.Second, most: time.Minute, refresh: time.Minute}

// child is the source that asks NVML in a process of its own. One goroutine
// talks to it; callers read what is known.
type child struct {
	cfg  Config
	wait patience
	log  *slog.Logger

	cancel context.CancelFunc
	done   chan struct{} // closed when the goroutine has ended
	first  chan struct{} // closed at the first inventory or failure
	once   sync.Once

	mu      sync.Mutex // guards what follows
	driver  Driver
	gpus    []protocol.GPU
	samples []Sample
	err     error // nil while the child answers
}

func openChild(ctx context.Context, cfg Config) *child { return startChild(ctx, cfg, childPatience) }

func startChild(ctx context.Context, cfg Config, wait patience) *child {
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	c := &child{cfg: cfg, wait: wait, log: cfg.Log, cancel: cancel, done: make(chan struct{}), first: make(chan struct{})}
	go c.run(ctx)
	return c
}

func (c *child) Inventory(ctx context.Context) ([]protocol.GPU, Driver, error) {
	select {
	case <-c.first:
	case <-ctx.Done():
		return nil, Driver{}, fmt.Errorf("the NVIDIA driver has not answered yet: %w", ctx.Err())
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return cloneGPUs(c.gpus), c.driver, c.err
}

func (c *child) Sample(context.Context) ([]Sample, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.samples), c.err
}

func (c *child) Capabilities() []string { return []string{"gpu.cdi"} }

// Close ends the child. It does not wait for one that the driver holds.
func (c *child) Close() error {
	c.cancel()
	<-c.done
	return nil
}

// run starts the child again and again, with growing pauses, until ctx ends.
func (c *child) run(ctx context.Context) {
	defer close(c.done)
	pause := c.wait.first
	for {
		began := time.Now()
		err := c.life(ctx)
		if ctx.Err() != nil {
			return
		}
		c.failed(err)
		if time.Since(began) > c.wait.most {
			pause = c.wait.first
		}
		c.log.Warn("nvml child ended", "err", err, "again_in", pause)
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause/2 + rand.N(pause/2+1)):
		}
		pause = min(2*pause, c.wait.most)
	}
}

// life is one child from its start to its end; the error says why it ended.
func (c *child) life(ctx context.Context) error {
	p, err := startProcess(c.cfg.NVMLProgram, c.log)
	if err != nil {
		return fmt.Errorf("start %s: %w: install the agent again", c.cfg.NVMLProgram, err)
	}
	defer func() { c.end(ctx, p) }()
	stop := context.AfterFunc(ctx, p.kill)
	defer stop()

	if err := c.refresh(p, c.wait.start); err != nil {
		return err
	}
	refreshed := time.Now()
	tick := time.NewTicker(c.cfg.Every)
	defer tick.Stop()
	for {
		reply, err := p.ask(wire.Request{Op: wire.OpSample}, c.wait.answer)
		if err != nil {
			return err
		}
		c.sampled(reply.Samples)
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
		if time.Since(refreshed) >= c.wait.refresh {
			if err := c.refresh(p, c.wait.answer); err != nil {
				return err
			}
			refreshed = time.Now()
		}
	}
}

// end kills the child and waits for it: a second one beside a process that
// hangs in the driver would hang as well.
func (c *child) end(ctx context.Context, p *process) {
	p.kill()
	select {
	case <-p.exited:
		return
	case <-time.After(time.Second):
	}
	c.failed(errors.New("the NVIDIA driver hangs and its process cannot be ended: reboot the host"))
	select {
	case <-p.exited:
	case <-ctx.Done():
	}
}

// refresh asks for the inventory and writes the CDI specification when the
// driver or the set of GPUs is another than before.
func (c *child) refresh(p *process, limit time.Duration) error {
	reply, err := p.ask(wire.Request{Op: wire.OpInventory}, limit)
	if err != nil {
		return err
	}
	if len(reply.GPUs) == 0 || cdiKey(reply) == p.cdi {
		c.found(reply)
		return nil
	}
	_, err = p.ask(wire.Request{Op: wire.OpCDI, CDIFile: filepath.Join(c.cfg.CDIDir, cdiFile), Hook: c.cfg.NVMLProgram}, c.wait.start)
	if err == nil {
		p.cdi = cdiKey(reply)
		c.found(reply)
		return nil
	}
	c.log.Error("write CDI specification", "err", err)
	for i := range reply.GPUs {
		reply.GPUs[i].Healthy = false
		reply.GPUs[i].HealthMessage = protocol.Cut("containers cannot get it: " + err.Error())
	}
	c.found(reply)
	if _, said := errors.AsType[refusal](err); said {
		return nil // asked again at the next refresh
	}
	return err
}

func cdiKey(r *wire.Reply) string {
	key := r.Driver.Version
	for _, g := range r.GPUs {
		key += " " + g.UUID
	}
	return key
}

// found stores an inventory. A GPU that was there before and is not now stays,
// unhealthy: somebody's work may hang on it.
func (c *child) found(r *wire.Reply) {
	c.mu.Lock()
	defer c.mu.Unlock()
	seen := make(map[string]bool)
	for _, g := range r.GPUs {
		seen[g.UUID] = true
	}
	gpus := slices.Clone(r.GPUs)
	for _, g := range c.gpus {
		if !seen[g.UUID] {
			g.Healthy, g.HealthMessage = false, "the driver does not see this GPU any more: look into the kernel log for XID errors and reboot the host"
			gpus = append(gpus, g)
		}
	}
	slices.SortStableFunc(gpus, func(a, b protocol.GPU) int { return int(a.Index) - int(b.Index) })
	c.driver, c.gpus, c.err = r.Driver, gpus, nil
	c.once.Do(func() { close(c.first) })
}

// sampled stores samples in the inventory's order.
func (c *child) sampled(samples []Sample) {
	c.mu.Lock()
	defer c.mu.Unlock()
	byUUID := make(map[string]Sample, len(samples))
	for _, s := range samples {
		byUUID[s.Usage.UUID] = s
	}
	c.samples = c.samples[:0:0]
	for _, g := range c.gpus {
		s := byUUID[g.UUID]
		s.Usage.UUID = g.UUID
		s.Usage.Healthy = s.Usage.Healthy && g.Healthy
		c.samples = append(c.samples, s)
	}
}

// failed stores why nothing is known now, and marks all that was.
func (c *child) failed(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.err = err
	c.samples = c.samples[:0:0]
	for i := range c.gpus {
		c.gpus[i].Healthy, c.gpus[i].HealthMessage = false, protocol.Cut(err.Error())
		c.samples = append(c.samples, Sample{Usage: protocol.GPUUsage{UUID: c.gpus[i].UUID}})
	}
	c.once.Do(func() { close(c.first) })
}
