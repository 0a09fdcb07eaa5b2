package terminal

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/remotegpu/remotegpu/protocol"
	"github.com/remotegpu/remotegpu/protocol/resume"
)

func TestEscapes(t *testing.T) {
	for _, c := range []struct {
		in, typed string
		command   byte
	}{
		{"ls\r", "ls\r", 0},
		{"~.", "", '.'},
		{"~d", "", 'd'},
		{"ls\r~.", "ls\r", '.'},
		{"ls ~.\r", "ls ~.\r", 0},
		{"~~.\r", "~.\r", 0},
		{"~x", "~x", 0},
		{"~/bin/x\r", "~/bin/x\r", 0},
		{"~\r~.", "~\r", '.'},
		{"~?x", "x", '?'},
		{"a\n~d", "a\n", 'd'},
	} {
		for _, size := range []int{1, 2, 100} {
			e := escapes{on: true}
			var typed []byte
			var command byte
			for rest := []byte(c.in); len(rest) > 0; {
				n := min(size, len(rest))
				got, cmd := e.take(rest[:n])
				typed, rest = append(typed, got...), rest[n:]
				if cmd != 0 {
					command = cmd
				}
			}
			if string(typed) != c.typed || command != c.command {
				t.Errorf("%q in pieces of %d: %q and %q, want %q and %q", c.in, size, typed, command, c.typed, c.command)
			}
		}
	}
	off := escapes{}
	if typed, command := off.take([]byte("~.")); string(typed) != "~." || command != 0 {
		t.Errorf("without a terminal: %q, %q", typed, command)
	}
}

// far is the other end, reached over pipes that can be cut.
type far struct {
	pipe *resume.Conn

	mu   sync.Mutex // guards what follows
	conn net.Conn
	down bool
	ops  []string
}

func (f *far) dial(_ context.Context, q url.Values) (io.ReadWriteCloser, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.ops = append(f.ops, q.Get("op"))
	if f.down {
		return nil, errors.New("no way")
	}
	ours, theirs := net.Pipe()
	f.conn = ours
	var received uint64
	if _, err := fmt.Sscan(q.Get("received"), &received); err != nil {
		return nil, resume.Final(err)
	}
	go func() {
		_ = f.pipe.Serve(theirs, received)
		theirs.Close()
	}()
	return ours, nil
}

func (f *far) set(down bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.down = down; down {
		f.conn.Close()
	}
}

// play is a program that says what it gets, until EOF.
func (f *far) play() {
	frames := protocol.NewFrameReader(bufio.NewReader(f.pipe))
	for {
		kind, payload, err := frames.Next()
		switch {
		case err != nil:
			return
		case kind == protocol.FrameOpen:
			_ = protocol.WriteFrame(f.pipe, protocol.FrameStderr, []byte("begun"))
		case kind == protocol.FrameStdin:
			_ = protocol.WriteFrame(f.pipe, protocol.FrameStdout, payload)
		case kind == protocol.FrameEOF:
			_ = protocol.WriteDocument(f.pipe, protocol.FrameExit, protocol.SessionExit{Version: 1, Code: 5})
			_ = f.pipe.CloseWrite()
		}
	}
}

func (f *far) config(in io.Reader, out, errOut io.Writer) Config {
	return Config{Dial: f.dial, Session: "ses_x", Open: &protocol.SessionOpen{Command: "x"}, Stdin: in, Stdout: out, Stderr: errOut}
}

// TestRun: bytes come out unchanged over cuts, then the exit status.
func TestRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &far{pipe: resume.New(resume.Config{})}
		go f.play()
		in, typing := io.Pipe()
		var out, errOut bytes.Buffer
		var want strings.Builder
		go func() {
			for i := range 300 {
				fmt.Fprintf(typing, "~. line %d\n", i)
				fmt.Fprintf(&want, "~. line %d\n", i)
				if i%10 == 0 {
					f.set(true)
					f.set(false)
				}
			}
			typing.Close()
		}()
		exit, err := Run(t.Context(), f.config(in, &out, &errOut))
		if err != nil || exit.Code != 5 || out.String() != want.String() || errOut.String() != "begun" {
			t.Errorf("exit %+v, %v, stderr %q, %d of %d bytes", exit, err, errOut.String(), out.Len(), want.Len())
		}
		for i, op := range f.ops {
			if (op == protocol.AttachCreate) != (i == 0) {
				t.Errorf("connection %d: %s", i, op)
			}
		}
	})
}

// TestLeaving: the context's end closes the session, and the far end knows.
func TestLeaving(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &far{pipe: resume.New(resume.Config{})}
		ctx, cancel := context.WithCancel(t.Context())
		in, typing := io.Pipe()
		defer typing.Close()
		time.AfterFunc(time.Second, cancel)
		if _, err := Run(ctx, f.config(in, io.Discard, io.Discard)); err != ErrLeft {
			t.Error(err)
		}
		var closed *resume.Closed
		if _, err := io.Copy(io.Discard, f.pipe); !errors.As(err, &closed) {
			t.Errorf("the far end sees %v", err)
		}
	})
}

// TestStatus: only interruptions that last are mentioned, and their end.
func TestStatus(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var said []string
		s := status{say: func(line string) { said = append(said, line) }}
		s.changed(resume.State{Since: time.Now()})
		time.Sleep(quietFor / 2)
		s.changed(resume.State{Connected: true, Since: time.Now()})
		time.Sleep(time.Minute)
		if len(said) != 0 {
			t.Errorf("a short one: %q", said)
		}
		since := time.Now()
		s.changed(resume.State{Since: since})
		time.Sleep(12 * time.Second)
		s.changed(resume.State{Connected: true, Since: since})
		if len(said) != 2 || !strings.Contains(said[0], "interrupted") || !strings.Contains(said[1], "after 12s") {
			t.Errorf("a long one: %q", said)
		}
	})
}
