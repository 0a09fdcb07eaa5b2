// Package terminal is a person's end of a session that survives: remotegpu ssh
// and remotegpu attach.
//
// It owns the client of a session: frames, the local terminal, escapes typed
// by a person and what is said about the connection; how the server is reached
// is passed in. Its invariant: what the program writes comes to stdout and
// stderr unchanged, and what is said about the connection only to a terminal.
package terminal

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/remotegpu/remotegpu/protocol"
	"github.com/remotegpu/remotegpu/protocol/resume"
)

// Config says which session and whose terminal.
type Config struct {
	// Dial opens the session's WebSocket with these parameters. What no other
	// try would change is marked by resume.Final.
	Dial func(ctx context.Context, q url.Values) (io.ReadWriteCloser, error)

	Session string                // ses_…
	Open    *protocol.SessionOpen // what to run in a new session; nil: it is there
	Mode    string                // empty: the most that is allowed
	Share   string                // empty: as it is
	Keep    time.Duration         // without a client; 0: 15 minutes

	Stdin          io.Reader
	Stdout, Stderr io.Writer
	TTY            *os.File // the local terminal, put into raw mode; nil: none
}

// ErrDetached and ErrLeft are how a person ends it.
var (
	ErrDetached = errors.New("detached")
	ErrLeft     = errors.New("left")
)

// Unopened says that there is no session to begin with.
type Unopened struct{ error }

func (u *Unopened) Unwrap() error { return u.error }

const (
	pollNetwork = 500 * time.Millisecond
	quietFor    = time.Second // an interruption that is over by then is not mentioned
)

// session is one run.
type session struct {
	cfg    Config
	client string
	pipe   *resume.Client
	cols   int
	rows   int
	status status
	ended  atomic.Pointer[error] // ErrDetached or ErrLeft

	writing sync.Mutex // one frame at a time
}

// Run runs the session until it ends or the person leaves it.
func Run(ctx context.Context, cfg Config) (exit protocol.SessionExit, err error) {
	s := &session{cfg: cfg, client: protocol.NewID(protocol.PrefixClient)}
	s.status.say = s.say
	s.pipe, err = resume.Dial(ctx, resume.DialConfig{Config: resume.Config{Keep: cfg.Keep}, Dial: s.dial, Notify: s.status.changed})
	if err != nil {
		return exit, &Unopened{err}
	}
	defer s.pipe.Close()
	defer context.AfterFunc(ctx, func() { s.leave(ErrLeft) })()
	if cfg.TTY != nil {
		defer s.raw()()
	}
	if err := s.begin(); err != nil {
		return exit, err
	}
	stop := make(chan struct{})
	defer close(stop)
	go s.watchNetwork(stop)
	go s.readStdin()
	return s.readFrames()
}

// dial asks for a connection as the session's client.
func (s *session) dial(ctx context.Context, a resume.Attempt) (io.ReadWriteCloser, error) {
	op := protocol.AttachJoin
	switch {
	case a.Resume:
		op = protocol.AttachResume
	case s.cfg.Open != nil:
		op = protocol.AttachCreate
	}
	q := url.Values{"session": {s.cfg.Session}, "client": {s.client}, "op": {op}, "received": {strconv.FormatUint(a.Received, 10)}}
	for key, value := range map[string]string{"mode": s.cfg.Mode, "share": s.cfg.Share} {
		if value != "" {
			q.Set(key, value)
		}
	}
	if s.cfg.Keep > 0 {
		q.Set("keep", strconv.Itoa(int(s.cfg.Keep.Seconds())))
	}
	return s.cfg.Dial(ctx, q)
}

// begin says what to run, or how large the terminal is that has come.
func (s *session) begin() error {
	size := protocol.WindowSize{Cols: uint16(s.cols), Rows: uint16(s.rows)}
	if s.cfg.Open == nil {
		return s.document(protocol.FrameResize, size)
	}
	open := *s.cfg.Open
	open.Version = protocol.Version
	if s.cfg.TTY != nil {
		open.Size = size
	}
	return s.document(protocol.FrameOpen, open)
}

