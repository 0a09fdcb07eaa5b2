package main

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/remotegpu/remotegpu/protocol"
)

const (
	acceptWithin = 30 * time.Second // a connection that nobody takes is closed
	maxListeners = 64               // of a container
	maxWaiting   = 128              // connections that wait, of a container
)

// arrivals are connections that came to listeners of people outside and wait to
// be taken.
type arrivals struct {
	mu        sync.Mutex // guards what follows
	listeners int
	waiting   map[string]halfCloser
}

// listenFor tells who comes to t, until the agent ends the stream.
func (s *server) listenFor(c *net.UnixConn, t protocol.Target) {
	if !s.arrivals.enter() {
		answer(c, protocol.StreamReply{Code: protocol.ReplyLimit, Message: fmt.Sprintf("This environment has %d forwarded listeners already; close some.", maxListeners)})
		return
	}
	defer s.arrivals.leave()
	l, err := s.listenAt(t)
	if err != nil {
		answer(c, protocol.StreamReply{Code: protocol.ReplyRefused, Message: fmt.Sprintf("The environment cannot listen on %s: %v.", t.Address, errors.Unwrap(err))})
		return
	}
	unlisten := func() { _ = s.who.do(l.Close) } // which removes a socket: as whoever made it, and not as root
	defer unlisten()
	if !answer(c, protocol.StreamReply{Address: l.Addr().String()}) {
		return
	}
	go func() {
		defer unlisten()
		_, _ = io.Copy(io.Discard, c) // ends when the agent does
	}()
	for {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		s.arrivals.announce(c, conn.(halfCloser))
	}
}

// listenAt listens as the container's user. A unix socket without a path gets
// one in a folder of its own, as for agent forwarding.
func (s *server) listenAt(t protocol.Target) (l net.Listener, err error) {
	err = s.who.do(func() (err error) {
		if t.Network == protocol.NetworkUnix && t.Address == "" {
			l, err = listenAnywhere()
			return err
		}
		if t.Network != protocol.NetworkTCP && t.Network != protocol.NetworkUnix {
			return fmt.Errorf("listen: %w", errors.ErrUnsupported)
		}
		l, err = net.Listen(t.Network, t.Address)
		return err
	})
	return l, err
}

func listenAnywhere() (net.Listener, error) {
	for _, base := range []string{os.TempDir(), "/dev/shm"} {
		dir, err := os.MkdirTemp(base, "ssh-")
		if err != nil {
			continue
		}
		l, err := net.Listen("unix", filepath.Join(dir, "agent"))
		if err != nil {
			os.Remove(dir)
			return nil, err
		}
		return removing{l, dir}, nil
	}
	return nil, fmt.Errorf("listen: no folder for temporary files can be written to: %w", os.ErrPermission)
}

// removing is a listener on a unix socket in a folder of its own.
type removing struct {
	net.Listener
	dir string
}

func (r removing) Close() error {
	err := r.Listener.Close()
	_ = os.Remove(r.dir) // fails only when it is gone, or somebody uses it
	return err
}

func (a *arrivals) enter() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.listeners >= maxListeners {
		return false
	}
	a.listeners++
	return true
}

func (a *arrivals) leave() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.listeners--
}

// announce tells of conn and lets it wait.
func (a *arrivals) announce(c *net.UnixConn, conn halfCloser) {
	id, remote := rand.Text(), ""
	if tcp, ok := conn.RemoteAddr().(*net.TCPAddr); ok {
		remote = tcp.String()
	}
	a.mu.Lock()
	full := len(a.waiting) >= maxWaiting
	if !full {
		a.waiting[id] = conn
	}
	a.mu.Unlock()
	if full {
		conn.Close()
		return
	}
	time.AfterFunc(acceptWithin, func() {
		if late := a.take(id); late != nil {
			late.Close()
		}
	})
	if protocol.WriteDocument(c, protocol.FrameAccepted, protocol.Accepted{Version: protocol.Version, ID: id, Remote: remote}) != nil {
		if nobodys := a.take(id); nobodys != nil {
			nobodys.Close()
		}
	}
}

func (a *arrivals) take(id string) halfCloser {
	a.mu.Lock()
	defer a.mu.Unlock()
	conn := a.waiting[id]
	delete(a.waiting, id)
	return conn
}

// accept serves the bytes of a connection that was announced.
func (s *server) accept(c *net.UnixConn, id string) {
	conn := s.arrivals.take(id)
	if conn == nil {
		answer(c, protocol.StreamReply{Code: protocol.ReplyRefused, Message: "That connection has ended."})
		return
	}
	defer conn.Close()
	if answer(c, protocol.StreamReply{}) {
		move(c, conn)
	}
}
