package sshd

import (
	"context"
	"strings"
	"sync"

	"golang.org/x/crypto/ssh"

	"github.com/remotegpu/remotegpu/protocol"
)

// session is one SSH session channel: requests gather what to run, then one of
// them starts it, and bytes flow until it ends.
type session struct {
	server *server
	ch     ssh.Channel
	told   chan struct{} // of one: there is something in size or signals

	mu      sync.Mutex // guards what follows
	open    protocol.SessionOpen
	started bool
	agent   bool     // the client lends its SSH agent
	x11     *x11     // and its display
	resized bool     // open.Size is news to the program
	signals []string // for the program
	stream  Stream   // nil: not yet there

	writing sync.Mutex // one frame at a time into stream
}

// Limits of what a client can ask of one session.
const (
	maxSettings = 64
	maxSignals  = 16 // that wait for the program
)

func (s *server) serveSession(ctx context.Context, nc ssh.NewChannel) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	ch, requests, err := nc.Accept()
	if err != nil {
		return
	}
	ses := &session{server: s, ch: ch, told: make(chan struct{}, 1)}
	ses.open.Version = protocol.Version
	ses.open.Env = map[string]string{}
	for r := range requests { // nothing here waits: a full queue would hold up the whole connection
		ok, start := ses.handle(r)
		if r.WantReply {
			_ = r.Reply(ok, nil) // the client may be gone
		}
		if start {
			go func() {
				defer ch.Close()
				ses.run(ctx)
			}()
		}
	}
	ses.hangUp()
	if !ses.started {
		ch.Close()
	}
}

// handle takes one channel request; start says that the program is known now.
func (ses *session) handle(r *ssh.Request) (ok, start bool) {
	ses.mu.Lock()
	defer ses.mu.Unlock()
	switch r.Type {
	case "window-change":
		return ses.resize(r.Payload), false
	case "signal":
		return ses.signal(r.Payload), false
	}
	if ses.started {
		return false, false
	}
	switch r.Type {
	case "env":
		return ses.setEnv(r.Payload), false
	case "pty-req":
		ses.open.Term, ses.open.Size, ok = parsePTY(r.Payload)
		return ok, false
	case "auth-agent-req@openssh.com":
		ses.agent = true
		return true, false
	case "x11-req":
		x, ok := parseX11(r.Payload)
		ses.x11 = &x
		return ok, false
	case "subsystem":
		ses.open.Subsystem, ok = parseText(r.Payload)
		ok = ok && ses.open.Subsystem == protocol.SubsystemSFTP
	case "shell":
		ok = true
	case "exec":
		ses.open.Command, ok = parseText(r.Payload)
	}
	ses.started = ok
	return ok, ok
}

func (ses *session) setEnv(payload []byte) bool {
	v, ok := parseSetting(payload)
	if !ok || len(ses.open.Env) >= maxSettings {
		return false
	}
	ses.open.Env[v.Name] = v.Value
	return true
}

func (ses *session) resize(payload []byte) bool {
	size, ok := parseResize(payload)
	if ok {
		ses.open.Size, ses.resized = size, true
		ses.tell()
	}
	return ok
}

func (ses *session) signal(payload []byte) bool {
	name, ok := parseText(payload)
	if !ok || len(name) > 16 || len(ses.signals) >= maxSignals {
		return false
	}
	ses.signals = append(ses.signals, strings.TrimPrefix(name, "SIG"))
	ses.tell()
	return true
}

func (ses *session) tell() {
	select {
	case ses.told <- struct{}{}:
	default: // who is told looks at everything
	}
}

func (ses *session) hangUp() {
	ses.mu.Lock()
	stream := ses.stream
	ses.mu.Unlock()
	if stream != nil {
		stream.Close()
	}
}
