package tunnel

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gorilla/websocket"
)

// Conn is one stream over one WebSocket, a net.Conn with half-close. One
// goroutine may read while others write.
type Conn struct {
	ws *websocket.Conn

	writeMu  sync.Mutex // guards writes to ws and wroteEOF
	wroteEOF bool

	readMu   sync.Mutex // guards cur and readErr
	cur      io.Reader  // rest of the data message being read
	readErr  error
	readEOF  bool         // the peer has said eof
	readBy   atomic.Int64 // user's read deadline, Unix nanoseconds; 0: none
	closed   chan struct{}
	closeOne sync.Once
	onClose  func() // set before the connection is shared; may be nil
}

var _ net.Conn = (*Conn)(nil)

// DialConfig says where and how to dial.
type DialConfig struct {
	URL    string // wss://…
	Header http.Header
	TLS    *tls.Config
	Proxy  func(*http.Request) (*url.URL, error) // nil: none
}

var pool = sync.Pool{} // of write buffers, shared by all connections

// Rejected is an HTTP answer that is no WebSocket.
type Rejected struct {
	Status int
	Body   string // at most 4 KiB of it
}

func (r *Rejected) Error() string {
	return fmt.Sprintf("server answers %d: %s", r.Status, r.Body)
}

// Dial opens a WebSocket.
func Dial(ctx context.Context, cfg DialConfig) (*Conn, error) {
	d := websocket.Dialer{
		Proxy: cfg.Proxy, TLSClientConfig: cfg.TLS, HandshakeTimeout: 20 * time.Second,
		ReadBufferSize: bufSize, WriteBufferSize: bufSize, WriteBufferPool: &pool,
	}
	ws, resp, err := d.DialContext(ctx, cfg.URL, cfg.Header)
	if err != nil {
		if resp != nil && errors.Is(err, websocket.ErrBadHandshake) {
			body, _ := io.ReadAll(io.LimitReader(resp.Body, 4096)) // what came is enough
			return nil, &Rejected{resp.StatusCode, string(body)}
		}
		return nil, fmt.Errorf("dial %s: %w", cfg.URL, err)
	}
	return newConn(ws), nil
}

var upgrader = websocket.Upgrader{
	ReadBufferSize: bufSize, WriteBufferSize: bufSize, WriteBufferPool: &pool,
	HandshakeTimeout: 20 * time.Second,
	CheckOrigin:      sameOriginOrNone,
}

// sameOriginOrNone lets programs in, which send no Origin, and pages of this
// server; a page of another site could otherwise ride on a cookie.
func sameOriginOrNone(r *http.Request) bool {
	origin := r.Header.Get("Origin")
	if origin == "" {
		return true
	}
	u, err := url.Parse(origin)
	return err == nil && u.Host == r.Host
}

// Upgrade answers a request with a WebSocket. When it fails it has answered.
func Upgrade(w http.ResponseWriter, r *http.Request) (*Conn, error) {
	ws, err := upgrader.Upgrade(w, r, nil)
	if err != nil {
		return nil, fmt.Errorf("upgrade to WebSocket: %w", err)
	}
	return newConn(ws), nil
}

func newConn(ws *websocket.Conn) *Conn {
	ws.SetReadLimit(maxData)
	c := &Conn{ws: ws, closed: make(chan struct{})}
	c.extend()
	go c.ping()
	return c
}

// ping keeps the path open, and shows the peer that we live.
func (c *Conn) ping() {
	tick := time.NewTicker(pingEvery)
	defer tick.Stop()
	for {
		select {
		case <-c.closed:
			return
		case <-tick.C:
			if c.writeText(textPing) != nil {
				return
			}
		}
	}
}

// extend moves the deadline by which something must come from the peer.
func (c *Conn) extend() {
	dead := time.Now().Add(deadAfter)
	if user := c.readBy.Load(); user != 0 && user < dead.UnixNano() {
		dead = time.Unix(0, user)
	}
	_ = c.ws.SetReadDeadline(dead) // fails only on a closed socket, as the next read will
}

