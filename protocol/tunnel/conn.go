package tunnel

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gorilla/websocket"

	"github.com/remotegpu/remotegpu/protocol"
)

// Conn is one stream over one WebSocket, a net.Conn with half-close. One
// goroutine may read while others write.
type Conn struct {
	ws  *websocket.Conn
	out *batch // under ws; nil: none

	writing  chan struct{} // of one, full while somebody writes to ws; guards wroteEOF too
	wroteEOF bool

	readMu   sync.Mutex    // guards what follows
	cur      io.Reader     // rest of the data message being read
	readErr  error         // how reading has ended; io.EOF: the peer has said so
	controls int           // control messages in a row
	settled  chan struct{} // nil until settle; closed when it has ended

	deadMu   sync.Mutex  // guards what follows and the socket's deadlines
	readBy   time.Time   // the user's
	ended    bool        // reading has: readBy means nothing any more
	writeBy  time.Time   // the user's
	saying   atomic.Bool // a ping or pong is being written
	broken   atomic.Bool // the network has ended it, not an end
	closed   chan struct{}
	closeOne sync.Once
	onClose  func()             // set before the connection is shared; may be nil
	listens  string             // as onClose
	key      []byte             // as onClose
	rdp      *protocol.RDPReply // as onClose
	caps     byteCaps           // as onClose

	read, wrote atomic.Uint64 // bytes of the stream
	survives    atomic.Bool
	used        atomic.Bool  // it has carried data: it is no spare
	spoke       atomic.Int64 // Unix nanoseconds of the last write
}

var _ net.Conn = (*Conn)(nil)

func newConn(ws *websocket.Conn) *Conn {
	ws.SetReadLimit(maxData)
	c := &Conn{ws: ws, out: batchUnder(ws.NetConn()), writing: make(chan struct{}, 1), closed: make(chan struct{})}
	c.extend()
	time.AfterFunc(pingEvery, c.ping)
	return c
}

// ping keeps the path open, and shows the peer that we live: also while nobody
// reads here. Whatever else was written does both, as the answer to the peer's
// ping: so of two idle ends one asks.
func (c *Conn) ping() {
	every, _ := c.rhythm()
	wait := every
	switch quiet := time.Since(time.Unix(0, c.spoke.Load())); {
	case c.isClosed():
		return
	case quiet < every-every/8:
		wait -= quiet
	case c.say(textPing) != nil:
		return
	}
	time.AfterFunc(wait, c.ping)
}

// rhythm is how often a ping is due, and how long silence may last.
func (c *Conn) rhythm() (ping, dead time.Duration) {
	if c.used.Load() {
		return pingEvery, deadAfter
	}
	return restPing, restDead
}

// extend moves the deadline by which something must come from the peer.
func (c *Conn) extend() {
	c.deadMu.Lock()
	defer c.deadMu.Unlock()
	if c.isClosed() {
		return // linger has set the last one
	}
	_, silence := c.rhythm()
	dead := time.Now().Add(silence)
	if !c.ended && !c.readBy.IsZero() && c.readBy.Before(dead) {
		dead = c.readBy
	}
	_ = c.ws.SetReadDeadline(dead) // fails only on a closed socket, as the next read will
}

func (c *Conn) isClosed() bool {
	select {
	case <-c.closed:
		return true
	default:
		return false
	}
}

// isLate reports whether the user's read deadline has passed.
func (c *Conn) isLate() bool {
	c.deadMu.Lock()
	defer c.deadMu.Unlock()
	return !c.readBy.IsZero() && !time.Now().Before(c.readBy)
}

// Read reads bytes of the stream. It returns io.EOF after the peer's
// CloseWrite or Close, *Aborted after its CloseWithError, net.ErrClosed after
// our own, and another error when the connection broke.
func (c *Conn) Read(p []byte) (int, error) { return c.take(p, false) }

// take is Read; when whole, it returns only once the message has ended or p is
// full.
func (c *Conn) take(p []byte, whole bool) (n int, err error) {
	n, err = c.takeNow(p, whole)
	c.caps.wait(n, c.closed)
	return n, err
}

