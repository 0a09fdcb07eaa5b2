package tunnel

import (
	"crypto/tls"
	"io"
	"net"
	"sync"
)

// batchLeast is from how many bytes on a message is batched: TLS puts less
// into one record.
const batchLeast = 1 << 10

// batchSize holds a message's records with what TLS adds to them.
const batchSize = bufSize + 8<<10

var batches = sync.Pool{New: func() any { return new([batchSize]byte) }}

// batch is a socket under TLS that can hold back what is written: TLS writes
// each of its records alone, at first of 1.4 KiB, later of 16, and a system
// call for each costs more than the encryption.
type batch struct {
	net.Conn

	mu   sync.Mutex // guards what follows: TLS writes alerts beside a message
	held *[batchSize]byte
	n    int   // bytes held
	err  error // of a flush: a part of what TLS takes for written is lost
}

// Listener returns l with connections that carry large messages at less cost.
// It goes under TLS, if there is any.
func Listener(l net.Listener) net.Listener { return listener{l} }

type listener struct{ net.Listener }

func (l listener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &batch{Conn: c}, nil
}

// batchUnder returns the batch that c is, or that is under its TLS; nil: there is none.
func batchUnder(c net.Conn) *batch {
	if t, ok := c.(*tls.Conn); ok {
		c = t.NetConn()
	}
	b, _ := c.(*batch)
	return b
}

// ReadFrom lets the kernel send files, where there is no TLS.
func (b *batch) ReadFrom(r io.Reader) (int64, error) { return io.Copy(b.Conn, r) }

// NetConn returns the socket.
func (b *batch) NetConn() net.Conn { return b.Conn }

// hold begins to hold back what is written.
func (b *batch) hold() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.held = batches.Get().(*[batchSize]byte)
}

// flush writes what was held back, and what comes after it at once.
func (b *batch) flush() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.write()
	batches.Put(b.held)
	b.held = nil
	return b.err
}

// write needs mu.
func (b *batch) write() {
	if b.n > 0 && b.err == nil {
		_, b.err = b.Conn.Write(b.held[:b.n])
	}
	b.n = 0
}

func (b *batch) Write(p []byte) (int, error) {
	b.mu.Lock()
	if b.held == nil && b.err == nil {
		b.mu.Unlock()
		return b.Conn.Write(p)
	}
	defer b.mu.Unlock()
	if b.n+len(p) > len(b.held) {
		b.write()
	}
	switch {
	case b.err != nil:
		return 0, b.err
	case len(p) > len(b.held): // no record is
		return b.Conn.Write(p)
	}
	b.n += copy(b.held[b.n:], p)
	return len(p), nil
}

// CloseWrite ends the socket's writing, where it can be ended alone.
func (b *batch) CloseWrite() error {
	if half, ok := b.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return nil
}