func (s *session) write(kind protocol.FrameType, payload []byte) error {
	s.writing.Lock()
	defer s.writing.Unlock()
	return protocol.WriteFrame(s.pipe, kind, payload)
}

func (s *session) document(kind protocol.FrameType, v any) error {
	b, err := protocol.Marshal(v)
	if err != nil {
		return err
	}
	return s.write(kind, b)
}

// raw puts the local terminal into raw mode and keeps the sizes alike.
func (s *session) raw() (restore func()) {
	s.cols, s.rows, restore = Raw(s.cfg.TTY, func(cols, rows int) {
		_ = s.document(protocol.FrameResize, protocol.WindowSize{Cols: uint16(cols), Rows: uint16(rows)}) // the session may have ended
	})
	return restore
}

// readStdin sends what is typed, but for escapes.
func (s *session) readStdin() {
	keys := escapes{on: s.cfg.TTY != nil}
	buf := make([]byte, 32<<10)
	for {
		n, err := s.cfg.Stdin.Read(buf)
		if n > 0 {
			typed, command := keys.take(buf[:n])
			if len(typed) > 0 && s.write(protocol.FrameStdin, typed) != nil {
				return
			}
			s.obey(command)
		}
		if err != nil {
			_ = s.write(protocol.FrameEOF, nil) // the session may have ended
			return
		}
	}
}

func (s *session) obey(command byte) {
	switch command {
	case '.':
		s.leave(ErrLeft)
	case 'd':
		s.leave(ErrDetached)
	case '?':
		s.say("~. ends the session, ~d leaves it running, ~~ types ~")
	}
}

// leave ends this end: with ErrDetached the program goes on.
func (s *session) leave(how error) {
	s.ended.CompareAndSwap(nil, &how)
	if how == ErrDetached {
		s.pipe.Detach()
	} else {
		s.pipe.Close()
	}
}

// readFrames brings the output out until the program has ended.
func (s *session) readFrames() (exit protocol.SessionExit, err error) {
	frames := protocol.NewFrameReader(bufio.NewReaderSize(s.pipe, 64<<10))
	for {
		kind, payload, err := frames.Next()
		if err != nil {
			return exit, s.reason(err)
		}
		switch kind {
		case protocol.FrameStdout:
			_, err = s.cfg.Stdout.Write(payload)
		case protocol.FrameStderr:
			_, err = s.cfg.Stderr.Write(payload)
		case protocol.FrameExit:
			return exit, protocol.Unmarshal(payload, &exit)
		}
		if err != nil {
			return exit, fmt.Errorf("write output: %w", err)
		}
	}
}

// reason is why there is no more output.
func (s *session) reason(err error) error {
	var closed *resume.Closed
	switch how := s.ended.Load(); {
	case how != nil:
		return *how
	case errors.As(err, &closed) && closed.Message == "":
		return errors.New("the session has ended")
	}
	return err
}

// say shows one dim line on the person's terminal.
func (s *session) say(line string) {
	if s.cfg.TTY != nil {
		fmt.Fprintf(s.cfg.Stderr, "\r\n\x1b[2m[remotegpu: %s]\x1b[0m\r\n", line)
	}
}

// watchNetwork looks for changes of this machine's addresses: they are known
// here before any connection fails.
func (s *session) watchNetwork(stop <-chan struct{}) {
	before := addresses()
	for {
		select {
		case <-stop:
			return
		case <-time.After(pollNetwork):
		}
		if now := addresses(); now != before {
			before = now
			s.pipe.Poke()
		}
	}
}

func addresses() string {
	all, err := net.InterfaceAddrs()
	if err != nil {
		return ""
	}
	var b strings.Builder
	for _, a := range all {
		b.WriteString(a.String() + " ")
	}
	return b.String()
}
