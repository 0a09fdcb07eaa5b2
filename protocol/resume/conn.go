package resume

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"
)

// Config is what an end may set; zero values are usable.
type Config struct {
	Window int           // bytes kept per direction; 0: Window, and never more
	Keep   time.Duration // how long an end without a transport waits; 0: Keep
}

func (c Config) filled() Config {
	if c.Window <= 0 || c.Window > Window {
		c.Window = Window
	}
	if c.Keep <= 0 {
		c.Keep = Keep
	}
	return c
}

// Conn is one end of a pipe. Its methods may be called by several goroutines
// at a time.
type Conn struct {
	cfg     Config
	writing sync.Mutex    // held by Write, so that writes do not mix
	done    chan struct{} // closed when the pipe has ended
	said    chan struct{} // closed when the other end has taken all, and eof

	mu       sync.Mutex // guards what follows
	arrived  *sync.Cond // what Read waits for
	room     *sync.Cond // what Write waits for
	out      ring       // the bytes from acked on
	acked    uint64     // taken by the other end; eof counts
	wroteEOF bool
	in       ring // received and not taken
	received uint64
	gotEOF   bool
	link     *link     // nil: no transport
	lostAt   time.Time // since when there is none
	giveUp   *time.Timer
	err      error  // why it has ended
	onLink   func() // told when a link is lost or suspect; nil: nobody is
	lastErr  error  // how the last link ended
}

// New returns the answering end; transports come by Serve.
func New(cfg Config) *Conn {
	c := newConn(cfg)
	c.giveUp = time.AfterFunc(c.cfg.Keep, c.expire)
	return c
}

func newConn(cfg Config) *Conn {
	c := &Conn{cfg: cfg.filled(), done: make(chan struct{}), said: make(chan struct{}), lostAt: time.Now()}
	c.arrived, c.room = sync.NewCond(&c.mu), sync.NewCond(&c.mu)
	return c
}

// Read reads bytes of the pipe. It returns io.EOF after the other end's
// CloseWrite and all before it, *Closed after its Close, and ErrGone when it
// did not come back.
func (c *Conn) Read(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for c.in.len() == 0 {
		switch {
		case c.gotEOF:
			return 0, io.EOF
		case c.err != nil:
			return 0, c.err
		case len(p) == 0:
			return 0, nil
		}
		c.arrived.Wait()
	}
	n := min(len(p), c.in.len())
	c.in.peek(0, p[:n])
	c.in.drop(n)
	if c.link != nil {
		c.link.ackTaken()
	}
	return n, nil
}

// taken is how much the reader has had: eof once nothing is before it. It
// needs mu.
func (c *Conn) taken() uint64 {
	n := c.received - uint64(c.in.len())
	if c.gotEOF && c.in.len() > 0 {
		n--
	}
	return n
}

// Write writes all of p, waiting while the window is full.
func (c *Conn) Write(p []byte) (n int, err error) {
	c.writing.Lock()
	defer c.writing.Unlock()
	c.mu.Lock()
	defer c.mu.Unlock()
	for {
		for n < len(p) && c.err == nil && !c.wroteEOF && c.out.len() >= c.cfg.Window {
			c.room.Wait()
		}
		switch {
		case c.err != nil:
			return n, c.err
		case c.wroteEOF:
			return n, io.ErrClosedPipe
		case n == len(p):
			return n, nil
		}
		part := p[n:min(len(p), n+c.cfg.Window-c.out.len())]
		c.out.push(part)
		n += len(part)
		c.link.bring()
	}
}

// CloseWrite says that no more bytes come from this end.
func (c *Conn) CloseWrite() error {
	c.writing.Lock()
	defer c.writing.Unlock()
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return c.err
	}
	c.wroteEOF = true
	c.link.kick()
	return nil
}

// Done is closed when the pipe has ended in both directions.
func (c *Conn) Done() <-chan struct{} { return c.done }

// Delivered is closed when the other end has taken everything, and the end.
func (c *Conn) Delivered() <-chan struct{} { return c.said }

// Attached reports whether there is a transport now.
func (c *Conn) Attached() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.link != nil
}

