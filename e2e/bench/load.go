package main

import (
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// What a client asks of the target, as the first byte that it sends. The target
// speaks first, one byte, as an SSH server does.
const (
	greeting = '!'
	asSource = 'd' // send as fast as the line takes it
	asSink   = 'u' // count what comes
	asEcho   = 'e' // send back
)

const loadChunk = 64 << 10

// load is both outer ends of every way: clients and the target.
type load struct {
	target net.Listener
	sunk   atomic.Int64 // bytes that came to the target as a sink
	got    atomic.Int64 // bytes that came to clients of it as a source
}

func newLoad() (*load, error) {
	l, err := listen()
	if err != nil {
		return nil, err
	}
	ld := &load{target: l}
	go func() { _ = serve(l, ld.answer) }() // until close
	return ld, nil
}

func (l *load) addr() string { return l.target.Addr().String() }
func (l *load) close()       { l.target.Close() }

// answer is the target.
func (l *load) answer(c net.Conn) {
	defer c.Close()
	ask := []byte{greeting}
	if _, err := c.Write(ask); err != nil {
		return
	}
	if _, err := io.ReadFull(c, ask); err != nil {
		return
	}
	switch ask[0] {
	case asSource:
		pour(c)
	case asSink:
		count(c, &l.sunk)
	case asEcho:
		buf := make([]byte, 64)
		for {
			n, err := c.Read(buf)
			if err != nil {
				return
			}
			if _, err := c.Write(buf[:n]); err != nil {
				return
			}
		}
	}
}

func pour(c net.Conn) {
	for buf := make([]byte, loadChunk); ; {
		if _, err := c.Write(buf); err != nil {
			return
		}
	}
}

func count(c net.Conn, into *atomic.Int64) {
	for buf := make([]byte, loadChunk); ; {
		n, err := c.Read(buf)
		into.Add(int64(n))
		if err != nil {
			return
		}
	}
}

// open connects to the target through w and waits for its greeting.
func (w *way) open() (net.Conn, error) {
	c, err := net.Dial("tcp", w.entry)
	if err != nil {
		return nil, err
	}
	first := make([]byte, 1)
	_ = c.SetReadDeadline(time.Now().Add(10 * time.Second)) // as the read below
	_, err = io.ReadFull(c, first)
	_ = c.SetReadDeadline(time.Time{})
	if err == nil && first[0] != greeting {
		err = fmt.Errorf("the target greets with %q", first)
	}
	if err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

// ask is open and the first byte.
func (w *way) ask(kind byte) (net.Conn, error) {
	c, err := w.open()
	if err != nil {
		return nil, err
	}
	if _, err := c.Write([]byte{kind}); err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

// warm waits until the way carries streams.
func (w *way) warm() error {
	var last error
	for range 100 {
		c, err := w.open()
		if err == nil {
			return c.Close()
		}
		last = err
		time.Sleep(50 * time.Millisecond)
	}
	return errors.Join(errors.New("the way carries nothing"), last)
}

// bulk opens streams that run at full speed until stop.
func (l *load) bulk(w *way, kind byte, streams int) (stop func(), err error) {
	conns, errs := make([]net.Conn, streams), make([]error, streams)
	var opening sync.WaitGroup
	for i := range conns {
		opening.Go(func() { conns[i], errs[i] = w.ask(kind) })
	}
	opening.Wait()
	stop = func() {
		for _, c := range conns {
			if c != nil {
				c.Close()
			}
		}
	}
	if err := errors.Join(errs...); err != nil {
		stop()
		return nil, err
	}
	for _, c := range conns {
		if kind == asSource {
			go count(c, &l.got)
		} else {
			go pour(c)
		}
	}
	return stop, nil
}

// roundTrips returns how long n times 64 bytes take there and back, in seconds.
func roundTrips(c net.Conn, n int) ([]float64, error) {
	took := make([]float64, n)
	buf := make([]byte, 64)
	for i := range took {
		start := time.Now()
		if _, err := c.Write(buf); err != nil {
			return nil, err
		}
		if _, err := io.ReadFull(c, buf); err != nil {
			return nil, err
		}
		took[i] = time.Since(start).Seconds()
	}
	return took, nil
}
