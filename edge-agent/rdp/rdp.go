// Package rdp is the end of an RDP connection that lies beside the server, for
// clients that cannot do X.224 and TLS themselves (a browser).
//
// It owns the negotiation, TLS, and the few changes to what is said inside of
// TLS: keyboard layout, credentials, the clipboard's policy, and what xrdp and
// its clients need put right. Whom to connect with is the relay's business. Its
// invariant: what it does not change passes byte for byte, and what it cannot
// read ends the connection instead of passing a policy by.
//
//	client                                         server
//	  |  X.224 Connection Request, Confirm ---------->|  Open
//	  |  TLS (1.2 at most when CredSSP follows) ----->|
//	  | CredSSP <------------------------------------>|  Serve: as it is
//	  | MCS Connect Initial <- layout, xrdp, channels |
//	  | Client Info <- credentials                    |
//	  | channel data <- clipboard's policy            |
package rdp

import (
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/remotegpu/remotegpu/protocol"
)

// stepTimeout bounds the negotiation and TLS, each.
const stepTimeout = 10 * time.Second

// Login is whom the server is told to log in. The zero Login leaves what the
// client says.
type Login struct{ User, Password string }

// Session is a connection with a server, up to TLS.
type Session struct {
	server *tls.Conn
	req    protocol.RDPRequest
	login  Login
	xrdp   bool
}

// Open goes with the server through X.224 and TLS. A server that refuses is
// told of by a reply without certificates, and no Session. It does not close
// conn.
func Open(conn net.Conn, req protocol.RDPRequest) (*Session, protocol.RDPReply, error) {
	var reply protocol.RDPReply
	if err := checkRequest(req.Negotiation); err != nil {
		return nil, reply, err
	}
	_ = conn.SetDeadline(time.Now().Add(stepTimeout)) // fails only on a closed socket
	if _, err := conn.Write(req.Negotiation); err != nil {
		return nil, reply, fmt.Errorf("send X.224 request: %w", err)
	}
	confirm, err := readTPKT(conn, protocol.MaxNegotiation)
	if err != nil {
		return nil, reply, fmt.Errorf("read X.224 confirm: %w", err)
	}
	reply.Confirm = confirm
	chosen, err := selected(confirm)
	if err != nil || chosen == protocolRDP {
		return nil, reply, err // the client reads why in Confirm
	}
	_ = conn.SetDeadline(time.Now().Add(stepTimeout)) // as above
	server, err := handshake(conn, chosen)
	if err != nil {
		return nil, reply, err
	}
	_ = conn.SetDeadline(time.Time{}) // as above
	for _, c := range server.ConnectionState().PeerCertificates {
		reply.Certificates = append(reply.Certificates, c.Raw)
	}
	s := &Session{server: server, req: req}
	s.xrdp = req.Server == protocol.RDPServerXrdp || req.Server == "" && looksLikeXrdp(req.Negotiation, chosen)
	return s, reply, nil
}

// handshake does TLS. Nobody has certified the server's name: the client gets
// the certificate, and the way to the server is this host's loopback.
func handshake(conn net.Conn, chosen uint32) (*tls.Conn, error) {
	cfg := &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS12}
	if chosen != protocolTLS {
		cfg.MaxVersion = tls.VersionTLS12 // CredSSP of Windows fails over 1.3
	}
	server := tls.Client(conn, cfg)
	if err := server.Handshake(); err != nil {
		return nil, fmt.Errorf("tls with the RDP server: %w", err)
	}
	return server, nil
}

// LogIn lets the server log l in, where it takes a password by TLS; one that
// asks for CredSSP (NLA) hears the client's.
func (s *Session) LogIn(l Login) { s.login = l }

// errUnreadable ends a connection on which something cannot be read.
var errUnreadable = errors.New("rdp: what the client and the server say cannot be read")

// looksLikeXrdp guesses from what the server has chosen: one that chooses TLS
// though CredSSP was offered is no Windows as it is set up. What is put right
// for xrdp does no harm to others.
func looksLikeXrdp(request []byte, chosen uint32) bool {
	offered, ok := negotiated(request, typeRequest)
	return ok && chosen == protocolTLS && offered&protocolHybrid != 0
}

// hasPrefixAt reports whether p has prefix at offset.
func hasPrefixAt(p []byte, offset int, prefix ...byte) bool {
	return len(p) >= offset && bytes.HasPrefix(p[offset:], prefix)
}