// Close ends the pipe in both directions and tells the other end so, when
// there is a transport; it waits a moment for that.
func (c *Conn) Close() error {
	c.closeWith("", errClosed)
	return nil
}

// Dismiss is Close with a sentence for the person at the other end, whose Read
// returns it as *Closed.
func (c *Conn) Dismiss(message string) { c.closeWith(message, errors.New(message)) }

// Detach ends this end alone: the other one waits for another client.
func (c *Conn) Detach() { c.end(ErrDetached) }

func (c *Conn) closeWith(text string, err error) {
	c.mu.Lock()
	l := c.link
	if c.err == nil && l != nil {
		l.closeText = &text
		l.kick()
	}
	c.fail(err)
	c.mu.Unlock()
	if l == nil {
		return
	}
	select { // the other end hangs up when it has read the last frame
	case <-l.over:
	case <-time.After(closeLimit):
		l.drop(errClosed)
	}
}

// end ends the pipe without a word to the other end.
func (c *Conn) end(err error) {
	c.mu.Lock()
	l := c.link
	c.fail(err)
	c.mu.Unlock()
	if l != nil {
		l.drop(err)
	}
}

// fail needs mu.
func (c *Conn) fail(err error) {
	if c.err != nil {
		return
	}
	c.err = err
	if c.giveUp != nil {
		c.giveUp.Stop()
	}
	close(c.done)
	c.arrived.Broadcast()
	c.room.Broadcast()
}

func (c *Conn) expire() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.link == nil {
		c.fail(ErrGone)
	}
}

// Serve is the answering end's side of a transport whose dialling end has
// received so many bytes. It returns when the transport has ended or a newer
// one has come.
func (c *Conn) Serve(t io.ReadWriteCloser, received uint64) error {
	l := newLink(c, t)
	l.sent, l.answers = received, true
	old, err := c.use(l)
	if err != nil {
		Refuse(t, "The session cannot go on: "+strings.TrimSuffix(err.Error(), ".")+".")
		return err
	}
	if old != nil {
		old.drop(errReplaced)
	}
	go l.writeFrames()
	l.drop(l.readFrames())
	<-l.left
	return l.why
}

// Refuse tells a dialling end that there will be no pipe.
func Refuse(t io.ReadWriteCloser, message string) {
	_, _ = t.Write(appendText(nil, frameRefuse, message)) // it may be gone
}

// use makes l the link.
func (c *Conn) use(l *link) (old *link, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.err != nil:
		return nil, c.err
	case l.sent > c.written():
		return nil, fmt.Errorf("the other end says that it has received %d bytes of %d", l.sent, c.written())
	}
	l.ackDue = c.taken() > 0 // the last one may be lost
	old, c.link = c.link, l
	if c.giveUp != nil {
		c.giveUp.Stop()
	}
	l.kick()
	return old, nil
}

// written is the number of what comes next from us, eof counted. It needs mu.
func (c *Conn) written() uint64 {
	n := c.acked + uint64(c.out.len())
	if c.wroteEOF && !c.isSaid() {
		n++
	}
	return n
}

// isSaid needs mu.
func (c *Conn) isSaid() bool {
	select {
	case <-c.said:
		return true
	default:
		return false
	}
}

// take handles an ack. It needs mu.
func (c *Conn) take(n uint64) error {
	switch {
	case n <= c.acked:
		return nil // late
	case n > c.written():
		return errors.New("more was acknowledged than written")
	}
	bytes := min(int(n-c.acked), c.out.len())
	eof := n == c.written() && c.wroteEOF
	c.out.drop(bytes)
	c.acked = n
	if eof {
		close(c.said)
	}
	c.room.Broadcast()
	return nil
}

// lost takes note that l has ended. It needs mu.
func (c *Conn) lost(l *link, err error) {
	if c.link != l {
		return
	}
	c.link, c.lostAt, c.lastErr = nil, time.Now(), err
	if c.giveUp != nil && c.err == nil {
		c.giveUp.Reset(c.cfg.Keep)
	}
	if c.onLink != nil {
		c.onLink()
	}
}
