package main

import (
	"errors"
	"io"
	"net"
	"sync"
	"time"
)

// way is a chain of ends from an entry to the load's target.
type way struct {
	entry string
	ends  []*process // gateway and agent
	delay *process   // nil: none
}

// relayWay is the baseline: two hops of io.Copy with TLS between them.
func (b *bench) relayWay(target string, roundTrip time.Duration) (w *way, err error) {
	w = &way{}
	defer w.closeOn(&err)
	agent, err := b.start(settings{Role: "relay agent", To: target})
	if err != nil {
		return nil, err
	}
	w.ends = append(w.ends, agent)
	via, err := w.through(b, agent.addrs[0], roundTrip)
	if err != nil {
		return nil, err
	}
	gateway, err := b.start(settings{Role: "relay gateway", To: via})
	if err != nil {
		return nil, err
	}
	w.ends, w.entry = append(w.ends, gateway), gateway.addrs[0]
	return w, nil
}

// dialledWay is one whose agent dials its gateway, as ours does.
func (b *bench) dialledWay(kind, target string, roundTrip time.Duration) (w *way, err error) {
	w = &way{}
	defer w.closeOn(&err)
	gateway, err := b.start(settings{Role: kind + " gateway", To: target})
	if err != nil {
		return nil, err
	}
	w.ends, w.entry = append(w.ends, gateway), gateway.addrs[0]
	via, err := w.through(b, gateway.addrs[1], roundTrip)
	if err != nil {
		return nil, err
	}
	agent, err := b.start(settings{Role: kind + " agent", To: via, Target: target})
	if err != nil {
		return nil, err
	}
	w.ends = append(w.ends, agent)
	return w, nil
}

// through puts the line between the ends.
func (w *way) through(b *bench, to string, roundTrip time.Duration) (string, error) {
	if roundTrip == 0 {
		return to, nil
	}
	p, err := b.start(settings{Role: "delay", To: to, Delay: roundTrip / 2})
	if err != nil {
		return "", err
	}
	w.delay = p
	return p.addrs[0], nil
}

// closeOn ends what a way has of ends when the rest did not start.
func (w *way) closeOn(err *error) {
	if *err != nil {
		w.close()
	}
}

func (w *way) close() {
	if w == nil {
		return
	}
	for _, p := range w.ends {
		p.stop()
	}
	if w.delay != nil {
		w.delay.stop()
	}
}

// cpu is the seconds of CPU time that both ends have used.
func (w *way) cpu() (sum float64, err error) {
	for _, p := range w.ends {
		seconds, err := p.cpu()
		if err != nil {
			return 0, err
		}
		sum += seconds
	}
	return sum, nil
}

// splice copies both ways with half-close.
func splice(a, z net.Conn) {
	defer a.Close()
	defer z.Close()
	done := make(chan struct{})
	go func() {
		defer close(done)
		forward(z, a)
	}()
	forward(a, z)
	<-done
}

func forward(to, from net.Conn) {
	if _, err := io.Copy(to, from); err != nil {
		to.Close()
		return
	}
	if half, ok := to.(interface{ CloseWrite() error }); ok {
		_ = half.CloseWrite() // fails only on a closed connection
	}
}

// facing starts a load with two ways to it: the tunnel and its baseline, which
// is relay or remotedialer.
func (b *bench) facing(baseline string, roundTrip time.Duration) (l *load, ours, theirs *way, err error) {
	if l, err = newLoad(); err != nil {
		return nil, nil, nil, err
	}
	if ours, err = b.dialledWay("tunnel", l.addr(), roundTrip); err != nil {
		l.close()
		return nil, nil, nil, err
	}
	if baseline == "relay" {
		theirs, err = b.relayWay(l.addr(), roundTrip)
	} else {
		theirs, err = b.dialledWay(baseline, l.addr(), roundTrip)
	}
	if err == nil {
		err = errors.Join(ours.warm(), theirs.warm())
	}
	if err != nil {
		l.close()
		ours.close()
		theirs.close() // nil closes too
		return nil, nil, nil, err
	}
	return l, ours, theirs, nil
}

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
