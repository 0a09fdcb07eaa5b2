package access

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/remotegpu/remotegpu/control/audit"
	"github.com/remotegpu/remotegpu/control/auth"
	"github.com/remotegpu/remotegpu/control/door"
	"github.com/remotegpu/remotegpu/control/errs"
	"github.com/remotegpu/remotegpu/control/pg"
	"github.com/remotegpu/remotegpu/protocol"
	"github.com/remotegpu/remotegpu/protocol/sshd"
)

const handshakeTimeout = 20 * time.Second

// greeting is for a person at a terminal.
const greeting = "Encrypted between you and the gateway, and between it and the host; end to end with: remotegpu ssh-config"

// Serve takes SSH connections from l until ctx ends.
func (s *Service) Serve(ctx context.Context, l net.Listener) error {
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()
	for {
		conn, err := l.Accept()
		if ctx.Err() != nil {
			return nil
		}
		if errors.Is(err, net.ErrClosed) {
			return fmt.Errorf("accept SSH connection: %w", err)
		}
		if err != nil { // as when files run out; others must not lose what they have
			s.log.Error("accept SSH connection", "err", err)
			time.Sleep(100 * time.Millisecond)
			continue
		}
		visit := s.door.Enter(conn.RemoteAddr())
		if visit == nil {
			turnAway(conn)
			continue
		}
		go s.serveConn(ctx, conn, visit, nil)
	}
}

// turnAway says why, as sshd does with a line before its version; clients show it
// when they are asked what they do (ssh -v).
func turnAway(conn net.Conn) {
	_ = conn.SetWriteDeadline(time.Now().Add(time.Second)) // it goes into the socket's buffer, or nowhere
	_, _ = io.WriteString(conn, "Too many connections from your network have not logged in yet; try again in half a minute.\r\n")
	conn.Close()
}

type callerKey struct{}

// visitor is a client that the transport has authenticated.
type visitor struct {
	caller auth.Caller
	to     string // what it wants to reach; empty: the user's name tells
}

// serveConn speaks SSH on conn, of which the door has a visit. Of a visitor that
// is known already, no key is asked for.
func (s *Service) serveConn(ctx context.Context, conn net.Conn, visit *door.Visit, known *visitor) {
	defer conn.Close()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	conn.SetDeadline(time.Now().Add(s.handshake))
	cfg, err := s.serverConfig(ctx, known)
	if err != nil {
		s.log.Error("ssh host certificate", "err", err)
	}
	sc, err := sshd.Accept(conn, cfg)
	visit.Known()
	if err != nil {
		s.log.Debug("ssh handshake", "remote", conn.RemoteAddr().String(), "err", err)
		return
	}
	conn.SetDeadline(time.Time{})
	c := callerOf(sc.ServerConn, known)
	if c.Remote == "" {
		c.Remote, _, _ = net.SplitHostPort(conn.RemoteAddr().String())
	}
	name := sc.User()
	if known != nil && known.to != "" {
		name = known.to
	}
	defer s.uses.add(&use{caller: c, end: func(error) { sc.Close() }})()
	s.log.Info("ssh connected", "user", c.ID, "name", name, "remote", c.Remote)
	sshd.Serve(ctx, sc, sshd.Config{
		Open: func(ctx context.Context, r sshd.Request) (sshd.Stream, string, error) {
			return s.openFor(ctx, c, name, r)
		},
		Text: text, Greeting: greeting, Log: s.log,
	})
}

// openFor opens the stream that a client asks for on a connection to name, once
// the environment runs.
func (s *Service) openFor(ctx context.Context, c auth.Caller, name string, r sshd.Request) (sshd.Stream, string, error) {
	stream, listens, err := s.openNamed(ctx, c, name, r)
	if err != nil {
		s.log.Info("stream refused", "user", c.ID, "name", name, "kind", r.Kind, "err", err)
		return nil, "", err
	}
	return stream, listens, nil
}

func (s *Service) openNamed(ctx context.Context, c auth.Caller, name string, r sshd.Request) (sshd.Stream, string, error) {
	c, err := s.fresh(ctx, c) // the connection may be old
	if err != nil {
		return nil, "", err
	}
	if to, ok := s.jump(ctx, c, name, r); ok {
		conn, err := s.sshEnd(ctx, c, to)
		return conn, "", err
	}
	p, err := s.find(ctx, c, name, r.Say)
	if err != nil {
		return nil, "", err
	}
	if err := s.note(ctx, c, p, r); err != nil {
		return nil, "", err
	}
	if r.Session == nil || p.isHost() {
		conn, err := s.open(ctx, c, p.Environment, protocol.StreamHeader{Kind: r.Kind, Target: r.Target})
		if err != nil {
			return nil, "", err
		}
		return conn, conn.Listens(), nil
	}
	stream, err := s.lasting(ctx, c, p.Environment, r.Session)
	if err != nil {
		return nil, "", err
	}
	stream, err = s.recordSession(ctx, c, p.Environment, r.Session, stream)
	return stream, "", err
}

// note writes the audit entry of an access, without what is typed: a command
// line may hold a secret. Who comes to a listener needs none beside its own.
func (s *Service) note(ctx context.Context, c auth.Caller, p place, r sshd.Request) error {
	detail := map[string]any{"via": "ssh", "kind": r.Kind}
	switch {
	case r.Kind == protocol.StreamAccept:
		return nil
	case r.Session != nil:
		detail["terminal"], detail["command"] = r.Session.Term != "", r.Session.Command != ""
		if r.Session.Subsystem != "" {
			detail["subsystem"] = r.Session.Subsystem
		}
	case r.Target != nil:
		detail["target"] = r.Target.Address
	}
	return audit.Record(ctx, s.pool, c, p.action(), p.ID, p.Workspace, detail)
}

func (s *Service) serverConfig(ctx context.Context, known *visitor) (*ssh.ServerConfig, error) {
	cfg := sshd.ServerConfig()
	to := ""
	if known != nil {
		cfg.NoClientAuth, to = true, known.to
	} else {
		cfg.PublicKeyCallback = func(_ ssh.ConnMetadata, key ssh.PublicKey) (*ssh.Permissions, error) {
			return s.checkKey(ctx, key)
		}
	}
	keys, err := s.hostKeys(to)
	for _, key := range keys {
		cfg.AddHostKey(key)
	}
	return cfg, err
}

// checkKey answers which key may come in. A client offers several keys in a
// row; the sentence about an unknown one is shown as a banner only when it is
// the only thing that helps.
func (s *Service) checkKey(ctx context.Context, key ssh.PublicKey) (*ssh.Permissions, error) {
	c, err := s.cfg.ByKey(ctx, key)
	if err != nil {
		return nil, &ssh.BannerError{Err: err, Message: "RemoteGPU: " + ssh.FingerprintSHA256(key) + ": " + text(err) + "\r\n"}
	}
	return &ssh.Permissions{ExtraData: map[any]any{callerKey{}: c}}, nil
}

func callerOf(sc *ssh.ServerConn, known *visitor) auth.Caller {
	if known != nil {
		return known.caller
	}
	c, _ := sc.Permissions.ExtraData[callerKey{}].(auth.Caller)
	return c
}

// text returns what the person at the terminal reads about err.
func text(err error) string {
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		return "The host did not answer in time; try again, and look at: remotegpu host ls"
	case errors.Is(err, context.Canceled): // who has gone reads nothing
		return "The server is stopping; try again in a moment."
	}
	return errs.Text(pg.Meaning(err))
}
