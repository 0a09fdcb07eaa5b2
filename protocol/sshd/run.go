package sshd

import (
	"bufio"
	"context"
	"errors"
	"io"
	"strings"
	"sync"

	"golang.org/x/crypto/ssh"

	"github.com/remotegpu/remotegpu/protocol"
	"github.com/remotegpu/remotegpu/protocol/ahead"
)

// Exit status when nothing could be run, as ssh itself uses it.
const exitUnreachable = 255

// run opens the stream and copies until the program has ended. Whatever goes
// wrong is one sentence on stderr and exit status 255.
func (ses *session) run(ctx context.Context) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := ses.start(ctx)
	if err != nil {
		ses.say(ses.server.Text(err))
		ses.exit(protocol.SessionExit{Code: exitUnreachable})
		return
	}
	defer stream.Close()
	if ses.open.Term != "" && ses.open.Command == "" && ses.server.Greeting != "" { // read-only since the start
		ses.say(ses.server.Greeting)
	}
	gateway := ses.ahead(stream)
	go ses.pumpIn(stream, gateway)
	go ses.pumpControls(ctx, stream)
	exit, err := ses.pumpOut(stream, gateway)
	if err != nil {
		exit = protocol.SessionExit{Code: exitUnreachable, Message: "The connection to the host was lost."}
		if why, ok := errors.AsType[*Ended](err); ok {
			exit.Message = why.Sentence
		}
	}
	if exit.Message != "" {
		ses.say(exit.Message)
	}
	ses.exit(exit)
}

func (ses *session) start(ctx context.Context) (Stream, error) {
	ses.mu.Lock()
	open, agent, x11 := ses.open, ses.agent, ses.x11 // since the start nothing of it is written to but the size
	ses.mu.Unlock()
	if agent {
		path, err := ses.server.agentSocket(ctx)
		if err != nil {
			ses.say("Your SSH agent is not forwarded: " + ses.server.Text(err))
		} else {
			open.Env["SSH_AUTH_SOCK"] = path
		}
	}
	if x11 != nil {
		if err := ses.lendDisplay(ctx, &open, *x11); err != nil {
			ses.say("Your display is not forwarded: " + ses.server.Text(err))
		}
	}
	stream, _, err := ses.server.Open(ctx, Request{Kind: protocol.StreamSession, Session: &open, Say: ses.say})
	if err != nil {
		return nil, err
	}
	if err := protocol.WriteDocument(stream, protocol.FrameOpen, open); err != nil {
		stream.Close()
		return nil, err
	}
	ses.mu.Lock()
	ses.stream = stream
	ses.mu.Unlock()
	if ctx.Err() != nil { // hangUp has not seen the stream
		stream.Close()
	}
	return stream, nil
}

// pieces hold the head of a frame and what one packet of a channel has.
var pieces = sync.Pool{New: func() any { return new([protocol.FrameRoom + 32<<10]byte) }}

// ahead returns what goes between for SFTP; nil: nothing does.
func (ses *session) ahead(stream Stream) *ahead.Gateway {
	if _, may := stream.(Ahead); !may || ses.open.Subsystem != protocol.SubsystemSFTP { // read-only since the start
		return nil
	}
	checks := strings.HasPrefix(string(ses.server.conn.ClientVersion()), "SSH-2.0-OpenSSH_") // its scp and sftp do; paramiko does not
	return ahead.NewGateway(
		func(p []byte) error { return ses.put(stream, protocol.FrameStdin, p) },
		func(p []byte) error { _, err := ses.ch.Write(p); return err }, checks)
}

// pumpIn copies stdin until the client closes it or the stream ends.
func (ses *session) pumpIn(stream Stream, gateway *ahead.Gateway) {
	buf := pieces.Get().(*[protocol.FrameRoom + 32<<10]byte)
	defer pieces.Put(buf)
	for {
		n, err := ses.ch.Read(buf[protocol.FrameRoom:])
		if n > 0 && gateway != nil {
			if gateway.FromClient(buf[protocol.FrameRoom:][:n]) != nil {
				return
			}
		} else if n > 0 && ses.put(stream, protocol.FrameStdin, buf[:protocol.FrameRoom+n]) != nil {
			return
		}
		if err != nil && gateway != nil && gateway.End() != nil {
			return
		}
		if err == io.EOF {
			_ = ses.write(stream, protocol.FrameEOF, nil) // the stream may have ended first
			return
		}
		if err != nil {
			return
		}
	}
}

// pumpControls passes on sizes and signals. While the program does not read
// its stdin they wait behind it; the last size is the one that counts.
func (ses *session) pumpControls(ctx context.Context, stream Stream) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-ses.told:
		}
		ses.mu.Lock()
		size, resized, signals := ses.open.Size, ses.resized, ses.signals
		ses.resized, ses.signals = false, nil
		ses.mu.Unlock()
		if resized {
			ses.writing.Lock()
			err := protocol.WriteDocument(stream, protocol.FrameResize, size)
			ses.writing.Unlock()
			if err != nil {
				return
			}
		}
		for _, name := range signals {
			if ses.write(stream, protocol.FrameSignal, []byte(name)) != nil {
				return
			}
		}
	}
}

// pumpOut copies output until the exit frame. The client's window is the
// back-pressure: a slow reader stops its own stream and no other.
func (ses *session) pumpOut(stream Stream, gateway *ahead.Gateway) (exit protocol.SessionExit, err error) {
	frames := protocol.NewFrameReader(bufio.NewReaderSize(stream, 4<<10)) // the most of a large frame is read past it
	for {
		kind, payload, err := frames.Next()
		if err != nil {
			return exit, err
		}
		switch kind {
		case protocol.FrameStdout:
			if gateway != nil {
				err = gateway.FromHost(payload)
				break
			}
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

func (ses *session) write(stream Stream, t protocol.FrameType, payload []byte) error {
	ses.writing.Lock()
	defer ses.writing.Unlock()
	return protocol.WriteFrame(stream, t, payload)
}

// put is write of a frame that has its room.
func (ses *session) put(stream Stream, t protocol.FrameType, buf []byte) error {
	ses.writing.Lock()
	defer ses.writing.Unlock()
	return protocol.PutFrame(stream, t, buf)
}

// say shows one line to the person, on stderr.
func (ses *session) say(line string) {
	_, _ = io.WriteString(ses.ch.Stderr(), "remotegpu: "+line+"\r\n") // the client may be gone
}

var signals = map[string]bool{"ABRT": true, "ALRM": true, "FPE": true, "HUP": true, "ILL": true, "INT": true, "KILL": true,
	"PIPE": true, "QUIT": true, "SEGV": true, "TERM": true, "USR1": true, "USR2": true} // RFC 4254, 6.10

// exit says how it ended, and then that nothing more comes: a client whose input
// has ended too answers that by closing, and would not hear how.
func (ses *session) exit(e protocol.SessionExit) {
	defer func() { _ = ses.ch.CloseWrite() }() // the client may be gone
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
