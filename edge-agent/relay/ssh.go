package relay

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/remotegpu/remotegpu/protocol"
	"github.com/remotegpu/remotegpu/protocol/sshd"
)

// handshakeTimeout bounds the certificate and the handshake of an SSH stream.
const handshakeTimeout = 30 * time.Second

// greeting is for a person at a terminal.
const greeting = "Encrypted end to end, between you and the host."

// serveSSH ends SSH here, so that nobody between the client and this host sees
// what is inside. Who may come in was decided by the control plane, which
// opened the stream; it also signs the certificate by which the client knows
// our host key.
func (r *Relay) serveSSH(ctx context.Context, s Stream, h protocol.StreamHeader, reply func(protocol.StreamReply) error) error {
	if r.cfg.HostKey == nil {
		_ = reply(refusal(protocol.ReplyUnsupported)) // the peer may be gone
		return fmt.Errorf("no SSH host key")
	}
	conn, answer, err := r.begin(ctx, protocol.StreamHeader{Kind: protocol.StreamSession, Workload: h.Workload})
	if err != nil {
		_ = reply(answer) // as above
		return err
	}
	conn.Close() // there is somebody, which is all that matters now
	key, err := ssh.NewSignerFromKey(r.cfg.HostKey)
	if err != nil {
		return err
	}
	if err := reply(protocol.StreamReply{Key: key.PublicKey().Marshal()}); err != nil {
		return err
	}
	_ = s.SetDeadline(time.Now().Add(handshakeTimeout)) // fails only on a closed stream
	cfg := sshd.ServerConfig()
	cfg.NoClientAuth = true
	certified, err := certificate(s, key)
	if err != nil {
		return err
	}
	cfg.AddHostKey(certified)
	sc, err := sshd.Accept(s, cfg)
	if err != nil {
		return fmt.Errorf("ssh handshake: %w", err)
	}
	defer sc.Close()
	_ = s.SetDeadline(time.Time{}) // as above
	r.cfg.Log.Info("stream opened", "env", h.Workload, "user", h.User, "stream", h.ID, "kind", h.Kind)
	sshd.Serve(ctx, sc, sshd.Config{
		Open: func(ctx context.Context, q sshd.Request) (sshd.Stream, string, error) { return r.openFor(ctx, h, q) },
		Text: error.Error, Greeting: greeting, Log: r.cfg.Log,
	})
	return nil
}

// certificate reads the one for key.
func certificate(s Stream, key ssh.Signer) (ssh.Signer, error) {
	kind, payload, err := protocol.NewFrameReader(s).Next()
	if err == nil && kind != protocol.FrameCertificate {
		err = fmt.Errorf("frame of type %d", kind)
	}
	if err != nil {
		return nil, fmt.Errorf("read SSH certificate: %w", err)
	}
	return parseCertificate(payload, key)
}

func parseCertificate(b []byte, key ssh.Signer) (ssh.Signer, error) {
	public, err := ssh.ParsePublicKey(b)
	if err != nil {
		return nil, fmt.Errorf("read SSH certificate: %w", err)
	}
	cert, ok := public.(*ssh.Certificate)
	if !ok || cert.CertType != ssh.HostCert {
		return nil, fmt.Errorf("what came is no certificate of a host")
	}
	return ssh.NewCertSigner(cert, key)
}

// openFor opens a stream of a client of the SSH end.
func (r *Relay) openFor(ctx context.Context, h protocol.StreamHeader, q sshd.Request) (sshd.Stream, string, error) {
	leave, no := r.Enter(h.Workload)
	if no != nil {
		return nil, "", errors.New(no.Message)
	}
	h.Kind, h.Target = q.Kind, q.Target
	conn, answer, err := r.begin(ctx, h)
	if err != nil {
		leave()
		r.cfg.Log.Info("stream refused", "env", h.Workload, "user", h.User, "stream", h.ID, "kind", h.Kind, "err", err)
		return nil, "", errors.New(answer.Message)
	}
	return &counted{UnixConn: conn, leave: leave}, answer.Address, nil
}

// counted is a connection that counts among the streams of the host.
type counted struct {
	*net.UnixConn
	leave func()
}

// Close ends it; it may be called again.
func (c *counted) Close() error {
	c.leave()
	return c.UnixConn.Close()
}
