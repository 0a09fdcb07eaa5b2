// Package agent puts the parts of the agent together.
//
// It owns the wiring: which part tells which other what, in one function, top
// to bottom. It has no logic of its own but the local status socket. Its
// invariant: containers are looked after from the first moment, by the
// document on disk, whether or not there is a control plane.
//
//	link --Desired--> state (verified, stored) --> reconcile --> ctr
//	  ^                                               |
//	  +------------- status, events ------------------+
//	link --Dial--> tunnel --stream--> relay --> container
package agent

import (
	"context"
	"crypto/ed25519"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/remotegpu/remotegpu/edge-agent/ctr"
	"github.com/remotegpu/remotegpu/edge-agent/gpu"
	"github.com/remotegpu/remotegpu/edge-agent/inventory"
	"github.com/remotegpu/remotegpu/edge-agent/link"
	"github.com/remotegpu/remotegpu/edge-agent/reach"
	"github.com/remotegpu/remotegpu/edge-agent/reconcile"
	"github.com/remotegpu/remotegpu/edge-agent/relay"
	"github.com/remotegpu/remotegpu/edge-agent/state"
	"github.com/remotegpu/remotegpu/protocol"
	"github.com/remotegpu/remotegpu/protocol/tunnel"
)

// Config is everything that can be set. All but NoHostShell and MQTT is required.
type Config struct {
	DataDir      string // identity, document, volumes, logs of containers
	RunDir       string // what ends with a reboot
	Containerd   string // path of its socket
	Namespace    string // of containerd
	GPUSource    string // see gpu.Config
	Helper       string // program that is mounted into containers
	NVML         string // program that asks the driver
	CNIBin       []string
	Subnet       string // IPv4, the networks of workloads are cut from it
	BridgePrefix string
	NoHostShell  bool   // nobody gets a shell on the host itself
	MQTT         string // tls://HOST:PORT of a broker beside the server; empty: /mqtt of the server
	Program      string // the agent itself, absolute path
	Version      string
	Log          *slog.Logger
}

// parts are what the agent is made of.
type parts struct {
	cfg    Config
	store  *state.Store
	server *reach.Server
	gpus   gpu.Source
	host   *inventory.Host
	loop   *reconcile.Loop
	link   *link.Link
	logs   logReader
	relay  *relay.Relay
	pool   *tunnel.Pool
	close  []func() error

	notLetIn atomic.Value // string: what the server said when it refused a stream; MQTT has no words
}

// Run is the agent, until ctx ends. Containers run on after it.
func Run(ctx context.Context, cfg Config) error {
	store, err := state.Open(cfg.DataDir)
	if err != nil {
		return err
	}
	defer store.Close()
	if err := os.MkdirAll(cfg.RunDir, 0o711); err != nil {
		return fmt.Errorf("make run folder: %w", err)
	}
	p := &parts{cfg: cfg, store: store}
	defer p.end()
	if err := p.make(ctx); err != nil {
		return err
	}
	if d, _ := store.Desired(); d != nil {
		p.loop.Apply(d)
	}
	all, ctx := errgroup.WithContext(ctx)
	all.Go(func() error { return p.loop.Run(ctx) })
	all.Go(func() error { return p.link.Run(ctx) })
	all.Go(func() error { return p.pool.Run(ctx) })
	all.Go(func() error { return serveStatus(ctx, cfg.RunDir, p.status) })
	return all.Wait()
}

// make makes every part and ties it to the others.
func (p *parts) make(ctx context.Context) error {
	id := p.store.Identity()
	if id == nil {
		return state.ErrNotEnrolled
	}
	var err error
	if p.server, err = reach.New(reach.Config{URL: id.Server, CA: []byte(id.CA)}); err != nil {
		return err
	}
	if p.gpus, err = OpenGPUs(ctx, p.cfg, id.PrivateKey); err != nil {
		return err
	}
	p.close = append(p.close, p.gpus.Close)
	p.host = inventory.New(p.inventoryConfig())
	runtime, err := p.runtime(id)
	if err != nil {
		return err
	}
	p.close = append(p.close, runtime.Close)
	p.logs = runtime.ReadLog
	p.loop = reconcile.New(reconcile.Config{
		Runtime: runtime,
		Changed: func() { p.link.Changed() },
		Event:   p.event,
		Log:     p.cfg.Log,
	})
	hostKey, err := id.SSHKey()
	if err != nil {
		return err
	}
	capabilities := append([]string{"session", "forward", "rdp", "logs", "ssh"}, p.gpus.Capabilities()...)
	hostHelper := ""
	if !p.cfg.NoHostShell {
		hostHelper, capabilities = p.cfg.Helper, append(capabilities, "host-shell")
	}
	p.relay = relay.New(relay.Config{RunDir: p.cfg.RunDir, HostKey: hostKey, HostHelper: hostHelper, Tenant: p.tenant, Log: p.cfg.Log})
	p.pool = tunnel.NewPool(tunnel.PoolConfig{
		Dial: p.dialTunnel, Serve: p.serveStream, Spread: func() time.Duration { return p.link.Spread() }, Log: p.cfg.Log,
	})
	p.link, err = link.New(link.Config{
		Server: p.server, MQTT: p.cfg.MQTT, Store: p.store,
		Agent: p.cfg.Version, BootID: inventory.BootID(),
		Capabilities: capabilities,
		Desired:      p.loop.Apply,
		Dial:         p.pool.Request,
		InUse:        p.pool.InUse,
		Inventory:    p.host.Inventory,
		Usage:        p.host.Usage,
		Workloads:    func() ([]protocol.WorkloadStatus, uint64) { return p.loop.Statuses(), p.loop.Applied() },
		Fault:        p.loop.Fault,
		Log:          p.cfg.Log,
	})
	return err
}

