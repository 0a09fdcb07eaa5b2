package main

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/remotegpu/remotegpu/protocol"
)

// maxSessions is how many sessions a container has at a time.
const maxSessions = 256

// acceptAgain is how long the server waits after it could not accept.
const acceptAgain = time.Second

// server opens sessions and streams for the agent.
type server struct {
	children *reaper
	who      account
	arrivals arrivals
	allow    func(*net.UnixConn) error // who may ask

	mu        sync.Mutex // guards what follows
	live      map[*session]struct{}
	held      map[string]*held     // by session id
	transfers map[string]*transfer // as above
	open      int                  // connections
}

func newServer(children *reaper, who account) *server {
	return &server{
		children: children, who: who, allow: fromOutside, arrivals: arrivals{waiting: map[string]halfCloser{}},
		live: map[*session]struct{}{}, held: map[string]*held{}, transfers: map[string]*transfer{},
	}
}

func (s *server) listen(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return err
	}
	if err := os.Chmod(path, 0o600); err != nil {
		return err
	}
	go func() {
		for {
			c, err := l.AcceptUnix()
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err != nil { // too many files are open: that passes
				complain("a shell could not be opened: %v", err)
				time.Sleep(acceptAgain)
				continue
			}
			go s.serve(c)
		}
	}()
	return nil
}

func (s *server) count(n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.open += n
}

// idle reports whether nobody uses the server.
func (s *server) idle() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.open == 0 && len(s.live) == 0 && len(s.transfers) == 0
}

// fromOutside reports whether the peer is the host's root outside the
// container. A process of the container has a pid here; one from outside the
// pid namespace has none, and the kernel shows 0.
func fromOutside(c *net.UnixConn) error {
	cred, err := peer(c)
	if err == nil && (cred.Pid != 0 || cred.Uid != 0) {
		err = fmt.Errorf("process %d of user %d inside the container asked for a session", cred.Pid, cred.Uid)
	}
	return err
}

// fromRoot is fromOutside where nobody is outside: on the host itself.
func fromRoot(c *net.UnixConn) error {
	cred, err := peer(c)
	if err == nil && cred.Uid != 0 {
		err = fmt.Errorf("process %d of user %d asked for a session", cred.Pid, cred.Uid)
	}
	return err
}

func peer(c *net.UnixConn) (cred *unix.Ucred, err error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return nil, err
	}
	var credErr error
	err = raw.Control(func(fd uintptr) {
		cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	})
	return cred, errors.Join(err, credErr)
}

func (s *server) serve(c *net.UnixConn) {
	defer c.Close()
	s.count(1)
	defer s.count(-1)
	if err := s.allow(c); err != nil {
		complain("refused: %v", err)
		return
	}
	kind, payload, err := protocol.NewFrameReader(c).Next() // unbuffered: what follows is for others
	switch {
	case err != nil:
	case kind == protocol.FrameStream:
		s.stream(c, payload)
	case kind == protocol.FrameAttach:
		s.attach(c, payload)
	case kind == protocol.FrameQuery:
		s.query(c, payload)
	default:
		s.session(c, kind, payload)
	}
}

// session serves a connection whose first frame was no FrameStream.
func (s *server) session(c *net.UnixConn, kind protocol.FrameType, payload []byte) {
	ses := &session{server: s, conn: c, in: protocol.NewFrameReader(bufio.NewReaderSize(c, 64<<10))}
	if !s.enter(ses) {
		ses.fail(exitNotRunnable, fmt.Sprintf("This environment has %d sessions already; close some.", maxSessions))
		return
	}
	defer s.leave(ses)
	ses.run(kind, payload)
}

func (s *server) enter(ses *session) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.live)+len(s.transfers) >= maxSessions {
		return false
	}
	s.live[ses] = struct{}{}
	return true
}

func (s *server) leave(ses *session) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.live, ses)
}

// hangUpAll tells all sessions that the container ends.
func (s *server) hangUpAll() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for ses := range s.live {
		ses.signal(syscall.SIGHUP)
	}
	for _, t := range s.transfers {
		_ = syscall.Kill(t.pid, syscall.SIGHUP) // it may have ended
	}
}
