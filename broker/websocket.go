package broker

import (
	"io"
	"net"
	"net/http"
	"time"

	"github.com/gorilla/websocket"
)

// wsConn is a byte stream over a WebSocket's binary messages, as MQTT over
// WebSocket wants it: message boundaries mean nothing.
type wsConn struct {
	*websocket.Conn
	rest io.Reader
}

var _ net.Conn = (*wsConn)(nil)

// Browsers may come from anywhere: MQTT authenticates in CONNECT, never by
// cookie.
var upgrader = websocket.Upgrader{
	Subprotocols: []string{"mqtt"}, HandshakeTimeout: connectTimeout,
	ReadBufferSize: 4096, WriteBufferSize: 4096, CheckOrigin: func(*http.Request) bool { return true },
}

// writeTimeout is how long a client may take none of what it is sent.
const writeTimeout = 20 * time.Second

func upgrade(w http.ResponseWriter, r *http.Request) (net.Conn, error) {
	ws, err := upgrader.Upgrade(w, r, nil)
	if err != nil {
		return nil, err
	}
	ws.SetReadLimit(2 * maxPacket)
	return &wsConn{Conn: ws}, nil
}

func (c *wsConn) Read(p []byte) (int, error) {
	for {
		if c.rest == nil {
			kind, r, err := c.NextReader()
			if err != nil {
				return 0, err
			}
			if kind != websocket.BinaryMessage {
				return 0, net.ErrClosed
			}
			c.rest = r
		}
		n, err := c.rest.Read(p)
		if err == io.EOF {
			c.rest, err = nil, nil
		}
		if n > 0 || err != nil {
			return n, err
		}
	}
}

// Write is called by one goroutine at a time: mochi holds the client's lock.
func (c *wsConn) Write(p []byte) (int, error) {
	if err := c.Conn.SetWriteDeadline(time.Now().Add(writeTimeout)); err != nil {
		return 0, err
	}
	if err := c.WriteMessage(websocket.BinaryMessage, p); err != nil {
		return 0, err
	}
	return len(p), nil
}

// SetDeadline bounds reads alone: mochi moves it beside writers, and a
// WebSocket's write deadline must not be touched there.
func (c *wsConn) SetDeadline(t time.Time) error { return c.SetReadDeadline(t) }

// SetWriteDeadline does nothing: every Write sets its own.
func (c *wsConn) SetWriteDeadline(time.Time) error { return nil }