// end gives back what make has opened, last first.
func (p *parts) end() {
	for i := len(p.close) - 1; i >= 0; i-- {
		if err := p.close[i](); err != nil {
			p.cfg.Log.Warn("part not closed", "err", err)
		}
	}
}

// event stores what happened; the next status tells it.
func (p *parts) event(e protocol.Event) {
	p.store.Append(e)
	p.link.Changed()
}

// OpenGPUs opens the GPU source of cfg. Simulated GPUs grow from the host's
// key, so that they stay the same from enrolment on.
func OpenGPUs(ctx context.Context, cfg Config, key ed25519.PrivateKey) (gpu.Source, error) {
	return gpu.Open(ctx, gpu.Config{
		Spec: cfg.GPUSource, NVMLProgram: cfg.NVML, CDIDir: cdiDir(cfg), Log: cfg.Log,
		Seed: hex.EncodeToString(key.Public().(ed25519.PublicKey)),
	})
}

func cdiDir(cfg Config) string { return filepath.Join(cfg.RunDir, "cdi") }

// Inventory returns the configuration of the host's inventory; who asks sets
// Trouble.
func Inventory(cfg Config, gpus gpu.Source) inventory.Config {
	dir := "/var/lib/containerd"
	if _, err := os.Stat(dir); err != nil {
		dir = cfg.DataDir
	}
	return inventory.Config{GPUs: gpus, Containerd: cfg.Containerd, ImageDir: dir, BridgePrefix: cfg.BridgePrefix, Log: cfg.Log}
}

func (p *parts) inventoryConfig() inventory.Config {
	c := Inventory(p.cfg, p.gpus)
	c.Trouble = func(text string) {
		e := protocol.Event{Severity: protocol.SeverityWarning, Reason: "GPUTrouble", Message: text}
		if text == "" {
			e.Severity, e.Reason, e.Message = protocol.SeverityNormal, "GPUsWell", "The GPUs answer again."
		}
		p.cfg.Log.Warn("GPUs", "reason", e.Message)
		p.event(e)
	}
	return c
}

// runtime makes what runs containers.
func (p *parts) runtime(id *state.Identity) (*ctr.Runtime, error) {
	networks, err := newNetworks(p.cfg)
	if err != nil {
		return nil, err
	}
	var roots *x509.CertPool
	if id.CA != "" {
		roots = x509.NewCertPool()
		roots.AppendCertsFromPEM([]byte(id.CA))
	}
	return ctr.New(ctr.Config{
		Address: p.cfg.Containerd, Namespace: p.cfg.Namespace,
		DataDir: p.cfg.DataDir, RunDir: p.cfg.RunDir, Helper: p.cfg.Helper, LogDriver: p.cfg.Program,
		Network: networks.forContainers(), Registry: id.Registry, RegistryCA: roots, Credentials: p.credentials,
		CDIDirs: []string{cdiDir(p.cfg)}, Log: p.cfg.Log,
	})
}

// credentials are the host's own for the control plane's registry, and none
// for others.
func (p *parts) credentials(_ context.Context, _ protocol.Workload, registry string) (user, password string, err error) {
	id := p.store.Identity()
	if !strings.EqualFold(registry, id.Registry) {
		return "", "", nil
	}
	token, err := p.link.Signer().Token(protocol.AudienceRegistry)
	return id.Host, token, err
}

// serveStream connects a stream with what it is for: a log, or a container.
func (p *parts) serveStream(ctx context.Context, c *tunnel.Conn, h protocol.StreamHeader) {
	if h.Kind == protocol.StreamLogs {
		p.serveLogs(ctx, c, h)
		return
	}
	p.relay.Serve(ctx, c, h, func(r protocol.StreamReply) error { return tunnel.Reply(c, r) })
}

// dialTunnel opens a stream at the control plane, a spare without a token.
func (p *parts) dialTunnel(ctx context.Context, token string) (*tunnel.Conn, error) {
	conn, err := p.dialOnce(ctx, token)
	if rejected, ok := errors.AsType[*tunnel.Rejected](err); ok && rejected.Status == http.StatusUnauthorized && p.link.FollowClock(ctx) {
		return p.dialOnce(ctx, token)
	}
	return conn, err
}

func (p *parts) dialOnce(ctx context.Context, token string) (*tunnel.Conn, error) {
	bearer, err := p.link.Signer().Token(protocol.AudienceTunnel)
	if err != nil {
		return nil, err
	}
	header := http.Header{"Authorization": {"Bearer " + bearer}}
	if token != "" {
		header.Set(protocol.StreamTokenHeader, token)
	}
	conn, err := tunnel.Dial(ctx, tunnel.DialConfig{
		URL: p.server.URL("wss", protocol.TunnelPath), Header: header, TLS: p.server.TLS(), Proxy: p.server.Proxy,
	})
	var rejected *tunnel.Rejected
	switch {
	case errors.As(err, &rejected):
		p.notLetIn.Store(reach.Detail([]byte(rejected.Body)))
		return nil, err
	case err != nil:
		return nil, errors.New(p.server.Sentence(err))
	}
	p.notLetIn.Store("")
	return conn, nil
}
