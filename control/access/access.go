// Package access is how people reach an environment, or a host itself.
//
// It owns the SSH gateway, its twin over WebSocket, and the tunnel that agents
// dial in to; what runs in the container stands in the agent's helper. Its
// invariant: every stream is opened for a caller that auth.EnvironmentAccess
// allows in the environment's workspace, or auth.HostAccess, checked at the
// moment of opening.
//
//	ssh ENV@GATEWAY ────► gateway ─┐
//	                               ├─► sshd ─► tunnel.Hub ═► agent ─► helper in the container
//	remotegpu ssh ──WSS─► gateway ─┘
//	ssh-proxy ENV ──WSS─► bytes ──────────────► tunnel.Hub ═► agent: sshd ─► helper   end to end
//	ssh -J GATEWAY ENV ─► bytes ─┘
package access

import (
	"context"
	"crypto/ed25519"
	"log/slog"
	"sync"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/remotegpu/remotegpu/control/auth"
	"github.com/remotegpu/remotegpu/control/door"
	"github.com/remotegpu/remotegpu/control/environment"
	"github.com/remotegpu/remotegpu/control/errs"
	"github.com/remotegpu/remotegpu/control/host"
	"github.com/remotegpu/remotegpu/control/pg"
	"github.com/remotegpu/remotegpu/control/recording"
	"github.com/remotegpu/remotegpu/control/workspace"
	"github.com/remotegpu/remotegpu/protocol"
	"github.com/remotegpu/remotegpu/protocol/tunnel"
)

// Config is what the gateway needs from others.
type Config struct {
	HostKey ed25519.PrivateKey                                                                     // the gateway's SSH host key
	HostCA  ed25519.PrivateKey                                                                     // signs it, and those of hosts
	Address string                                                                                 // host:port of the gateway, as people type it
	ByKey   func(ctx context.Context, key ssh.PublicKey) (auth.Caller, error)                      // who holds this key
	Find    func(ctx context.Context, c auth.Caller, name string) (environment.Environment, error) // NAME or NAME.WORKSPACE
	// Get returns an environment by the name or id of its workspace and its own.
	Get  func(ctx context.Context, c auth.Caller, workspace, environment string) (environment.Environment, error)
	Now  func(ctx context.Context, c auth.Caller) (auth.Caller, error) // with the rights of now, if they have any
	Host func(ctx context.Context, c auth.Caller, name string) (host.Host, error)
	// Workspace returns one by name or id.
	Workspace func(ctx context.Context, c auth.Caller, nameOrID string) (workspace.Workspace, error)
	// Records reports whether a workspace, by id, wants sessions recorded. Nil: none does.
	Records func(ctx context.Context, workspace string, terminal bool) (bool, error)
	// Record begins a recording, or returns nil where none is wanted. Nil records nothing.
	Record func(ctx context.Context, c auth.Caller, sub recording.Subject, ses recording.Session) (*recording.Recorder, error)
	// Continue takes over a recording that another server has begun; nil: there is none.
	Continue func(ctx context.Context, h recording.Held) (*recording.Recorder, []byte, error)
	Hub      *tunnel.Hub
	Log      *slog.Logger
}

// Service is the access plane of one server.
type Service struct {
	pool  *pg.Pool
	cfg   Config
	hub   *tunnel.Hub
	log   *slog.Logger
	hosts ssh.Signer
	ca    ssh.Signer
	door  *door.Door // before it stand SSH connections that have shown no key yet

	handshake time.Duration // longest until a client has authenticated

	ending   sync.WaitGroup // streams that are not noted as ended
	heldRecs heldRecordings
	uses     uses
}

// maxStrangers bounds connections of one network that have shown no key yet.
const maxStrangers = 100

// New returns the service; its routes and Serve are the ways in.
func New(pool *pg.Pool, cfg Config) (*Service, error) {
	signer, err := ssh.NewSignerFromKey(cfg.HostKey)
	if err != nil {
		return nil, err
	}
	ca, err := ssh.NewSignerFromKey(cfg.HostCA)
	if err != nil {
		return nil, err
	}
	return &Service{
		pool: pool, cfg: cfg, hub: cfg.Hub, log: cfg.Log, hosts: signer, ca: ca,
		door: door.New("ssh", maxStrangers, 16*maxStrangers, cfg.Log), handshake: handshakeTimeout,
	}, nil
}

// Wait waits until the end of every stream is noted, and ends recordings. The hub is closed by then.
func (s *Service) Wait() {
	s.ending.Wait()
	s.closeHeld()
}

// startTimeout is how long a shell waits for an environment that is starting.
const startTimeout = 2 * time.Minute

// ready returns the environment called name once it runs. While it is on its
// way, say is told so once.
func (s *Service) ready(ctx context.Context, c auth.Caller, name string, say func(string)) (environment.Environment, error) {
	deadline := time.Now().Add(startTimeout)
	for said := false; ; said = true {
		env, err := s.cfg.Find(ctx, c, name)
		if err != nil {
			return env, err
		}
		if err := c.Require(auth.EnvironmentAccess, env.Workspace); err != nil {
			return env, err
		}
		switch {
		case env.Phase == protocol.PhaseRunning:
			return env, nil
		case !env.Starting():
			return env, errs.Ef(errs.Conflict, "Environment %s is %s. %s", env.Name, env.Phase, env.Advice())
		case time.Now().After(deadline):
			return env, errs.Ef(errs.Unavailable, "Environment %s is still %s: %s", env.Name, env.Phase, env.Message)
		}
		if !said {
			say("Environment " + env.Name + " is " + env.Phase + "; waiting for it.")
		}
		select {
		case <-ctx.Done():
			return env, ctx.Err()
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// Dial connects with what listens at t inside a running environment, for a
// caller who may have a shell there. An error is one sentence for a person.
func (s *Service) Dial(ctx context.Context, c auth.Caller, env environment.Environment, t protocol.Target) (*tunnel.Conn, error) {
	if err := c.Require(auth.EnvironmentAccess, env.Workspace); err != nil {
		return nil, err
	}
	if env.Phase != protocol.PhaseRunning {
		return nil, errs.Ef(errs.Conflict, "Environment %s is %s. %s", env.Name, env.Phase, env.Advice())
	}
	return s.open(ctx, c, env, protocol.StreamHeader{Kind: protocol.StreamDial, Target: &t})
}

// open opens a stream to a running environment; of h, the kind and the target
// are given.
func (s *Service) open(ctx context.Context, c auth.Caller, env environment.Environment, h protocol.StreamHeader) (*tunnel.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	h.Version, h.ID, h.Workload, h.User = protocol.Version, protocol.NewID(protocol.PrefixStream), env.ID, c.ID
	if (place{env}).isHost() {
		h.Workload = ""
	}
	conn, err := s.hub.Open(ctx, env.Host, h)
	if err != nil {
		return nil, sentence(env, err)
	}
	if c.Kind != auth.KindSystem { // who opens it for others notes for whom
		remove := s.uses.add(&use{caller: c, env: env.ID, may: needs(env), end: conn.CloseWithError})
		s.ending.Go(func() {
			defer remove()
			s.noteEnd(c, env, h, conn)
		})
	}
	return conn, nil
}
