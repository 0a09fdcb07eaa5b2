package door

import (
	"crypto/tls"
	"errors"
	"net"
	"runtime"
	"sync/atomic"
	"time"
)

// Turns lets a few TLS handshakes at a time compute. When a whole fleet comes at
// once, all of them together would be finished after their clients have given
// up, who then come again: nobody would ever get in. One after the other, those
// who are begun get in.
type Turns struct{ slots chan struct{} }

// waitTurn is less than clients wait for a handshake.
const waitTurn = 5 * time.Second

var errNoTurn = errors.New("too many handshakes at once")

// NewTurns returns turns for this machine's processors.
func NewTurns() *Turns { return &Turns{make(chan struct{}, 2*runtime.GOMAXPROCS(0))} }

// Listener returns l for connections that Config's handshakes are made on.
func (t *Turns) Listener(l net.Listener) net.Listener { return turnListener{l, t} }

// Config returns cfg with handshakes that wait for their turn. A turn begins
// when the client has said hello, and ends with what the server first writes, or
// with the connection: nobody's silence holds it.
func (t *Turns) Config(cfg *tls.Config) *tls.Config {
	cfg = cfg.Clone()
	cfg.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		c := turnOf(hello.Conn)
		if c == nil {
			return nil, nil
		}
		late := time.NewTimer(waitTurn)
		defer late.Stop()
		select {
		case t.slots <- struct{}{}:
			c.has.Store(true)
			return nil, nil
		case <-late.C:
			return nil, errNoTurn
		case <-hello.Context().Done():
			return nil, hello.Context().Err()
		}
	}
	return cfg
}

type turnListener struct {
	net.Listener
	turns *Turns
}

func (l turnListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &turn{Conn: c, turns: l.turns}, nil
}

// turn is a connection that may have one.
type turn struct {
	net.Conn
	turns *Turns
	has   atomic.Bool
}

// turnOf looks through what lies between TLS and the listener's connection.
func turnOf(c net.Conn) *turn {
	for {
		if t, ok := c.(*turn); ok {
			return t
		}
		inner, ok := c.(interface{ NetConn() net.Conn })
		if !ok {
			return nil
		}
		c = inner.NetConn()
	}
}

func (c *turn) over() {
	if c.has.Load() && c.has.Swap(false) {
		<-c.turns.slots
	}
}

func (c *turn) Write(p []byte) (int, error) {
	c.over()
	return c.Conn.Write(p)
}

func (c *turn) Close() error {
	c.over()
	return c.Conn.Close()
}

// CloseWrite ends the socket's writing, where it can be ended alone.
func (c *turn) CloseWrite() error {
	if half, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return nil
}
