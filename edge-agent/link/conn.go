package link

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"time"

	"github.com/eclipse/paho.golang/autopaho"
	"github.com/eclipse/paho.golang/paho"
	"github.com/gorilla/websocket"
)

// httpError is a server that answered, but not with a WebSocket.
type httpError struct{ status int }

func (e *httpError) Error() string {
	return fmt.Sprintf("server answered %d %s", e.status, http.StatusText(e.status))
}

// open makes the connection that MQTT is spoken on.
func (l *Link) open(ctx context.Context, _ autopaho.ClientConfig, u *url.URL) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, l.retry.patience())
	defer cancel()
	var conn net.Conn
	var err error
	switch u.Scheme {
	case "wss":
		conn, err = l.openWebSocket(ctx, u)
	case "tls", "ssl", "mqtts":
		conn, err = l.openTLS(ctx, u.Host)
	default:
		err = fmt.Errorf("MQTT address %s: its scheme must be wss or tls", u.Redacted())
	}
	if err != nil {
		return nil, err
	}
	g := newGuard(conn, func(n int) {
		l.refused.add(refusal{kind: "packet", reason: "DesiredRefused", err: fmt.Errorf("a message of %d bytes is larger than any document and was not read", n)})
	})
	l.mu.Lock()
	l.conn = g
	l.mu.Unlock()
	return g, nil
}

func (l *Link) openWebSocket(ctx context.Context, u *url.URL) (net.Conn, error) {
	d := websocket.Dialer{
		NetDialContext:   l.cfg.Server.Dial, // knows the proxy
		TLSClientConfig:  l.cfg.Server.TLS(),
		HandshakeTimeout: l.retry.patience(),
		Subprotocols:     []string{"mqtt"},
	}
	ws, res, err := d.DialContext(ctx, u.String(), nil)
	if errors.Is(err, websocket.ErrBadHandshake) && res != nil {
		return nil, &httpError{res.StatusCode}
	}
	if err != nil {
		return nil, err
	}
	return &wsConn{Conn: ws}, nil
}

// wsConn is a WebSocket as a stream of bytes: MQTT packets do not have to
// agree with messages.
type wsConn struct {
	*websocket.Conn
	message io.Reader // the one that is being read; nil: none
}

func (c *wsConn) Read(p []byte) (int, error) {
	for {
		if c.message == nil {
			kind, r, err := c.NextReader()
			if err != nil {
				return 0, err
			}
			if kind != websocket.BinaryMessage {
				return 0, errors.New("server sent text where MQTT was expected")
			}
			c.message = r
		}
		n, err := c.message.Read(p)
		if errors.Is(err, io.EOF) {
			c.message, err = nil, nil
		}
		if n > 0 || err != nil {
			return n, err
		}
	}
}

func (c *wsConn) Write(p []byte) (int, error) {
	if err := c.WriteMessage(websocket.BinaryMessage, p); err != nil {
		return 0, err
	}
	return len(p), nil
}

// SetDeadline sets the deadline of reads. That of writes may only be set by who
// writes.
func (c *wsConn) SetDeadline(t time.Time) error { return c.SetReadDeadline(t) }

// notConnected notes why an attempt led to nothing.
func (l *Link) notConnected(err error) {
	l.retry.slow(tookTooLong(err))
	phase, message := Connecting, l.cfg.Server.Sentence(err)
	var connack *autopaho.ConnackError
	var answer *httpError
	switch {
	case errors.As(err, &connack):
		phase, message = connackSentence(connack)
	case errors.As(err, &answer):
		phase, message = answer.sentence()
	}
	l.tell(phase, message, err)
}

// tookTooLong reports whether an attempt that found the server had no answer in
// time. One that found nobody was no work for anybody: the line may be cut, and
// may be back at any moment.
func tookTooLong(err error) bool {
	if op, ok := errors.AsType[*net.OpError](err); ok && op.Op == "dial" {
		return false
	}
	network, ok := errors.AsType[net.Error](err)
	return errors.Is(err, context.DeadlineExceeded) || ok && network.Timeout()
}

func (l *Link) tell(phase, message string, err error) {
	l.retry.reject(phase == Refused)
	if l.setState(phase, message) {
		l.cfg.Log.Warn("not connected to the server", "reason", message, "err", err)
	}
}

const notLetIn = "The server does not let this host in: see under Hosts in the console whether it waits for approval or was retired. The agent goes on asking."

// Reason codes of CONNACK and DISCONNECT (MQTT 5, section 2.4).
const (
	codeBadLogin   = 0x86
	codeNotAllowed = 0x87
	codeBanned     = 0x8A
	codeStops      = 0x8B
	codeTakenOver  = 0x8E
	codeAdmin      = 0x98
	codeClientID   = 0x85
)

func connackSentence(e *autopaho.ConnackError) (phase, message string) {
	switch e.ReasonCode {
	case codeBadLogin, codeNotAllowed, codeBanned, codeClientID:
		if e.Reason != "" {
			return Refused, notLetIn + " It says: " + e.Reason
		}
		return Refused, notLetIn
	}
	return Connecting, fmt.Sprintf("The server is there, but takes no connection now (MQTT reason %#x %s). It is tried again.", e.ReasonCode, e.Reason)
}

func (e *httpError) sentence() (phase, message string) {
	switch e.status {
	case http.StatusUnauthorized, http.StatusForbidden:
		return Refused, notLetIn
	case http.StatusNotFound, http.StatusOK:
		return Connecting, "The address is not that of a RemoteGPU server: it has no /mqtt. Check --server, and that what stands in front of the server passes /mqtt on as a WebSocket."
	}
	return Connecting, fmt.Sprintf("The server, or what stands in front of it, answered %d (%s). It is tried again.", e.status, http.StatusText(e.status))
}

// sentAway is a DISCONNECT of the server.
func (l *Link) sentAway(d *paho.Disconnect) {
	reason := ""
	if d.Properties != nil {
		reason = d.Properties.ReasonString
	}
	err := fmt.Errorf("server closed the session with reason %#x %s", d.ReasonCode, reason)
	switch d.ReasonCode {
	case codeBadLogin, codeNotAllowed, codeBanned, codeAdmin:
		l.tell(Refused, notLetIn, err)
	case codeStops:
		l.retry.leave()
		l.cfg.Log.Info("the server stops, and says so")
	case codeTakenOver:
		l.tell(Connecting, "Another agent has connected as this host: was the machine's disk copied? Enrol the copy anew after deleting its data folder.", err)
	default:
		l.cfg.Log.Info("link closed by the server", "err", err)
	}
}
