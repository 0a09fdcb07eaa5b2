package access

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/remotegpu/remotegpu/control/auth"
	"github.com/remotegpu/remotegpu/control/errs"
)

const (
	handshakeTimeout = 20 * time.Second
	keepalive        = 15 * time.Second
	keepaliveMisses  = 3
)

// Serve takes SSH connections from l until ctx ends.
func (s *Service) Serve(ctx context.Context, l net.Listener) error {
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()
	for {
		conn, err := l.Accept()
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return fmt.Errorf("accept SSH connection: %w", err)
		}
		select {
		case s.slots <- struct{}{}:
			go s.serveConn(ctx, conn, nil)
		default:
			conn.Close() // too many that have shown no key yet
		}
	}
}

type callerKey struct{}

// serveConn speaks SSH on conn. With a caller that the transport has
// authenticated already, no key is asked for.
func (s *Service) serveConn(ctx context.Context, conn net.Conn, known *auth.Caller) {
	defer conn.Close()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	conn.SetDeadline(time.Now().Add(s.handshake))
	sc, channels, requests, err := ssh.NewServerConn(conn, s.serverConfig(ctx, known))
	if known == nil {
		<-s.slots
	}
	if err != nil {
		s.log.Debug("ssh handshake", "remote", conn.RemoteAddr().String(), "err", err)
		return
	}
	conn.SetDeadline(time.Time{})
	c := callerOf(sc, known)
	if c.Remote == "" {
		c.Remote, _, _ = net.SplitHostPort(conn.RemoteAddr().String())
	}
	s.log.Info("ssh connected", "user", c.Name, "env", sc.User(), "remote", c.Remote)
	go ssh.DiscardRequests(requests)
	go keepAlive(ctx, sc)
	s.serveChannels(ctx, sc, c, channels)
}

// maxChannels is how many sessions one connection may have at a time.
const maxChannels = 64

func (s *Service) serveChannels(ctx context.Context, sc *ssh.ServerConn, c auth.Caller, channels <-chan ssh.NewChannel) {
	open := make(chan struct{}, maxChannels)
	for ch := range channels {
		if ch.ChannelType() != "session" {
			ch.Reject(ssh.UnknownChannelType, "only sessions are served")
			continue
		}
		select {
		case open <- struct{}{}:
		default:
			ch.Reject(ssh.ResourceShortage, fmt.Sprintf("at most %d sessions per connection", maxChannels))
			continue
		}
		go func() {
			defer func() { <-open }()
			s.serveSession(ctx, sc.User(), c, ch)
		}()
	}
}

func (s *Service) serverConfig(ctx context.Context, known *auth.Caller) *ssh.ServerConfig {
	cfg := &ssh.ServerConfig{ServerVersion: "SSH-2.0-RemoteGPU", MaxAuthTries: 8}
	if known != nil {
		cfg.NoClientAuth = true
	} else {
		cfg.PublicKeyCallback = func(_ ssh.ConnMetadata, key ssh.PublicKey) (*ssh.Permissions, error) {
			return s.checkKey(ctx, key)
		}
	}
	cfg.AddHostKey(s.hosts)
	return cfg
}

// checkKey answers which key may come in. A client offers several keys in a
// row; the sentence about an unknown one is shown as a banner only when it is
// the only thing that helps.
func (s *Service) checkKey(ctx context.Context, key ssh.PublicKey) (*ssh.Permissions, error) {
	c, err := s.cfg.ByKey(ctx, key)
	if err != nil {
		return nil, &ssh.BannerError{Err: err, Message: "RemoteGPU: " + ssh.FingerprintSHA256(key) + ": " + errs.Text(err) + "\r\n"}
	}
	return &ssh.Permissions{ExtraData: map[any]any{callerKey{}: c}}, nil
}

func callerOf(sc *ssh.ServerConn, known *auth.Caller) auth.Caller {
	if known != nil {
		return *known
	}
	c, _ := sc.Permissions.ExtraData[callerKey{}].(auth.Caller)
	return c
}

// keepAlive ends a connection whose client no longer answers.
func keepAlive(ctx context.Context, sc *ssh.ServerConn) {
	answered := make(chan struct{}, 1)
	misses := 0
	for {
		go func() {
			if _, _, err := sc.SendRequest("keepalive@openssh.com", true, nil); err == nil {
				select {
				case answered <- struct{}{}:
				default: // another one has just been answered too
				}
			}
		}()
		select {
		case <-ctx.Done():
			return
		case <-time.After(keepalive):
		}
		select {
		case <-answered:
			misses = 0
		default:
			if misses++; misses >= keepaliveMisses {
				sc.Close()
				return
			}
		}
	}
}

// text returns what the person at the terminal reads about err.
func text(err error) string {
	if errors.Is(err, context.DeadlineExceeded) {
		return "The host did not answer in time; try again, and look at: remotegpu host ls"
	}
	return errs.Text(err)
}
