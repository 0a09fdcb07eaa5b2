package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/creack/pty"
	"golang.org/x/sys/unix"

	"github.com/remotegpu/remotegpu/protocol"
)

const (
	// A program has ended, but something that it left behind may hold its
	// output open: what is quiet for so long counts as drained.
	drainQuiet = 250 * time.Millisecond
	// From the hang-up of a session whose client is gone to its end.
	killAfter = 5 * time.Second
	lingerFor = 2 * time.Second
)

// session is one program, with a terminal or without.
type session struct {
	server *server
	conn   client
	in     *protocol.FrameReader

	authority string // file that the session leaves behind; empty: none

	outMu sync.Mutex // guards writes to conn

	mu    sync.Mutex // guards what follows
	pid   int        // 0: not started
	term  *os.File   // master side; nil: no terminal
	stdin *os.File   // pipe; nil with a terminal or after EOF
}

// client is who is told of a session: one connection (net.UnixConn), or those
// who come and go (held). Each Write is one frame.
type client interface {
	io.Writer
	CloseWrite() error
}

// request reads a session's first frame.
func request(kind protocol.FrameType, payload []byte) (o protocol.SessionOpen, err error) {
	if kind != protocol.FrameOpen {
		return o, errors.New("the session did not start with a request")
	}
	if err := protocol.Unmarshal(payload, &o); err != nil {
		return o, fmt.Errorf("the request for a session cannot be read: %w", err)
	}
	return o, nil
}

// run is a session whose first frame has come.
func (s *session) run(kind protocol.FrameType, payload []byte) {
	o, err := request(kind, payload)
	if err != nil {
		s.fail(exitUsage, text(err))
		return
	}
	out, ended, err := s.start(o)
	defer s.forget()
	if err != nil {
		s.failStart(err)
		return
	}
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		s.readFrames(s.in)
	}()
	s.finish(out, ended, gone)
	// Closing with input unread would reset the connection, and the last frame
	// could be lost: the client closes when it has it.
	_ = s.conn.CloseWrite()
	select {
	case <-gone:
	case <-time.After(lingerFor):
	}
}

// forget removes what was made for the session alone.
func (s *session) forget() {
	if s.authority != "" {
		_ = os.Remove(s.authority) // the container's user may have done so
	}
}

func text(err error) string {
	s := err.Error()
	if s == "" {
		return s
	}
	return strings.ToUpper(s[:1]) + s[1:] + "."
}

// start runs what was asked for and returns its outputs.
func (s *session) start(o protocol.SessionOpen) ([]*output, <-chan syscall.WaitStatus, error) {
	who := s.server.who
	if o.User != "" {
		var err error
		if who, err = findAccount(o.User); err != nil {
			return nil, nil, err
		}
	}
	env := who.environ(os.Environ())
	for key, value := range o.Env {
		if key != "" && !strings.ContainsAny(key, "=\x00") && !strings.Contains(value, "\x00") {
			env = set(env, key, value)
		}
	}
	if o.X11 != nil {
		file, err := who.authority(*o.X11)
		if err != nil {
			return nil, nil, fmt.Errorf("write the display's authority file: %w", err)
		}
		s.authority, env = file, set(env, "XAUTHORITY", file)
	}
	path, argv, err := program(o, who, env)
	if err != nil {
		return nil, nil, err
	}
	attr := who.process(env)
	if o.Term != "" {
		attr.Env = set(attr.Env, "TERM", o.Term)
		return s.startTerminal(o, path, argv, attr, who)
	}
	return s.startPipes(path, argv, attr)
}

// program returns what to run: Args as they are, what serves Subsystem, Command
// by the shell, or a login shell.
func program(o protocol.SessionOpen, who account, env []string) (path string, argv []string, err error) {
	if len(o.Args) > 0 {
		if path, err = lookPath(o.Args[0], env); err != nil {
			return "", nil, fmt.Errorf("program %q is not in the image: %w", o.Args[0], os.ErrNotExist)
		}
		return path, o.Args, nil
	}
	if o.Subsystem != "" {
		return subsystem(o.Subsystem)
	}
	if path, argv, err = who.standIn(o.Command, env); path != "" || err != nil {
		return path, argv, err
	}
	shell, name, err := who.findShell()
	switch {
	case err == nil && o.Command == "":
		return shell, []string{"-" + name}, nil // the hyphen makes it a login shell
	case err == nil:
		return shell, []string{name, "-c", o.Command}, nil
	case o.Command == "":
		return "", nil, err
	}
	// No shell: what needs none can still be run.
	argv = strings.Fields(o.Command)
	if strings.ContainsAny(o.Command, "|&;<>()$`\\\"'*?[#~=%\n") || len(argv) == 0 {
		return "", nil, err
	}
	if path, err = lookPath(argv[0], env); err != nil {
		return "", nil, fmt.Errorf("program %q is not in the image, which has no shell either: %w", argv[0], os.ErrNotExist)
	}
	return path, argv, nil
}

