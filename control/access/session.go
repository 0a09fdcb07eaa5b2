package access

import (
	"bufio"
	"context"
	"io"
	"strings"
	"sync"

	"golang.org/x/crypto/ssh"

	"github.com/remotegpu/remotegpu/control/audit"
	"github.com/remotegpu/remotegpu/control/auth"
	"github.com/remotegpu/remotegpu/control/environment"
	"github.com/remotegpu/remotegpu/protocol"
	"github.com/remotegpu/remotegpu/protocol/tunnel"
)

// session is one SSH session channel: requests gather what to run, then one of
// them starts it, and bytes flow until it ends.
type session struct {
	svc    *Service
	env    string // as typed
	caller auth.Caller
	ch     ssh.Channel
	open   protocol.SessionOpen

	mu   sync.Mutex // guards conn and writes to it
	conn *tunnel.Conn
}

// Exit status when nothing could be run, as ssh itself uses it.
const exitUnreachable = 255

func (s *Service) serveSession(ctx context.Context, env string, c auth.Caller, nc ssh.NewChannel) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	ch, requests, err := nc.Accept()
	if err != nil {
		return
	}
	ses := &session{svc: s, env: env, caller: c, ch: ch}
	ses.open.Version = protocol.Version
	ses.open.Env = map[string]string{}
	started := false
	for r := range requests {
		ok, start := ses.handle(r, started)
		if r.WantReply {
			r.Reply(ok, nil)
		}
		if start {
			started = true
			go func() {
				defer ch.Close()
				ses.run(ctx)
			}()
		}
	}
	ses.hangUp()
	if !started {
		ch.Close()
	}
}

// handle takes one channel request; start says that the program is known now.
func (ses *session) handle(r *ssh.Request, started bool) (ok, start bool) {
	switch r.Type {
	case "env":
		return ses.setEnv(r.Payload, started), false
	case "pty-req":
		return ses.setPTY(r.Payload, started), false
	case "window-change":
		return ses.resize(r.Payload), false
	case "signal":
		return ses.signal(r.Payload), false
	case "shell":
		return !started, !started
	case "exec":
		var p struct{ Command string }
		if started || ssh.Unmarshal(r.Payload, &p) != nil {
			return false, false
		}
		ses.open.Command = p.Command
		return true, true
	}
	return false, false // subsystem, agent and X11 forwarding
}

func (ses *session) setEnv(payload []byte, started bool) bool {
	var p struct{ Name, Value string }
	if started || ssh.Unmarshal(payload, &p) != nil || len(ses.open.Env) >= 64 {
		return false
	}
	ses.open.Env[p.Name] = p.Value
	return true
}

func (ses *session) setPTY(payload []byte, started bool) bool {
	var p struct {
		Term                      string
		Cols, Rows, Width, Height uint32
		Modes                     string
	}
	if started || ssh.Unmarshal(payload, &p) != nil || len(p.Term) > 64 {
		return false
	}
	if ses.open.Term = p.Term; p.Term == "" {
		ses.open.Term = "dumb"
	}
	ses.open.Size = windowSize(p.Cols, p.Rows, p.Width, p.Height)
	return true
}

func (ses *session) resize(payload []byte) bool {
	var p struct{ Cols, Rows, Width, Height uint32 }
	if ssh.Unmarshal(payload, &p) != nil {
		return false
	}
	ses.mu.Lock()
	defer ses.mu.Unlock()
	ses.open.Size = windowSize(p.Cols, p.Rows, p.Width, p.Height)
	return ses.conn == nil || protocol.WriteDocument(ses.conn, protocol.FrameResize, ses.open.Size) == nil
}

func (ses *session) signal(payload []byte) bool {
	var p struct{ Name string }
	if ssh.Unmarshal(payload, &p) != nil {
		return false
	}
	return ses.write(protocol.FrameSignal, []byte(strings.TrimPrefix(p.Name, "SIG"))) == nil
}

func windowSize(cols, rows, width, height uint32) protocol.WindowSize {
	const most = 1<<16 - 1
	return protocol.WindowSize{
		Cols: uint16(min(cols, most)), Rows: uint16(min(rows, most)),
		Width: uint16(min(width, most)), Height: uint16(min(height, most)),
	}
}

