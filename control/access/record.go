package access

import (
	"context"
	"sync"

	"github.com/remotegpu/remotegpu/control/auth"
	"github.com/remotegpu/remotegpu/control/environment"
	"github.com/remotegpu/remotegpu/control/errs"
	"github.com/remotegpu/remotegpu/control/recording"
	"github.com/remotegpu/remotegpu/protocol"
	"github.com/remotegpu/remotegpu/protocol/sshd"
)

// sessionTap brings what a session shows to its recording. Each direction has
// one goroutine at a time.
type sessionTap struct {
	rec     *recording.Recorder
	in, out protocol.FrameTap // in: to the environment
	request []byte            // pieces of an open or resize
	over    bool              // the last frame was seen; guarded by who calls take
	files   *recording.SFTP   // nil: what is shown is recorded, and not what happens to files
}

func newSessionTap(rec *recording.Recorder) *sessionTap {
	t := &sessionTap{rec: rec}
	t.out.See, t.in.See = t.seeOutput, t.seeInput
	return t
}

func (t *sessionTap) takeOutput(p []byte) error {
	t.out.Take(p)
	return t.rec.Err()
}

func (t *sessionTap) close() {
	if t.files != nil {
		t.files.Close()
	}
	t.rec.Close()
}

// takeInput is like takeOutput, and never fails.
func (t *sessionTap) takeInput(p []byte) error {
	t.in.Take(p)
	return nil
}

// newFileTap records a line per file instead of the bytes.
func newFileTap(rec *recording.Recorder) *sessionTap {
	t := newSessionTap(rec)
	t.files = recording.NewSFTP(func(line string) { _ = rec.Output([]byte(line + "\r\n")) }) // takeOutput says it
	return t
}

func (t *sessionTap) seeOutput(kind protocol.FrameType, piece []byte, _ bool) {
	t.over = t.over || kind == protocol.FrameExit
	switch {
	case t.files != nil && kind == protocol.FrameStdout:
		t.files.FromServer(piece)
		return
	case t.files != nil:
		return
	}
	if kind == protocol.FrameStdout || kind == protocol.FrameStderr {
		_ = t.rec.Output(piece) // takeOutput says it
	}
}

func (t *sessionTap) seeInput(kind protocol.FrameType, piece []byte, last bool) {
	if t.files != nil {
		if kind == protocol.FrameStdin {
			t.files.FromClient(piece)
		}
		return
	}
	if kind != protocol.FrameResize && kind != protocol.FrameOpen {
		return
	}
	if t.request = append(t.request, piece...); !last {
		return
	}
	var size protocol.WindowSize
	var open protocol.SessionOpen
	if kind == protocol.FrameOpen && protocol.Unmarshal(t.request, &open) == nil {
		size = open.Size
	} else if protocol.Unmarshal(t.request, &size) != nil {
		size = protocol.WindowSize{}
	}
	if size.Cols > 0 && size.Rows > 0 {
		_ = t.rec.Resize(size.Cols, size.Rows) // the next output says the same
	}
	t.request = t.request[:0]
}

// recorded is the stream of a session whose output is recorded as it passes.
// When the recording is no longer taken, the session ends.
type recorded struct {
	sshd.Stream
	tap       *sessionTap
	closeOnce sync.Once
}

// recordSession wraps the stream of a session where the workspace wants that.
func (s *Service) recordSession(ctx context.Context, c auth.Caller, env environment.Environment, open *protocol.SessionOpen, stream sshd.Stream) (sshd.Stream, error) {
	ses, newTap := recording.Session{Via: recording.ViaSSH, Term: open.Term, Cols: open.Size.Cols, Rows: open.Size.Rows}, newSessionTap
	if open.Subsystem == protocol.SubsystemSFTP {
		ses.Via, newTap = recording.ViaSFTP, newFileTap
	}
	rec, err := s.beginRecording(ctx, c, env, ses)
	if err != nil {
		stream.Close()
		return nil, err
	}
	if rec == nil {
		return stream, nil
	}
	return &recorded{Stream: stream, tap: newTap(rec)}, nil
}

// beginRecording returns nil where none is wanted.
func (s *Service) beginRecording(ctx context.Context, c auth.Caller, env environment.Environment, ses recording.Session) (*recording.Recorder, error) {
	if s.cfg.Record == nil {
		return nil, nil
	}
	return s.cfg.Record(ctx, c, recording.Subject{ID: env.ID, Name: env.Name, Workspace: env.Workspace}, ses)
}

func (r *recorded) Read(p []byte) (int, error) {
	n, err := r.Stream.Read(p)
	if err := r.tap.takeOutput(p[:n]); err != nil {
		return 0, &sshd.Ended{Sentence: errs.Text(err)}
	}
	return n, err
}

func (r *recorded) Write(p []byte) (int, error) {
	_ = r.tap.takeInput(p) // it has none
	return r.Stream.Write(p)
}

func (r *recorded) Close() error {
	r.closeOnce.Do(r.tap.close)
	return r.Stream.Close()
}