// Read reads bytes of the stream. It returns io.EOF after the peer's
// CloseWrite, and another error when the connection ended without one.
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
		return n, err
	}
}

// next goes to the next data message, answering control messages on the way.
func (c *Conn) next() error {
	if c.readEOF {
		return io.EOF
	}
	for c.readErr == nil {
		c.extend()
		kind, r, err := c.ws.NextReader()
		if err != nil {
			c.readErr = c.endOf(err)
			break
		}
		if kind == websocket.BinaryMessage {
			c.cur = r
			return nil
		}
		if c.readErr = c.control(r); c.readEOF {
			return io.EOF
		}
	}
	return c.readErr
}

func (c *Conn) control(r io.Reader) error {
	b, err := io.ReadAll(io.LimitReader(r, maxText))
	if err != nil {
		return c.endOf(err)
	}
	switch string(b) {
	case textEOF:
		c.readEOF = true
	case textPing:
		return c.writeText(textPong)
	case textPong:
	default:
		return fmt.Errorf("peer sent an unknown control message %.20q", b)
	}
	return nil
}

// endOf says how a connection ended: only a clean close is an end of bytes.
func (c *Conn) endOf(err error) error {
	var ce *websocket.CloseError
	switch {
	case errors.As(err, &ce) && ce.Code == websocket.CloseNormalClosure:
		return io.EOF
	case errors.As(err, &ce) && ce.Text != "":
		return fmt.Errorf("stream aborted by peer: %s", ce.Text)
	case errors.Is(err, io.EOF):
		return io.ErrUnexpectedEOF
	}
	return err
}

// Write writes p as one message.
func (c *Conn) Write(p []byte) (int, error) {
	c.writeMu.Lock()
	defer c.writeMu.Unlock()
	if c.wroteEOF {
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

// write needs writeMu.
func (c *Conn) write(kind int, p []byte) error {
	return c.ws.WriteMessage(kind, p)
}

func (c *Conn) writeText(text string) error {
	c.writeMu.Lock()
	defer c.writeMu.Unlock()
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
	if err == nil && len(b) > limit {
		err = fmt.Errorf("message is over the limit of %d bytes", limit)
	}
	return b, err
}

// WriteMessage writes one whole message.
func (c *Conn) WriteMessage(b []byte) error {
	_, err := c.Write(b)
	return err
}

// CloseWrite says that no more bytes come from this side; the other direction
// goes on.
func (c *Conn) CloseWrite() error {
	c.writeMu.Lock()
	defer c.writeMu.Unlock()
	if c.wroteEOF {
		return nil
	}
	c.wroteEOF = true
	return c.write(websocket.TextMessage, []byte(textEOF))
}

// Close ends the stream cleanly in both directions.
func (c *Conn) Close() error { return c.end(clean) }

// CloseWithError aborts the stream: the peer's Read fails with err's text and
// does not take what it has for all there is.
func (c *Conn) CloseWithError(err error) {
	text := err.Error()
	if len(text) > 120 { // a close frame holds 123 bytes
		text = text[:120]
	}
	_ = c.end(websocket.FormatCloseMessage(websocket.CloseInternalServerErr, text)) // aborting anyway
}

func (c *Conn) end(message []byte) error {
	var err error
	c.closeOne.Do(func() {
		close(c.closed)
		// WriteControl may be called beside writers, and must not wait for one that is stuck.
		_ = c.ws.WriteControl(websocket.CloseMessage, message, time.Now().Add(time.Second))
		err = c.ws.Close()
		if c.onClose != nil {
			c.onClose()
		}
	})
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

// SetReadDeadline bounds reads that come after and, as with any WebSocket, a
// read that ran into it has ended the stream.
func (c *Conn) SetReadDeadline(t time.Time) error {
	if t.IsZero() {
		c.readBy.Store(0)
		return c.ws.SetReadDeadline(time.Now().Add(deadAfter))
	}
	c.readBy.Store(t.UnixNano())
	return c.ws.SetReadDeadline(t)
}

// SetWriteDeadline bounds writes.
func (c *Conn) SetWriteDeadline(t time.Time) error { return c.ws.SetWriteDeadline(t) }