func (s *session) startTerminal(o protocol.SessionOpen, path string, argv []string, attr *syscall.ProcAttr, who account) ([]*output, <-chan syscall.WaitStatus, error) {
	master, tty, err := pty.Open()
	if err != nil {
		return nil, nil, fmt.Errorf("make a terminal (is /dev/pts there?): %w", err)
	}
	defer tty.Close()
	_ = tty.Chown(int(who.uid), int(who.gid)) // a program that minds says so
	_ = pty.Setsize(master, size(o.Size))     // as above
	attr.Files = []uintptr{tty.Fd(), tty.Fd(), tty.Fd()}
	attr.Sys.Setctty, attr.Sys.Ctty = true, 0
	pid, ended, err := s.server.children.start(path, argv, attr)
	if err != nil {
		master.Close()
		return nil, nil, fmt.Errorf("run %s: %w", path, err)
	}
	s.mu.Lock()
	s.pid, s.term = pid, master
	s.mu.Unlock()
	return []*output{s.pump(master, protocol.FrameStdout)}, ended, nil
}

func (s *session) startPipes(path string, argv []string, attr *syscall.ProcAttr) ([]*output, <-chan syscall.WaitStatus, error) {
	var ends [6]*os.File // read and write end of stdin, stdout, stderr
	for i := 0; i < 6; i += 2 {
		var err error
		if ends[i], ends[i+1], err = os.Pipe(); err != nil {
			return nil, nil, fmt.Errorf("make a pipe: %w", err)
		}
	}
	attr.Files = []uintptr{ends[0].Fd(), ends[3].Fd(), ends[5].Fd()}
	pid, ended, err := s.server.children.start(path, argv, attr)
	for _, child := range []int{0, 3, 5} {
		ends[child].Close()
	}
	if err != nil {
		for _, ours := range []int{1, 2, 4} {
			ends[ours].Close()
		}
		return nil, nil, fmt.Errorf("run %s: %w", path, err)
	}
	s.mu.Lock()
	s.pid, s.stdin = pid, ends[1]
	s.mu.Unlock()
	return []*output{s.pump(ends[2], protocol.FrameStdout), s.pump(ends[4], protocol.FrameStderr)}, ended, nil
}

// finish waits for the end of the program, and tells the client, or for the end
// of the client, and then of the program.
func (s *session) finish(out []*output, ended <-chan syscall.WaitStatus, gone <-chan struct{}) (ws syscall.WaitStatus) {
	defer func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		for _, o := range out {
			o.file.Close()
		}
		if s.stdin != nil {
			s.stdin.Close()
		}
		s.term, s.stdin = nil, nil
	}()
	select {
	case ws = <-ended:
		s.drain(out, gone)
		s.mu.Lock()
		s.pid = 0 // the number may be another's from now on
		s.mu.Unlock()
		s.exit(ws)
	case <-gone:
		s.signal(syscall.SIGHUP)
		select {
		case ws = <-ended:
		case <-time.After(killAfter):
			s.signal(syscall.SIGKILL)
			ws = <-ended
		}
	}
	return ws
}

func (s *session) drain(out []*output, gone <-chan struct{}) {
	now := time.Now().UnixNano()
	for _, o := range out {
		o.moved.Store(max(o.moved.Load(), now))
		for !o.drained() {
			select {
			case <-gone:
				return
			case <-o.done:
			case <-time.After(20 * time.Millisecond):
			}
		}
	}
}

func (s *session) exit(ws syscall.WaitStatus) {
	e := protocol.SessionExit{Version: protocol.Version, Code: exitStatus(ws)}
	if ws.Signaled() {
		e.Signal = strings.TrimPrefix(unix.SignalName(ws.Signal()), "SIG")
	}
	s.document(protocol.FrameExit, e)
}

// failStart says why the program could not be started.
func (s *session) failStart(err error) {
	status := exitNotRunnable
	if errors.Is(err, os.ErrNotExist) {
		status = exitNotFound
	}
	s.fail(status, text(err))
}

// fail ends a session that never ran anything.
func (s *session) fail(status int, message string) {
	s.document(protocol.FrameExit, protocol.SessionExit{Version: protocol.Version, Code: status, Message: message})
}

func (s *session) document(kind protocol.FrameType, v any) {
	s.outMu.Lock()
	defer s.outMu.Unlock()
	_ = protocol.WriteDocument(s.conn, kind, v) // the client may be gone
}

func (s *session) write(kind protocol.FrameType, payload []byte) error {
	s.outMu.Lock()
	defer s.outMu.Unlock()
	return protocol.WriteFrame(s.conn, kind, payload)
}