func (c *Conn) takeNow(p []byte, whole bool) (n int, err error) {
	c.readMu.Lock()
	defer c.readMu.Unlock()
	for n == 0 || whole && c.cur != nil && n < len(p) {
		if c.cur == nil {
			if err := c.next(); err != nil {
				return 0, err
			}
		}
		c.extend() // the reader may have paused for long
		m, err := c.cur.Read(p[n:])
		n += m
		c.read.Add(uint64(m))
		if err == io.EOF {
			c.cur, err = nil, nil
		}
		if err != nil {
			c.cur, c.readErr = nil, c.endOf(err)
			return n, c.readErr
		}
		if len(p) == 0 {
			break
		}
	}
	return n, nil
}

// next goes to the next data message, answering control messages on the way.
// It needs readMu.
func (c *Conn) next() error {
	for c.readErr == nil {
		c.extend()
		kind, r, err := c.ws.NextReader()
		switch {
		case err != nil:
			c.readErr = c.endOf(err)
		case kind == websocket.BinaryMessage:
			c.cur, c.controls = r, 0
			c.used.Store(true)
			return nil
		default:
			c.readErr = c.control(r)
		}
		switch {
		case c.readErr == io.EOF && err == nil:
			c.settle()
		case c.readErr == io.EOF:
			c.Close() // the peer has closed: what is written now is for nobody
		}
	}
	return c.readErr
}

// control answers a control message; io.EOF is the peer's half-close.
func (c *Conn) control(r io.Reader) error {
	b, err := io.ReadAll(io.LimitReader(r, maxText))
	if err != nil {
		return c.endOf(err)
	}
	if c.controls++; c.controls > maxControls {
		return errors.New("peer floods control messages")
	}
	switch string(b) {
	case textEOF:
		return io.EOF
	case textPing:
		// Beside the reader: one that waited for its writer would wait for the
		// peer's reader, and that for us: with bulk both ways, for ever.
		go c.say(textPong)
		return nil
	case textPong:
		return nil
	}
	return fmt.Errorf("peer sent an unknown control message %.20q", b)
}

// say sends a sign of life, if none is on its way.
func (c *Conn) say(text string) error {
	if c.saying.Swap(true) {
		return nil
	}
	defer c.saying.Store(false)
	return c.writeText(text)
}

// endOf says how a connection ended: only a clean close is an end of bytes.
func (c *Conn) endOf(err error) error {
	var ce *websocket.CloseError
	switch {
	case c.isClosed():
		return net.ErrClosed
	case errors.As(err, &ce) && ce.Code == websocket.CloseNormalClosure:
		return io.EOF
	case errors.As(err, &ce) && ce.Code == websocket.CloseServiceRestart:
		return restarting(ce.Text)
	case errors.As(err, &ce) && ce.Code == websocket.CloseInternalServerErr:
		return &Aborted{ce.Text}
	}
	c.broken.Store(!c.isLate())
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded) && !c.isLate():
		_, silence := c.rhythm()
		return fmt.Errorf("nothing came from the peer for %v: %w", silence, io.ErrUnexpectedEOF)
	case errors.Is(err, io.EOF), errors.As(err, &ce) && ce.Code == websocket.CloseAbnormalClosure:
		return io.ErrUnexpectedEOF
	}
	return err
}

// Write writes p as one message, or several when it is large.
func (c *Conn) Write(p []byte) (int, error) {
	c.caps.wait(len(p), c.closed)
	c.lockWrites()
	defer c.unlockWrites()
	switch {
	case c.isClosed():
		return 0, net.ErrClosed
	case c.wroteEOF:
		return 0, io.ErrClosedPipe
	}
	for n := 0; ; {
		part := p[n:min(len(p), n+maxData)]
		if err := c.write(websocket.BinaryMessage, part); err != nil {
			return n, err
		}
		c.wrote.Add(uint64(len(part)))
		if n += len(part); n == len(p) {
			return n, nil
		}
	}
}

func (c *Conn) lockWrites()   { c.writing <- struct{}{} }
func (c *Conn) unlockWrites() { <-c.writing }

