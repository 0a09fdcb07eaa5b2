package main

import (
	"os"
	"syscall"

	"github.com/creack/pty"
	"golang.org/x/sys/unix"

	"github.com/remotegpu/remotegpu/protocol"
)

// readFrames does what the client says until it is gone.
func (s *session) readFrames(in *protocol.FrameReader) {
	for {
		kind, payload, err := in.Next()
		if err != nil {
			return
		}
		switch kind {
		case protocol.FrameStdin:
			s.input(payload)
		case protocol.FrameEOF:
			s.endInput()
		case protocol.FrameResize:
			var ws protocol.WindowSize
			if protocol.Unmarshal(payload, &ws) == nil {
				s.resize(ws)
			}
		case protocol.FrameSignal:
			if sig := unix.SignalNum("SIG" + string(payload)); sig != 0 {
				s.signal(sig)
			}
		}
	}
}

func (s *session) input(p []byte) {
	s.mu.Lock()
	to := s.stdin
	if s.term != nil {
		to = s.term
	}
	s.mu.Unlock()
	if to == nil {
		return
	}
	if _, err := to.Write(p); err != nil && s.isPipe(to) {
		s.endInput() // the program closed its stdin: what comes is for nobody
	}
}

func (s *session) isPipe(f *os.File) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.stdin == f
}

func (s *session) endInput() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stdin != nil {
		s.stdin.Close()
		s.stdin = nil
	}
}

func size(ws protocol.WindowSize) *pty.Winsize {
	return &pty.Winsize{Cols: ws.Cols, Rows: ws.Rows, X: ws.Width, Y: ws.Height}
}

func (s *session) resize(ws protocol.WindowSize) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.term != nil {
		_ = pty.Setsize(s.term, size(ws)) // the next resize may do better
	}
}

// signal goes to what is in the terminal's foreground, and without a terminal
// to the program and what it started.
func (s *session) signal(sig syscall.Signal) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.pid == 0 {
		return
	}
	if s.term != nil {
		if group := foreground(s.term); group > 1 && group != s.pid {
			_ = syscall.Kill(-group, sig) // it may have ended
		}
		if sig != syscall.SIGHUP && sig != syscall.SIGKILL {
			if group := foreground(s.term); group != s.pid {
				return
			}
		}
	}
	_ = syscall.Kill(-s.pid, sig) // as above
}

func foreground(term *os.File) (group int) {
	raw, err := term.SyscallConn()
	if err != nil {
		return 0
	}
	_ = raw.Control(func(fd uintptr) { group, err = unix.IoctlGetInt(int(fd), unix.TIOCGPGRP) })
	return group
}
