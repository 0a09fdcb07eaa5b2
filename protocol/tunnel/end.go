package tunnel

import (
	"errors"
	"net"
	"strings"
	"time"

	"github.com/gorilla/websocket"
)

// CloseWrite says that no more bytes come from this side; the other direction
// goes on.
func (c *Conn) CloseWrite() error {
	c.lockWrites()
	defer c.unlockWrites()
	if c.wroteEOF {
		return nil
	}
	c.wroteEOF = true
	return c.write(websocket.TextMessage, []byte(textEOF))
}

// Close ends the stream cleanly in both directions. What was written before it
// still arrives. It does not wait for that.
func (c *Conn) Close() error {
	c.end(websocket.CloseNormalClosure, "")
	return nil
}

// CloseWithError aborts the stream: the peer's Read fails with err's text and
// does not take what it has for all there is.
func (c *Conn) CloseWithError(err error) {
	text := err.Error()
	if len(text) > 120 { // a close frame holds 123 bytes
		text = text[:120]
	}
	c.end(websocket.CloseInternalServerErr, strings.ToValidUTF8(text, ""))
}

// CloseRestart ends the stream because this side restarts: the peer's Read
// returns *Restarting, and is to come back after so long.
func (c *Conn) CloseRestart(after time.Duration) {
	c.end(websocket.CloseServiceRestart, restartText+after.Round(time.Millisecond).String())
}

func (c *Conn) end(code int, text string) {
	c.closeOne.Do(func() {
		close(c.closed)
		if c.onClose != nil {
			c.onClose()
		}
		go c.linger(websocket.FormatCloseMessage(code, text))
	})
}

// linger says goodbye and reads on until the peer has closed too. A socket
// that is closed while something unread lies in it, or before a late ping
// comes, is reset, and the peer loses what it has not read yet.
func (c *Conn) linger(goodbye []byte) {
	defer c.ws.Close()
	defer time.AfterFunc(lingerMost, func() { c.ws.Close() }).Stop()
	c.kick(c.ws.NetConn().SetReadDeadline)
	if c.stopWrites() {
		// It may wait behind what a slow peer has not read.
		_ = c.ws.WriteControl(websocket.CloseMessage, goodbye, time.Now().Add(lingerMost))
		c.unlockWrites()
	}
	c.readMu.Lock() // the reader has left
	settled := c.settled
	c.readMu.Unlock()
	if settled != nil {
		<-settled
	}
	raw := c.ws.NetConn()
	if t, ok := raw.(interface{ NetConn() net.Conn }); ok {
		raw = t.NetConn() // what comes is thrown away; it need not be decrypted
	}
	if half, ok := raw.(interface{ CloseWrite() error }); ok {
		_ = half.CloseWrite() // fails only on a closed socket
	}
	var err error
	for waste := make([]byte, 512); err == nil; {
		_ = raw.SetReadDeadline(time.Now().Add(lingerFor)) // as above
		_, err = raw.Read(waste)
	}
}

// kick ends what waits on the socket.
func (c *Conn) kick(setDeadline func(time.Time) error) {
	c.deadMu.Lock()
	defer c.deadMu.Unlock()
	_ = setDeadline(time.Unix(1, 0)) // fails only on a closed socket
}

// stopWrites is lockWrites, but for a writer that is stuck: it is ended after a
// second, and with it all writing.
func (c *Conn) stopWrites() bool {
	select {
	case c.writing <- struct{}{}:
		return true
	case <-time.After(time.Second):
		c.kick(c.ws.NetConn().SetWriteDeadline)
		return false
	}
}

// settle goes on reading after the peer's half-close, for nobody else does: so
// its pings are answered, and its death ends our writes. It needs readMu.
func (c *Conn) settle() {
	c.settled = make(chan struct{})
	c.deadMu.Lock()
	c.ended = true
	c.deadMu.Unlock()
	go func() {
		defer close(c.settled)
		for {
			c.extend()
			kind, r, err := c.ws.NextReader()
			if err == nil && kind == websocket.BinaryMessage {
				c.CloseWithError(errors.New("bytes after the end"))
				return
			}
			if err == nil {
				err = c.control(r)
			}
			if err != nil {
				c.Close()
				return
			}
		}
	}()
}
