package relay_test

import (
	"bytes"
	"fmt"
	"io"
	"strings"
	"testing"

	"github.com/pkg/sftp"

	"github.com/remotegpu/remotegpu/protocol"
)

// transfer is a client of an SFTP session that outlives its connections.
func (b *box) transfer(t *testing.T, a protocol.Attach) (*shell, *sftp.Client) {
	t.Helper()
	a.Subsystem = protocol.SubsystemSFTP
	s := b.mustAttach(t, a)
	if err := protocol.WriteDocument(s, protocol.FrameOpen, protocol.SessionOpen{Version: protocol.Version, Subsystem: a.Subsystem}); err != nil {
		t.Fatal(err)
	}
	out, in := io.Pipe()
	go func() {
		for {
			kind, payload, err := s.frames.Next()
			if kind == protocol.FrameStdout {
				_, err = in.Write(payload)
			} else if err == nil && kind == protocol.FrameExit {
				err = io.EOF
			}
			if err != nil {
				in.CloseWithError(err)
				return
			}
		}
	}()
	client, err := sftp.NewClientPipe(out, stdin{s})
	if err != nil {
		t.Fatal(err)
	}
	return s, client
}

// stdin is the input of a session.
type stdin struct{ s *shell }

func (i stdin) Write(p []byte) (int, error) {
	for rest := p; len(rest) > 0; {
		n := min(len(rest), protocol.MaxFrame)
		if err := protocol.WriteFrame(i.s, protocol.FrameStdin, rest[:n]); err != nil {
			return 0, err
		}
		rest = rest[n:]
	}
	return len(p), nil
}

func (i stdin) Close() error { return protocol.WriteFrame(i.s, protocol.FrameEOF, nil) }

// TestFilesSurviveCuts: the process that serves files takes one connection
// after the other, and only of its own client.
func TestFilesSurviveCuts(t *testing.T) {
	b := newBox(t)
	a := attach(protocol.AttachCreate, "", "usr_a")
	s, client := b.transfer(t, a)
	for n := range 20 {
		name, text := fmt.Sprint("/tmp/file-", n), bytes.Repeat([]byte{byte(n)}, 100_000)
		f, err := client.Create(name)
		if err != nil {
			t.Fatal(err)
		}
		s.cut()
		if _, err := f.Write(text); err != nil {
			t.Fatal(err)
		}
		s.cut()
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
		if f, err = client.Open(name); err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(f)
		if err != nil || !bytes.Equal(got, text) {
			t.Fatalf("read %d bytes of %d, %v", len(got), len(text), err)
		}
		f.Close()
	}
	other := attach(protocol.AttachResume, a.Session, "usr_b")
	other.Subsystem = protocol.SubsystemSFTP
	if _, err := b.attach(t, other); err == nil || !strings.Contains(err.Error(), "already") {
		t.Errorf("another one comes in: %v", err)
	}
	if err := client.Close(); err != nil {
		t.Error(err)
	}
	<-s.Done()
	gone := attach(protocol.AttachResume, "", "usr_a")
	gone.Subsystem = protocol.SubsystemSFTP
	if _, err := b.attach(t, gone); err == nil || !strings.Contains(err.Error(), "no longer there") {
		t.Errorf("a session that is not there goes on: %v", err)
	}
}
