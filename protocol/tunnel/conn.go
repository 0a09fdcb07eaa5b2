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
)

// Conn is one stream over one WebSocket, a net.Conn with half-close. One
// goroutine may read while others write.
type Conn struct {
	ws *websocket.Conn

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
	closed   chan struct{}
	closeOne sync.Once
	onClose  func() // set before the connection is shared; may be nil
}

var _ net.Conn = (*Conn)(nil)

func newConn(ws *websocket.Conn) *Conn {
	ws.SetReadLimit(maxData)
	c := &Conn{ws: ws, writing: make(chan struct{}, 1), closed: make(chan struct{})}
	c.extend()
	time.AfterFunc(pingEvery, c.ping)
	return c
}

// ping keeps the path open, and shows the peer that we live: also while nobody
// reads here.
func (c *Conn) ping() {
	select {
	case <-c.closed:
	default:
		if c.say(textPing) == nil {
			time.AfterFunc(pingEvery, c.ping)
		}
	}
}

// extend moves the deadline by which something must come from the peer.
func (c *Conn) extend() {
	c.deadMu.Lock()
	defer c.deadMu.Unlock()
	if c.isClosed() {
		return // linger has set the last one
	}
	dead := time.Now().Add(deadAfter)
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
func (c *Conn) Read(p []byte) (int, error) {
	c.readMu.Lock()
	defer c.readMu.Unlock()
	for {
		if c.cur == nil {
			if err := c.next(); err != nil {
				return 0, err
			}
		}
		c.extend() // the reader may have paused for long
		n, err := c.cur.Read(p)
		if err == io.EOF {
			c.cur, err = nil, nil
			if n == 0 {
				continue
			}
		}
		if err != nil {
			c.cur, c.readErr = nil, c.endOf(err)
			err = c.readErr
		}
		return n, err
	}
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
			return nil
		default:
			c.readErr = c.control(r)
		}
		if c.readErr == io.EOF && err == nil {
			c.settle()
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
	case errors.As(err, &ce) && ce.Code == websocket.CloseInternalServerErr:
		return &Aborted{ce.Text}
	case errors.Is(err, os.ErrDeadlineExceeded) && !c.isLate():
		return fmt.Errorf("nothing came from the peer for %v: %w", deadAfter, io.ErrUnexpectedEOF)
	case errors.Is(err, io.EOF), errors.As(err, &ce) && ce.Code == websocket.CloseAbnormalClosure:
		return io.ErrUnexpectedEOF
	}
	return err
}

// Write writes p as one message, or several when it is large.
func (c *Conn) Write(p []byte) (int, error) {
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
	err := c.ws.WriteMessage(kind, p)
	if err != nil && c.isClosed() {
		return net.ErrClosed
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
