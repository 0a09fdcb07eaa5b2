// Package sim is a fleet of simulated hosts that speak the real protocol.
//
// It owns what stands in for a machine: its containers (runtime.go), its
// description and GPUs (machine.go), what it measures (telemetry.go) and its line
// (line.go). Everything between
// those is the agent's own code: enrolment, link, reconciler, tunnel pool, state
// on disk. Its invariant: a control plane cannot tell a simulated host from a
// real one by what it sends.
//
//	Agent   one host
//	Fleet   many in this process
//	Parts   fleets in processes of their own, for more hosts than one has files for
package sim

import (
	"context"
	"crypto/ed25519"
	"encoding/hex"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"path/filepath"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/remotegpu/remotegpu/edge-agent/enroll"
	"github.com/remotegpu/remotegpu/edge-agent/gpu"
	"github.com/remotegpu/remotegpu/edge-agent/link"
	"github.com/remotegpu/remotegpu/edge-agent/reach"
	"github.com/remotegpu/remotegpu/edge-agent/reconcile"
	"github.com/remotegpu/remotegpu/edge-agent/state"
	"github.com/remotegpu/remotegpu/protocol"
	"github.com/remotegpu/remotegpu/protocol/tunnel"
)

// Config says what a simulated host is. Server and Dir are required, Token for
// the first Enroll.
type Config struct {
	Server  string        // https://HOST:PORT
	CA      []byte        // PEM; empty: the system's roots
	Token   string        // join token
	Dir     string        // its data folder
	Name    string        // wished; empty: "sim-" and what Dir is called
	GPUs    string        // as gpu.Config.Spec; empty: sim:8xH100
	Version string        // of its agent; empty: "sim"
	Line    Line          // how it is connected
	Step    time.Duration // what a step of its container runtime takes at most; 0: none
	Log     *slog.Logger
}

// Agent is one simulated host.
type Agent struct {
	cfg       Config
	store     *state.Store
	gpus      gpu.Source
	server    *reach.Server
	wire      *wire
	machine   *machine
	telemetry *telemetry

	Runtime *Runtime                // its containers
	program atomic.Pointer[program] // the last Run's
}

// program is the agent as a process: what does not outlive a Run.
type program struct {
	link *link.Link
	loop *reconcile.Loop
	pool *tunnel.Pool
}

// New opens the data folder of a host. Close gives it back.
func New(cfg Config) (a *Agent, err error) {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Name == "" {
		cfg.Name = "sim-" + filepath.Base(cfg.Dir)
	}
	if cfg.GPUs == "" {
		cfg.GPUs = "sim:8xH100"
	}
	if cfg.Version == "" {
		cfg.Version = "sim"
	}
	a = &Agent{cfg: cfg, wire: newWire(cfg.Line), Runtime: newRuntime(cfg.Step)}
	a.server, err = reach.New(reach.Config{
		URL: cfg.Server, CA: cfg.CA, Dial: a.wire.dial, Proxy: http.ProxyURL(nil),
	})
	if err != nil {
		return nil, err
	}
	if a.store, err = state.Open(cfg.Dir); err != nil {
		return nil, err
	}
	if err := a.openGPUs(); err != nil {
		return nil, errors.Join(err, a.store.Close())
	}
	a.machine = &machine{name: cfg.Name, gpus: a.gpus, running: a.Runtime.Running}
	a.telemetry = newTelemetry(a.machine)
	return a, nil
}

// openGPUs makes GPUs that grow from the host's key, as a real agent does.
func (a *Agent) openGPUs() error {
	key, err := a.store.HostKey()
	if err != nil {
		return err
	}
	a.gpus, err = gpu.Open(context.Background(), gpu.Config{
		Spec: a.cfg.GPUs, CDIDir: a.cfg.Dir, Seed: hex.EncodeToString(key.Public().(ed25519.PublicKey)), Log: a.cfg.Log,
	})
	return err
}

// Close gives the data folder back.
func (a *Agent) Close() error { return errors.Join(a.gpus.Close(), a.store.Close()) }

// Host returns the host's id, empty before Enroll.
func (a *Agent) Host() string {
	if id := a.store.Identity(); id != nil {
		return id.Host
	}
	return ""
}

