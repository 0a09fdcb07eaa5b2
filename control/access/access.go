// Package access is how people reach an environment.
//
// It owns the SSH gateway, its twin over WebSocket, and the tunnel that agents
// dial in to; what runs in the container stands in the agent's helper. Its
// invariant: every stream is opened for a caller that auth.EnvironmentAccess
// allows in the environment's workspace, checked at the moment of opening.
//
//	ssh ENV@HOST ──► gateway ─┐
//	                          ├─► session ─► tunnel.Hub ═► agent ─► helper in the container
//	remotegpu ssh ─WSS─► same ┘
package access

import (
	"context"
	"crypto/ed25519"
	"log/slog"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/remotegpu/remotegpu/control/auth"
	"github.com/remotegpu/remotegpu/control/environment"
	"github.com/remotegpu/remotegpu/control/errs"
	"github.com/remotegpu/remotegpu/control/pg"
	"github.com/remotegpu/remotegpu/protocol"
	"github.com/remotegpu/remotegpu/protocol/tunnel"
)

// Config is what the gateway needs from others.
type Config struct {
	HostKey ed25519.PrivateKey                                                                     // the gateway's SSH host key
	Address string                                                                                 // host:port of the gateway, as people type it
	ByKey   func(ctx context.Context, key ssh.PublicKey) (auth.Caller, error)                      // who holds this key
	Find    func(ctx context.Context, c auth.Caller, name string) (environment.Environment, error) // NAME or NAME.WORKSPACE
	Hub     *tunnel.Hub
	Log     *slog.Logger
}

// Service is the access plane of one server.
type Service struct {
	pool  *pg.Pool
	cfg   Config
	hub   *tunnel.Hub
	log   *slog.Logger
	hosts ssh.Signer
	slots chan struct{} // one per SSH connection that has not authenticated yet

	handshake time.Duration // longest until a client has authenticated
}

// maxUnauthenticated bounds connections that have shown no key yet.
const maxUnauthenticated = 200

// New returns the service; its routes and Serve are the ways in.
func New(pool *pg.Pool, cfg Config) (*Service, error) {
	signer, err := ssh.NewSignerFromKey(cfg.HostKey)
	if err != nil {
		return nil, err
	}
	return &Service{
		pool: pool, cfg: cfg, hub: cfg.Hub, log: cfg.Log, hosts: signer,
		slots: make(chan struct{}, maxUnauthenticated), handshake: handshakeTimeout,
	}, nil
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

// open opens a session stream to a running environment.
func (s *Service) open(ctx context.Context, c auth.Caller, env environment.Environment) (*tunnel.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	conn, err := s.hub.Open(ctx, env.Host, protocol.StreamHeader{
		Version: protocol.Version, ID: protocol.NewID(protocol.PrefixStream),
		Kind: protocol.StreamSession, Workload: env.ID, User: c.ID,
	})
	if err != nil {
		return nil, sentence(env, err)
	}
	return conn, nil
}
