package forward

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"time"

	"github.com/remotegpu/remotegpu/protocol"
)

const (
	maxFlows    = 256 // programs that send at a time
	maxWaiting  = 64  // datagrams of a flow that wait; more are lost, as on any network
	maxDatagram = 65507
	idleFlow    = 2 * time.Minute
)

// flows are the programs that send datagrams to one listener. Each has a stream
// of its own, so that answers find back.
type flows struct {
	Config
	l *Listener

	mu  sync.Mutex // guards all
	all map[netip.AddrPort]chan []byte
}

func (l *Listener) serveUDP(ctx context.Context, cfg Config) error {
	if cfg.Idle == 0 {
		cfg.Idle = idleFlow
	}
	f := &flows{Config: cfg, l: l, all: map[netip.AddrPort]chan []byte{}}
	buf := make([]byte, maxDatagram)
	for {
		n, from, err := l.udp.ReadFromUDPAddrPort(buf)
		if errors.Is(err, syscall.ECONNREFUSED) {
			continue // a program has left before its answer came
		}
		if err != nil {
			return fmt.Errorf("read datagrams at %s: %w", l.Local(), err)
		}
		f.take(ctx, from, append([]byte(nil), buf[:n]...))
	}
}

// take gives a datagram to its flow, beginning one when there is none.
func (f *flows) take(ctx context.Context, from netip.AddrPort, datagram []byte) {
	f.mu.Lock()
	defer f.mu.Unlock()
	queue, known := f.all[from]
	if !known {
		if len(f.all) >= maxFlows {
			return
		}
		queue = make(chan []byte, maxWaiting)
		f.all[from] = queue
		go f.run(ctx, from, queue)
	}
	select {
	case queue <- datagram:
	default:
	}
}

func (f *flows) run(ctx context.Context, from netip.AddrPort, queue chan []byte) {
	defer func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.forget(from, queue)
	}()
	s, err := f.Dial(ctx, f.l.Target)
	if err != nil {
		if ctx.Err() == nil {
			f.Say(fmt.Sprintf("%s: %v", f.l.Local(), err))
		}
		return
	}
	defer s.Close()
	stop := context.AfterFunc(ctx, func() { s.Close() })
	defer stop()
	alive, ended := make(chan struct{}, 1), make(chan struct{})
	go func() {
		defer close(ended)
		f.answer(s, from, alive)
	}()
	idle := time.NewTimer(f.Idle)
	defer idle.Stop()
	for {
		select {
		case datagram := <-queue:
			if protocol.WriteFrame(s, protocol.FrameDatagram, datagram) != nil {
				return
			}
		case <-alive:
		case <-ended:
			return
		case <-idle.C:
			if f.end(from, queue) {
				return
			}
		}
		idle.Reset(f.Idle)
	}
}

// end ends a flow, unless something has come that waits in queue.
func (f *flows) end(from netip.AddrPort, queue chan []byte) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(queue) > 0 {
		return false
	}
	f.forget(from, queue)
	return true
}

// forget needs mu. The same program may have a new flow by now.
func (f *flows) forget(from netip.AddrPort, queue chan []byte) {
	if f.all[from] == queue {
		delete(f.all, from)
	}
}

// answer sends what comes back to the program, and tells that something did.
func (f *flows) answer(s net.Conn, to netip.AddrPort, alive chan<- struct{}) {
	frames := protocol.NewFrameReader(bufio.NewReader(s))
	for {
		kind, payload, err := frames.Next()
		if err != nil {
			return
		}
		if kind == protocol.FrameDatagram {
			_, _ = f.l.udp.WriteToUDPAddrPort(payload, to) // a datagram may be lost
		}
		select {
		case alive <- struct{}{}:
		default:
		}
	}
}