// write needs lockWrites.
func (c *Conn) write(kind int, p []byte) error {
	var by time.Time // a ping of ours must not run into the user's deadline
	if kind == websocket.BinaryMessage {
		c.deadMu.Lock()
		by = c.writeBy
		c.deadMu.Unlock()
	}
	_ = c.ws.SetWriteDeadline(by) // only notes it
	err := c.send(kind, p)
	c.used.Store(c.used.Load() || kind == websocket.BinaryMessage)
	c.spoke.Store(time.Now().UnixNano())
	if err != nil && c.isClosed() {
		return net.ErrClosed
	}
	c.broken.Store(c.broken.Load() || err != nil)
	return err
}

// send needs lockWrites.
func (c *Conn) send(kind int, p []byte) error {
	if c.out == nil || len(p) < batchLeast {
		return c.ws.WriteMessage(kind, p)
	}
	c.out.hold()
	err := c.ws.WriteMessage(kind, p)
	if lost := c.out.flush(); err == nil {
		err = lost
	}
	return err
}

func (c *Conn) writeText(text string) error {
	c.lockWrites()
	defer c.unlockWrites()
	return c.write(websocket.TextMessage, []byte(text))
}

// ReadMessage reads one whole message of at most limit bytes.
func (c *Conn) ReadMessage(limit int) ([]byte, error) {
	c.readMu.Lock()
	defer c.readMu.Unlock()
	if err := c.next(); err != nil {
		return nil, err
	}
	b, err := io.ReadAll(io.LimitReader(c.cur, int64(limit)+1))
	c.cur = nil
	switch {
	case err != nil:
		c.readErr = c.endOf(err)
	case len(b) > limit:
		c.readErr = fmt.Errorf("message is over the limit of %d bytes", limit)
	}
	return b, c.readErr
}

// WriteMessage writes one whole message.
func (c *Conn) WriteMessage(b []byte) error {
	_, err := c.Write(b)
	return err
}

// Closed is closed when the stream has ended in both directions, or nearly: by
// Close of either side. It needs somebody who reads.
func (c *Conn) Closed() <-chan struct{} { return c.closed }

// Survives says that who uses the stream comes back by another one when it
// ends.
func (c *Conn) Survives() { c.survives.Store(true) }

// Moved returns how many bytes of the stream have come and gone.
func (c *Conn) Moved() (read, wrote uint64) { return c.read.Load(), c.wrote.Load() }

// RDP returns what an RDP server answered to the request that Hub.Open has sent
// with a StreamRDP.
func (c *Conn) RDP() *protocol.RDPReply { return c.rdp }

// Listens returns where a StreamListen that Hub.Open has opened listens.
func (c *Conn) Listens() string { return c.listens }

// Key returns the SSH host key of a StreamSSH that Hub.Open has opened.
func (c *Conn) Key() []byte { return c.key }

// LocalAddr returns the socket's own address.
func (c *Conn) LocalAddr() net.Addr { return c.ws.LocalAddr() }

// RemoteAddr returns the socket's other end, which may be a proxy.
func (c *Conn) RemoteAddr() net.Addr { return c.ws.RemoteAddr() }

// SetDeadline sets both deadlines.
func (c *Conn) SetDeadline(t time.Time) error {
	_ = c.SetReadDeadline(t) // the same error comes from the next line
	return c.SetWriteDeadline(t)
}

// SetReadDeadline bounds reads, also one under way. As with any WebSocket, a
// read that ran into it has ended reading.
func (c *Conn) SetReadDeadline(t time.Time) error {
	c.deadMu.Lock()
	c.readBy = t
	c.deadMu.Unlock()
	c.extend()
	return nil
}

// SetWriteDeadline bounds writes, also one under way. A write that ran into it
// has ended writing.
func (c *Conn) SetWriteDeadline(t time.Time) error {
	c.deadMu.Lock()
	defer c.deadMu.Unlock()
	if c.isClosed() {
		return net.ErrClosed
	}
	c.writeBy = t
	return c.ws.NetConn().SetWriteDeadline(t)
}
