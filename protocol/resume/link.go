package resume

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/remotegpu/remotegpu/protocol"
)

// link is one transport of a Conn, from hello to its end.
type link struct {
	c       *Conn
	t       io.ReadWriteCloser
	in      *protocol.FrameReader
	answers bool          // ours is the answering end
	wake    chan struct{} // of one
	over    chan struct{} // closed by drop
	left    chan struct{} // closed when the writer has ended
	once    sync.Once
	why     error // set before over is closed

	// Guarded by c.mu.
	helloSaid bool
	busy      bool // somebody writes to t, from buf
	again     bool // and is to look again then
	buf       []byte
	sent      uint64 // number of what is sent next
	acked     uint64 // as we have last said
	ackDue    bool
	ackTimer  bool // one is running
	pongDue   bool
	pingDue   bool
	pinged    time.Time // when the last ping left
	pingedTo  uint64    // sent, as of then
	asked     time.Time // when a ping was due that has no pong yet; zero: none
	heard     time.Time // last frame
	spoke     time.Time // last data that left
	reacted   bool      // data has come since
	patience  time.Duration
	suspect   bool
	closeText *string // close is due
	closeSaid bool
}

func newLink(c *Conn, t io.ReadWriteCloser) *link {
	return &link{
		c: c, t: t, in: protocol.NewFrameReader(bufio.NewReaderSize(t, 32<<10)), wake: make(chan struct{}, 1),
		over: make(chan struct{}), left: make(chan struct{}), buf: make([]byte, 0, 4*maxData), heard: time.Now(), patience: suspectAfter,
	}
}

