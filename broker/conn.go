package broker

import (
	"io"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gorilla/websocket"
)

// conn is what mochi reads and writes: TCP, TLS or WebSocket.
type conn struct {
	net.Conn
	raw     net.Conn // below a WebSocket, or the same
	remote  netip.Addr
	first   []byte // of CONNECT, read before mochi was asked
	session atomic.Pointer[session]
	hurried atomic.Bool
}

func (c *conn) Read(p []byte) (int, error) {
	if len(c.first) > 0 {
		n := copy(p, c.first)
		c.first = c.first[n:]
		return n, nil
	}
	return c.Conn.Read(p)
}

// Write gives the client time for each 64 KiB, however much p is. Mochi goes
// on after a write that failed; we do not. One goroutine at a time calls it:
// mochi holds the client's lock.
func (c *conn) Write(p []byte) (n int, err error) {
	for n < len(p) {
		wait := writeTimeout
		if c.hurried.Load() {
			wait = byeTimeout
		}
		if err = c.Conn.SetWriteDeadline(time.Now().Add(wait)); err != nil {
			break
		}
		var m int
		m, err = c.Conn.Write(p[n:min(len(p), n+64<<10)])
		if n += m; err != nil {
			break
		}
	}
	if err != nil {
		c.Close()
	}
	return n, err
}

// SetDeadline bounds reads alone: mochi moves it with every packet that comes,
// and a client that speaks but does not listen would live for ever.
func (c *conn) SetDeadline(t time.Time) error { return c.Conn.SetReadDeadline(t) }

// SetWriteDeadline does nothing: every Write sets its own.
func (c *conn) SetWriteDeadline(time.Time) error { return nil }

// hurry gives a write under way, and those to come, a last moment.
func (c *conn) hurry() {
	c.hurried.Store(true)
	_ = c.raw.SetWriteDeadline(time.Now().Add(byeTimeout)) // fails only on a closed socket
}

// wsConn is a byte stream over a WebSocket's binary messages, as MQTT over
// WebSocket wants it: message boundaries mean nothing.
type wsConn struct {
	*websocket.Conn
	rest io.Reader
}

var _ net.Conn = (*wsConn)(nil)

// Buffers are small, for they are held while nothing happens: what is larger is
// read past them. One to write with is held during a write alone.
var writeBufs sync.Pool

// Browsers may come from anywhere: MQTT authenticates in CONNECT, never by
// cookie.
var upgrader = websocket.Upgrader{
	Subprotocols: []string{"mqtt"}, HandshakeTimeout: connectTimeout,
	ReadBufferSize: 512, WriteBufferSize: 4096, WriteBufferPool: &writeBufs, CheckOrigin: func(*http.Request) bool { return true },
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

func (c *wsConn) Write(p []byte) (int, error) {
	if err := c.WriteMessage(websocket.BinaryMessage, p); err != nil {
		return 0, err
	}
	return len(p), nil
}

func (c *wsConn) SetDeadline(t time.Time) error {
	if err := c.SetReadDeadline(t); err != nil {
		return err
	}
	return c.SetWriteDeadline(t)
}
