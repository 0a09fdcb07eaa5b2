package main

import (
	"net"
	"sync"
	"time"
)

const (
	// lineBytes is what a delayed line holds per direction and connection. At
	// 100 ms one way it lets 320 MB/s through.
	lineBytes = 32 << 20
	slabBytes = 128 << 10
	slabLeast = 16 << 10 // room for which a read is worth it
)

type slab [slabBytes]byte

// slabs are reused: fresh memory would cost a fast line more than the copying.
var slabs = sync.Pool{New: func() any { return new(slab) }}

// delayEnd is a long line: what comes leaves after the delay, in order, at
// whatever bandwidth the machine has.
func delayEnd(s settings, ready func(...string)) error {
	l, err := listen()
	if err != nil {
		return err
	}
	ready(l.Addr().String())
	return serve(l, func(c net.Conn) {
		z, err := net.Dial("tcp", s.To)
		if err != nil {
			c.Close()
			return
		}
		go newLine(s.Delay).carry(c, z)
		newLine(s.Delay).carry(z, c)
	})
}

// line is one direction of a connection.
type line struct {
	delay time.Duration
	parts chan part // on their way, in order

	mu    sync.Mutex
	freed *sync.Cond
	held  int // bytes on their way; guarded by mu
}

type part struct {
	slab *slab
	from int
	n    int
	last bool // of its slab
	due  time.Time
}

func newLine(delay time.Duration) *line {
	l := &line{delay: delay, parts: make(chan part, lineBytes/slabLeast)}
	l.freed = sync.NewCond(&l.mu)
	return l
}

// carry moves bytes until from ends or to breaks, and then closes to's writing.
func (l *line) carry(to, from net.Conn) {
	go l.fill(from)
	broken := false
	for p := range l.parts {
		if !broken {
			time.Sleep(time.Until(p.due))
			if _, err := to.Write(p.slab[p.from : p.from+p.n]); err != nil {
				broken = true
				from.Close() // fill ends
			}
		}
		if p.last {
			slabs.Put(p.slab)
		}
		l.mu.Lock()
		l.held -= p.n
		l.mu.Unlock()
		l.freed.Signal()
	}
	_ = to.(*net.TCPConn).CloseWrite() // fails only on a closed connection
}

func (l *line) fill(from net.Conn) {
	defer close(l.parts)
	s, at := slabs.Get().(*slab), 0
	for {
		l.mu.Lock()
		for l.held >= lineBytes {
			l.freed.Wait()
		}
		l.mu.Unlock()
		n, err := from.Read(s[at:])
		if n > 0 {
			l.mu.Lock()
			l.held += n
			l.mu.Unlock()
			last := slabBytes-at-n < slabLeast
			l.parts <- part{s, at, n, last, time.Now().Add(l.delay)}
			if at += n; last {
				s, at = slabs.Get().(*slab), 0
			}
		}
		if err != nil {
			return
		}
	}
}
