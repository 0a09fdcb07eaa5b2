package sim

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"

	"github.com/remotegpu/remotegpu/edge-agent/reach"
)

// Line is how a host is connected. Its zero value is a perfect line from
// whatever address the system chooses.
type Line struct {
	Source netip.Addr    // 127.x.y.z for a host of its own address; zero: the system's choice
	Delay  time.Duration // before anything that came is read
	Rate   int           // bytes per second that are read; 0: no limit
}

// Wire is the network of a simulated host while it runs.
type Wire interface {
	// Cut ends every connection, as a reboot of the router does.
	Cut()
	// Hang makes the line dead, or well again: nothing comes, nothing goes, no
	// connection ends and none is made.
	Hang(dead bool)
}

// wire makes the connections of one host.
type wire struct {
	line Line

	mu    sync.Mutex // guards what follows
	dead  bool
	well  chan struct{} // closed while the line is not dead
	conns map[*conn]struct{}
}

func newWire(l Line) *wire {
	well := make(chan struct{})
	close(well)
	return &wire{line: l, well: well, conns: map[*conn]struct{}{}}
}

func (w *wire) dial(ctx context.Context, network, address string) (net.Conn, error) {
	select {
	case <-w.alive():
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	d := reach.Dialer()
	if w.line.Source.IsValid() {
		d.LocalAddr = &net.TCPAddr{IP: w.line.Source.AsSlice()}
	}
	raw, err := d.DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	c := &conn{Conn: raw, wire: w, closed: make(chan struct{})}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.conns[c] = struct{}{}
	return c, nil
}

// alive returns a channel that is closed once the line is not dead.
func (w *wire) alive() <-chan struct{} {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.well
}

func (w *wire) Cut() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for c := range w.conns {
		if t, ok := c.Conn.(*net.TCPConn); ok {
			_ = t.SetLinger(0) // fails only on a closed socket
		}
		c.Conn.Close()
	}
}

func (w *wire) Hang(dead bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case dead && !w.dead:
		w.well = make(chan struct{})
	case !dead && w.dead:
		close(w.well)
	}
	w.dead = dead
}

// conn is a connection over the line.
type conn struct {
	net.Conn
	wire   *wire
	once   sync.Once
	closed chan struct{}

	mu     sync.Mutex // guards what follows
	readBy time.Time
}

func (c *conn) Read(p []byte) (int, error) {
	line := c.wire.line
	if line.Rate > 0 {
		p = p[:min(len(p), max(1, line.Rate/10))]
	}
	n, err := c.Conn.Read(p)
	if wait := line.Delay + pause(n, line.Rate); wait > 0 && n > 0 {
		c.wait(wait)
	}
	if err == nil && !c.wait(0) {
		err = os.ErrDeadlineExceeded
	}
	return n, err
}

func pause(n, rate int) time.Duration {
	if rate == 0 {
		return 0
	}
	return time.Duration(n) * time.Second / time.Duration(rate)
}

// wait takes so long, and for as long as the line is dead; it reports whether
// it is well.
func (c *conn) wait(d time.Duration) bool {
	if d > 0 {
		select {
		case <-time.After(d):
		case <-c.closed:
			return false
		}
	}
	well := c.wire.alive()
	select {
	case <-well:
		return true
	default:
	}
	c.mu.Lock()
	by := c.readBy
	c.mu.Unlock()
	var late <-chan time.Time
	if !by.IsZero() {
		late = time.After(time.Until(by))
	}
	select {
	case <-well:
		return true
	case <-late:
	case <-c.closed:
	}
	return false
}

// Write loses what is written to a dead line, as a cable does that was cut far
// away.
func (c *conn) Write(p []byte) (int, error) {
	select {
	case <-c.wire.alive():
		return c.Conn.Write(p)
	case <-c.closed:
		return 0, net.ErrClosed
	default:
		return len(p), nil
	}
}

func (c *conn) SetReadDeadline(t time.Time) error {
	c.mu.Lock()
	c.readBy = t
	c.mu.Unlock()
	return c.Conn.SetReadDeadline(t)
}

func (c *conn) SetDeadline(t time.Time) error {
	return errors.Join(c.SetReadDeadline(t), c.SetWriteDeadline(t))
}

// CloseWrite ends the socket's writing alone.
func (c *conn) CloseWrite() error {
	if half, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return nil
}

func (c *conn) Close() error {
	c.once.Do(func() {
		close(c.closed)
		c.wire.mu.Lock()
		defer c.wire.mu.Unlock()
		delete(c.wire.conns, c)
	})
	return c.Conn.Close()
}
