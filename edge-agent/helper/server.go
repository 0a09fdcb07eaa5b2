package main

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/remotegpu/remotegpu/protocol"
)

// maxSessions is how many sessions a container has at a time.
const maxSessions = 256

// server opens sessions for the agent.
type server struct {
	children *reaper
	who      account

	mu   sync.Mutex // guards live
	live map[*session]struct{}
}

func newServer(children *reaper, who account) *server {
	return &server{children: children, who: who, live: map[*session]struct{}{}}
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
			if err != nil {
				complain("no more shells can be opened here: %v", err)
				return
			}
			go s.serve(c)
		}
	}()
	return nil
}

// fromOutside reports whether the peer is the host's root outside the
// container. A process of the container has a pid here; one from outside the
// pid namespace has none, and the kernel shows 0.
func fromOutside(c *net.UnixConn) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var cred *unix.Ucred
	var credErr error
	if err := raw.Control(func(fd uintptr) {
		cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); err != nil {
		return err
	}
	if credErr != nil {
		return credErr
	}
	if cred.Pid != 0 || cred.Uid != 0 {
		return fmt.Errorf("process %d of user %d inside the container asked for a session", cred.Pid, cred.Uid)
	}
	return nil
}

func (s *server) serve(c *net.UnixConn) {
	defer c.Close()
	if err := fromOutside(c); err != nil {
		complain("refused: %v", err)
		return
	}
	ses := &session{server: s, conn: c, in: protocol.NewFrameReader(bufio.NewReaderSize(c, 64<<10))}
	if !s.enter(ses) {
		ses.fail(exitNotRunnable, fmt.Sprintf("This environment has %d sessions already; close some.", maxSessions))
		return
	}
	defer s.leave(ses)
	ses.run()
}

func (s *server) enter(ses *session) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.live) >= maxSessions {
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
}
