package main

import (
	"errors"
	"fmt"
	"net"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/remotegpu/remotegpu/protocol"
)

// transfer is a session of SFTP that outlives its connections. Its process is
// the end of the pipe itself and gets the connections as they are: a client
// that copies files waits for an answer several times for each, and every
// process in between would be woken as often.
type transfer struct {
	live    protocol.LiveSession
	client  string
	pid     int
	control *net.UnixConn // connections go there
}

// handOver passes c on to the transfer that a names, and makes it when that is
// what a wants.
func (s *server) handOver(c *net.UnixConn, a protocol.Attach) error {
	t, err := s.transfer(a)
	if err != nil {
		return err
	}
	message, err := protocol.Marshal(a)
	if err != nil {
		return err
	}
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var sent error
	err = raw.Control(func(fd uintptr) { _, _, sent = t.control.WriteMsgUnix(message, unix.UnixRights(int(fd)), nil) })
	if err == nil {
		err = sent
	}
	return err
}

func (s *server) transfer(a protocol.Attach) (*transfer, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	t := s.transfers[a.Session]
	switch {
	case t != nil && (t.live.User != a.User || t.client != a.Client):
		return nil, errors.New("there is a session of this name already")
	case t != nil:
		return t, nil
	case a.Op != protocol.AttachCreate:
		return nil, errNoSession
	case len(s.live)+len(s.transfers) >= maxSessions:
		return nil, fmt.Errorf("this environment has %d sessions already; close some", maxSessions)
	}
	t, ended, err := s.startTransfer(a)
	if err != nil {
		return nil, fmt.Errorf("files cannot be served: %w", err)
	}
	s.transfers[a.Session] = t
	go func() {
		<-ended
		s.mu.Lock()
		defer s.mu.Unlock()
		t.control.Close()
		delete(s.transfers, a.Session)
	}()
	return t, nil
}

// startTransfer runs this program again, as the container's user.
func (s *server) startTransfer(a protocol.Attach) (*transfer, <-chan syscall.WaitStatus, error) {
	ends, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, err
	}
	ours, theirs := os.NewFile(uintptr(ends[0]), "control"), os.NewFile(uintptr(ends[1]), "control")
	defer theirs.Close()
	defer ours.Close() // control is a copy
	control, err := net.FileConn(ours)
	if err != nil {
		return nil, nil, err
	}
	attr := s.who.process(s.who.environ(os.Environ()))
	attr.Files = []uintptr{theirs.Fd(), 2, 2}
	pid, ended, err := s.children.start(ownPath(), []string{"helper", "sftp", "--attached"}, attr)
	if err != nil {
		control.Close()
		return nil, nil, err
	}
	return &transfer{
		live: protocol.LiveSession{
			ID: a.Session, User: a.User, Name: a.Name, Since: time.Now().Unix(), Attached: true, Share: protocol.ShareNone, Program: a.Subsystem,
		},
		client: a.Client, pid: pid, control: control.(*net.UnixConn),
	}, ended, nil
}