// Enroll makes it a host of the control plane, unless it is one.
func (a *Agent) Enroll(ctx context.Context) error {
	_, err := enroll.Enroll(ctx, a.store, enroll.Request{
		Server: a.server, CA: string(a.cfg.CA), Token: a.cfg.Token, Name: a.cfg.Name, Agent: a.cfg.Version,
		Inventory: a.machine.inventory(ctx),
	})
	a.server.HTTP().CloseIdleConnections()
	return err
}

// Run is the agent until ctx ends. It may run again after that: its containers
// are as they were.
func (a *Agent) Run(ctx context.Context) error {
	p, err := a.make()
	if err != nil {
		return err
	}
	a.program.Store(p)
	if d, _ := a.store.Desired(); d != nil {
		p.loop.Apply(d)
	}
	all, ctx := errgroup.WithContext(ctx)
	all.Go(func() error { return p.loop.Run(ctx) })
	all.Go(func() error { return p.link.Run(ctx) })
	all.Go(func() error { return p.pool.Run(ctx) })
	all.Go(func() error { return a.telemetry.run(ctx, p.link) })
	return all.Wait()
}

// make ties the parts together as package agent does.
func (a *Agent) make() (p *program, err error) {
	p = &program{}
	p.loop = reconcile.New(reconcile.Config{
		Runtime: a.Runtime, Changed: func() { p.link.Changed() }, Log: a.cfg.Log,
		Event: func(e protocol.Event) { a.store.Append(e); p.link.Changed() },
	})
	p.pool = tunnel.NewPool(tunnel.PoolConfig{
		Dial: func(ctx context.Context, token string) (*tunnel.Conn, error) {
			return a.dialTunnel(ctx, p.link.Signer(), token)
		},
		Serve: a.serve, Spread: func() time.Duration { return p.link.Spread() }, Log: a.cfg.Log,
	})
	p.link, err = link.New(link.Config{
		Server: a.server, Store: a.store, Agent: a.cfg.Version, BootID: a.cfg.Name,
		Capabilities: append([]string{"session", "forward", "logs"}, a.gpus.Capabilities()...),
		Desired:      p.loop.Apply, Dial: p.pool.Request, InUse: p.pool.InUse, Inventory: a.machine.inventory, Usage: a.machine.usage,
		Workloads: func() ([]protocol.WorkloadStatus, uint64) { return p.loop.Statuses(), p.loop.Applied() },
		Fault:     p.loop.Fault,
		Log:       a.cfg.Log,
	})
	return p, err
}

// dialTunnel opens a stream at the control plane, a spare without a token.
func (a *Agent) dialTunnel(ctx context.Context, signer *link.Signer, token string) (*tunnel.Conn, error) {
	bearer, err := signer.Token(protocol.AudienceTunnel)
	if err != nil {
		return nil, err
	}
	header := http.Header{"Authorization": {"Bearer " + bearer}}
	if token != "" {
		header.Set(protocol.StreamTokenHeader, token)
	}
	return tunnel.Dial(ctx, tunnel.DialConfig{
		URL: a.server.URL("wss", protocol.TunnelPath), Header: header, TLS: a.server.TLS(), Dial: a.wire.dial,
	})
}

// serve echoes the bytes of a stream to a workload that runs here; it has no
// helper that would speak frames.
func (a *Agent) serve(_ context.Context, c *tunnel.Conn, h protocol.StreamHeader) {
	reply := protocol.StreamReply{}
	switch {
	case h.Kind != protocol.StreamDial:
		reply.Code, reply.Message = protocol.ReplyUnsupported, "This host is simulated; it echoes what comes by a forward and opens nothing else."
	case !a.Runtime.runs(h.Workload):
		reply.Code, reply.Message = protocol.ReplyNotRunning, "This environment does not run here."
	}
	if tunnel.Reply(c, reply) == nil && reply.Code == "" {
		_, _ = io.Copy(c, c) // until the peer ends it
	}
}

// Link returns how the agent's MQTT session is; zero before Run.
func (a *Agent) Link() link.State {
	if p := a.program.Load(); p != nil {
		return p.link.State()
	}
	return link.State{}
}

// Applied returns the generation that the host's containers agree with, and the
// one of its document.
func (a *Agent) Applied() (applied, observed uint64) {
	if d, _ := a.store.Desired(); d != nil {
		observed = d.Generation
	}
	if p := a.program.Load(); p != nil {
		applied = p.loop.Applied()
	}
	return applied, observed
}

// Wire is the host's network, for who breaks it.
func (a *Agent) Wire() Wire { return a.wire }
