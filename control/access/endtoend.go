package access

import (
	"context"
	"net"
	"net/http"

	"golang.org/x/crypto/ssh"

	"github.com/remotegpu/remotegpu/control/auth"
	"github.com/remotegpu/remotegpu/control/errs"
	"github.com/remotegpu/remotegpu/control/web"
	"github.com/remotegpu/remotegpu/control/workspace"
	"github.com/remotegpu/remotegpu/protocol"
	"github.com/remotegpu/remotegpu/protocol/sshd"
	"github.com/remotegpu/remotegpu/protocol/tunnel"
)

// jumpUser is who a client may call itself that only jumps on from here.
const jumpUser = "jump"

// sshEnd opens a stream to the SSH end of the host on which name is: the
// client's SSH begins and ends outside of this process. All that is added is
// the certificate by which the client knows the host's key.
func (s *Service) sshEnd(ctx context.Context, c auth.Caller, name string) (*tunnel.Conn, error) {
	p, err := s.find(ctx, c, name, func(string) {})
	if err != nil {
		return nil, err
	}
	switch recorded, err := s.mustSee(ctx, p); {
	case err != nil:
		return nil, err
	case recorded:
		return nil, errs.Ef(errs.Conflict, "The workspace of %s records sessions, which end-to-end encryption would hide; connect to the gateway instead: ssh %s@GATEWAY.", name, name)
	}
	if err := s.note(ctx, c, p, sshd.Request{Kind: protocol.StreamSSH}); err != nil {
		return nil, err
	}
	conn, err := s.open(ctx, c, p.Environment, protocol.StreamHeader{Kind: protocol.StreamSSH})
	if err != nil {
		return nil, err
	}
	if err := s.sendCertificate(ctx, c, conn, p); err != nil {
		conn.Close()
		return nil, err
	}
	return conn, nil
}

// mustSee reports whether policy wants that sessions pass the gateway in the
// clear.
func (s *Service) mustSee(ctx context.Context, p place) (bool, error) {
	if s.cfg.Records == nil || p.isHost() {
		return false, nil
	}
	for _, terminal := range []bool{true, false} {
		if recorded, err := s.cfg.Records(ctx, p.Workspace, terminal); recorded || err != nil {
			return recorded, err
		}
	}
	return false, nil
}

func (s *Service) sendCertificate(ctx context.Context, c auth.Caller, conn *tunnel.Conn, p place) error {
	key, err := ssh.ParsePublicKey(conn.Key())
	if err != nil {
		return err
	}
	var ws workspace.Workspace
	if !p.isHost() {
		if ws, err = s.cfg.Workspace(ctx, c, p.Workspace); err != nil {
			return err
		}
	}
	cert, err := s.certify(key, p.names(ws.Name))
	if err != nil {
		return err
	}
	return protocol.WriteFrame(conn, protocol.FrameCertificate, cert.Marshal())
}

// jump returns the name that a client who dials host:22 through us wants to
// reach end to end. A connection to an environment dials in its network instead.
func (s *Service) jump(ctx context.Context, c auth.Caller, user string, r sshd.Request) (name string, ok bool) {
	if r.Kind != protocol.StreamDial || r.Target.Network != protocol.NetworkTCP {
		return "", false
	}
	host, port, err := net.SplitHostPort(r.Target.Address)
	if err != nil || port != "22" {
		return "", false
	}
	if user != jumpUser {
		if _, err := s.cfg.Find(ctx, c, user); err == nil || errs.KindOf(err) != errs.NotFound {
			return "", false
		}
	}
	return calledBy(host), true
}

// connect carries SSH over the HTTPS port for callers that the API knows. With
// ?to=NAME it is end to end where it can be; with &mode=end-to-end, or not at all.
func (s *Service) connect(api *web.API, w http.ResponseWriter, r *http.Request) {
	c := auth.From(r.Context())
	if err := c.Require(auth.AccountRead, ""); err != nil {
		api.Fail(w, r, err)
		return
	}
	to := calledBy(r.URL.Query().Get("to"))
	var end *tunnel.Conn
	if to != "" {
		var err error
		strict := r.URL.Query().Get("mode") == "end-to-end"
		if end, err = s.sshEnd(r.Context(), c, to); err != nil && strict {
			api.Fail(w, r, err)
			return
		} // else the session itself says what is wrong, or waits
	}
	conn, err := tunnel.Upgrade(w, r)
	if err != nil { // Upgrade has answered
		if end != nil {
			end.Close()
		}
		return
	}
	if end == nil {
		s.serveConn(r.Context(), conn, nil, &visitor{caller: c, to: to})
		return
	}
	stop := context.AfterFunc(r.Context(), func() { conn.Close() })
	defer stop()
	tunnel.Splice(conn, end)
}