// run finds the environment, opens the stream and copies until the program has
// ended. Whatever goes wrong is one sentence on stderr and exit status 255.
func (ses *session) run(ctx context.Context) {
	env, err := ses.svc.ready(ctx, ses.caller, ses.env, ses.say)
	if err == nil {
		err = ses.start(ctx, env)
	}
	if err != nil {
		ses.svc.log.Info("session refused", "user", ses.caller.Name, "env", ses.env, "err", err)
		ses.say(text(err))
		ses.exit(protocol.SessionExit{Code: exitUnreachable})
		return
	}
	defer ses.hangUp()
	go ses.pumpIn()
	exit, err := ses.pumpOut()
	if err != nil {
		ses.say("The connection to the host was lost.")
		exit = protocol.SessionExit{Code: exitUnreachable}
	}
	if exit.Message != "" {
		ses.say(exit.Message)
	}
	ses.exit(exit)
}

func (ses *session) start(ctx context.Context, env environment.Environment) error {
	if err := ses.record(ctx, env); err != nil {
		return err
	}
	conn, err := ses.svc.open(ctx, ses.caller, env)
	if err != nil {
		return err
	}
	ses.mu.Lock()
	defer ses.mu.Unlock()
	if err := protocol.WriteDocument(conn, protocol.FrameOpen, ses.open); err != nil {
		conn.Close()
		return err
	}
	ses.conn = conn
	return nil
}

// record writes the audit entry of an access, without what is typed: a command
// line may hold a secret.
func (ses *session) record(ctx context.Context, env environment.Environment) error {
	return audit.Record(ctx, ses.svc.pool, ses.caller, auth.EnvironmentAccess, env.ID, env.Workspace, map[string]any{
		"via": "ssh", "terminal": ses.open.Term != "", "command": ses.open.Command != "",
	})
}

// pumpIn copies stdin until the client closes it or the stream ends.
func (ses *session) pumpIn() {
	buf := make([]byte, 32<<10)
	for {
		n, err := ses.ch.Read(buf)
		if n > 0 && ses.write(protocol.FrameStdin, buf[:n]) != nil {
			return
		}
		if err == io.EOF {
			_ = ses.write(protocol.FrameEOF, nil) // the stream may have ended first
			return
		}
		if err != nil {
			return
		}
	}
}

// pumpOut copies output until the exit frame. The client's window is the
// back-pressure: a slow reader stops its own stream and no other.
func (ses *session) pumpOut() (exit protocol.SessionExit, err error) {
	frames := protocol.NewFrameReader(bufio.NewReaderSize(ses.conn, 64<<10))
	for {
		kind, payload, err := frames.Next()
		if err != nil {
			return exit, err
		}
		switch kind {
		case protocol.FrameStdout:
			_, err = ses.ch.Write(payload)
		case protocol.FrameStderr:
			_, err = ses.ch.Stderr().Write(payload)
		case protocol.FrameExit:
			return exit, protocol.Unmarshal(payload, &exit)
		}
		if err != nil {
			return exit, err
		}
	}
}

func (ses *session) write(t protocol.FrameType, payload []byte) error {
	ses.mu.Lock()
	defer ses.mu.Unlock()
	if ses.conn == nil {
		return io.ErrClosedPipe
	}
	return protocol.WriteFrame(ses.conn, t, payload)
}

func (ses *session) hangUp() {
	ses.mu.Lock()
	conn := ses.conn
	ses.mu.Unlock()
	if conn != nil {
		conn.Close()
	}
}

// say shows one line to the person, on stderr.
func (ses *session) say(line string) {
	_, _ = io.WriteString(ses.ch.Stderr(), "remotegpu: "+line+"\r\n") // the client may be gone
}

var signals = map[string]bool{"ABRT": true, "ALRM": true, "FPE": true, "HUP": true, "ILL": true, "INT": true, "KILL": true,
	"PIPE": true, "QUIT": true, "SEGV": true, "TERM": true, "USR1": true, "USR2": true} // RFC 4254, 6.10

func (ses *session) exit(e protocol.SessionExit) {
	_ = ses.ch.CloseWrite()
	if signals[e.Signal] {
		_, _ = ses.ch.SendRequest("exit-signal", false, ssh.Marshal(struct {
			Name     string
			Core     bool
			Text     string
			Language string
		}{e.Signal, false, e.Message, ""}))
		return
	}
	_, _ = ses.ch.SendRequest("exit-status", false, ssh.Marshal(struct{ Status uint32 }{uint32(e.Code)}))
}