// kick wakes the writer, or has whoever writes look again; a nil link has none.
// It needs mu.
func (l *link) kick() {
	if l == nil {
		return
	}
	if l.busy {
		l.again = true
		return
	}
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// drop ends the link, once.
func (l *link) drop(err error) {
	l.once.Do(func() {
		l.why = err
		close(l.over)
		_ = l.t.Close() // it is of no more use
		l.c.mu.Lock()
		defer l.c.mu.Unlock()
		l.c.lost(l, err)
	})
}

// writeFrames brings away what is due until the link ends.
func (l *link) writeFrames() {
	defer close(l.left)
	for {
		if wait := l.inBurst(); wait > 0 {
			select {
			case <-time.After(wait):
			case <-l.over:
				return
			}
		}
		wrote, err := l.writeSome()
		switch {
		case err != nil, l.hasClosed():
			return
		case wrote:
			continue
		}
		select {
		case <-l.wake:
		case <-l.over:
			return
		}
	}
}

// writeSome is writeDue for who does not have mu.
func (l *link) writeSome() (wrote bool, err error) {
	l.c.mu.Lock()
	defer l.c.mu.Unlock()
	return l.writeDue()
}

// writeDue writes the frames that are due, unless somebody else is at it. It
// reports whether there were any; an error has ended the link. It needs mu,
// and lets go of it while it writes.
func (l *link) writeDue() (wrote bool, err error) {
	if l.busy {
		l.again = true
		return false, nil
	}
	if l.buf = l.gather(l.buf[:0]); len(l.buf) == 0 {
		return false, nil
	}
	l.busy = true
	l.c.mu.Unlock()
	if _, err = l.t.Write(l.buf); err != nil {
		err = fmt.Errorf("write to transport: %w", err)
		l.drop(err)
	}
	l.c.mu.Lock()
	l.busy = false
	if l.again {
		l.again = false
		l.kick()
	}
	return true, err
}

// bring gets what was written to the pipe on its way. An answer is written here
// and now: to wake the writer for it costs more than to write it. It needs mu,
// and may let go of it meanwhile; a nil link brings nothing.
func (l *link) bring() {
	if l == nil || l.busy || !l.helloSaid || l.pending() > maxData || l.burstLeft() > 0 {
		l.kick()
		return
	}
	_, _ = l.writeDue() // what it could not write goes with the next link
}

// inBurst says how long to wait for more.
func (l *link) inBurst() time.Duration {
	l.c.mu.Lock()
	defer l.c.mu.Unlock()
	return l.burstLeft()
}

// burstLeft says how long to wait for more: output comes in pieces that are
// better sent as one when nobody has answered the piece before. It needs mu.
func (l *link) burstLeft() time.Duration {
	pending := l.pending()
	if pending == 0 || pending >= maxData || l.reacted || !l.helloSaid || l.closeText != nil {
		return 0
	}
	return batchFor - time.Since(l.spoke)
}

// pending is how much was written and not sent. It needs mu.
func (l *link) pending() uint64 {
	return l.c.written() - min(l.sent, l.c.written())
}

func (l *link) hasClosed() bool {
	l.c.mu.Lock()
	defer l.c.mu.Unlock()
	return l.closeSaid
}

// gather appends the frames that are due; none: nothing is. It needs mu.
func (l *link) gather(b []byte) []byte {
	c := l.c
	if c.link != l {
		return b
	}
	if l.answers && !l.helloSaid {
		b = appendNumber(b, frameHello, c.received)
	}
	l.helloSaid = true
	if l.pongDue {
		b = appendHead(b, framePong, 0)
	}
	before := len(b)
	b = l.gatherData(b)
	data := len(b) > before
	if l.ackDue || (data || l.pongDue) && c.taken() > l.acked {
		l.acked = c.taken()
		b = appendNumber(b, frameAck, l.acked)
	}
	if data && !l.answers && time.Since(l.pinged) >= lookEvery { // what follows sooner waits for a look
		l.ask()
	}
	if l.pingDue {
		b = appendHead(b, framePing, 0)
		l.pinged, l.pingedTo = time.Now(), l.sent
	}
	if data {
		l.spoke, l.reacted = time.Now(), false
	}
	l.pongDue, l.ackDue, l.pingDue = false, false, false
	if l.closeText != nil {
		b = appendText(b, frameClose, *l.closeText)
		l.closeSaid = true
	}
	return b
}

// gatherData appends as much data as fits, and eof after the last. It needs mu.
func (l *link) gatherData(b []byte) []byte {
	c := l.c
	l.sent = max(l.sent, c.acked) // an older link may have brought more than was known when this one began
	for offset := int(l.sent - c.acked); ; {
		n := min(c.out.len()-offset, maxData, cap(b)-len(b)-128)
		if n <= 0 {
			break
		}
		b = binary.BigEndian.AppendUint64(appendHead(b, frameData, numBytes+n), l.sent)
		b = b[:len(b)+n]
		c.out.peek(offset, b[len(b)-n:])
		offset += n
		l.sent += uint64(n)
	}
	if c.wroteEOF && l.sent == c.acked+uint64(c.out.len()) && !c.isSaid() {
		b = appendNumber(b, frameEOF, l.sent)
		l.sent++
	}
	return b
}

// readFrames takes frames in until the transport or the pipe ends.
func (l *link) readFrames() error {
	for {
		kind, payload, err := l.in.Next()
		if err != nil {
			return fmt.Errorf("read from transport: %w", err)
		}
		if err := l.handle(byte(kind), payload); err != nil {
			return err
		}
	}
}

func (l *link) handle(kind byte, payload []byte) error {
	c := l.c
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.link != l {
		return errReplaced // what is in it comes again on the newer one
	}
	l.heard, l.suspect = time.Now(), false
	switch kind {
	case frameData:
		return l.broken(l.data(payload))
	case frameEOF:
		return l.broken(l.eof(payload))
	case frameAck:
		n, _, err := number(payload)
		if err == nil {
			err = c.take(n)
		}
		if l.pending() > 0 { // of which an older link has brought a part
			l.kick()
		}
		return l.broken(err)
	case framePing:
		l.pongDue = true
		l.kick()
		return nil
	case framePong:
		l.asked, l.patience = time.Time{}, suspectAfter
		return nil
	case frameClose:
		err := &Closed{string(payload[:min(len(payload), maxText)])}
		c.fail(err)
		return err
	}
	return l.broken(fmt.Errorf("unknown frame type %#x", kind))
}

// broken ends the pipe when the other end breaks the protocol: another
// transport would bring the same. It needs mu.
func (l *link) broken(err error) error {
	if err != nil {
		err = fmt.Errorf("the other end breaks the protocol: %w", err)
		l.c.fail(err)
	}
	return err
}

// data takes bytes in, but for those that an older link has brought already.
// It needs mu.
func (l *link) data(payload []byte) error {
	c := l.c
	l.reacted = true
	from, p, err := number(payload)
	switch {
	case err != nil:
		return err
	case len(p) == 0 || len(p) > maxData:
		return fmt.Errorf("a frame has %d bytes of data", len(p))
	case from > c.received:
		return fmt.Errorf("bytes %d to %d are missing", c.received, from)
	}
	if known := c.received - from; known < uint64(len(p)) {
		p = p[known:]
		switch {
		case c.gotEOF:
			return errors.New("data after the end")
		case c.in.len()+len(p) > Window:
			return errors.New("more data than the window holds")
		}
		c.in.push(p)
		c.received += uint64(len(p))
		c.arrived.Broadcast()
	}
	l.ackSoon()
	return nil
}

// eof needs mu.
func (l *link) eof(payload []byte) error {
	c := l.c
	at, _, err := number(payload)
	switch {
	case err != nil:
		return err
	case at > c.received, !c.gotEOF && at < c.received, c.gotEOF && at != c.received-1:
		return fmt.Errorf("the end is at %d, and %d bytes have come", at, c.received)
	}
	if !c.gotEOF {
		c.received, c.gotEOF = c.received+1, true
		c.arrived.Broadcast()
	}
	l.ackSoon()
	return nil
}

// ackTaken acknowledges what the reader has taken: at once when the other end's
// window, which may be smaller than ours, could be filling up. It needs mu.
func (l *link) ackTaken() {
	c := l.c
	switch n := c.taken() - l.acked; {
	case n >= ackEvery, c.gotEOF && c.in.len() == 0:
		l.ackDue = true
		l.kick()
	case n > 0:
		l.ackSoon()
	}
}

// ackSoon acknowledges after a moment, also when the reader has taken nothing:
// that something arrives is a sign of life. It needs mu.
func (l *link) ackSoon() {
	if l.ackTimer {
		return
	}
	l.ackTimer = true
	time.AfterFunc(ackDelay, func() {
		l.c.mu.Lock()
		defer l.c.mu.Unlock()
		l.ackTimer, l.ackDue = false, true
		l.kick()
	})
}

// look runs at the dialling end while the link lives: it asks for a sign of
// life after a silence, and suspects a link that does not answer.
func (l *link) look() {
	l.c.mu.Lock()
	defer l.c.mu.Unlock()
	if l.c.link == l && l.c.err == nil {
		l.judge()
		time.AfterFunc(lookEvery, l.look)
	}
}

// judge needs mu.
func (l *link) judge() {
	silent := time.Since(l.heard)
	switch {
	case !l.asked.IsZero() && min(silent, time.Since(l.asked)) >= l.patience && !l.suspect:
		l.suspect = true
		l.c.onLink()
	case silent >= idlePing, l.sent > l.pingedTo:
		l.ask()
	}
}

// ask has a ping leave, if none is under way. It needs mu.
func (l *link) ask() {
	if l.asked.IsZero() {
		l.asked, l.pingDue = time.Now(), true
		l.kick()
	}
}
