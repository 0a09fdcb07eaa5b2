package access

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/pkg/sftp"
	"gocloud.dev/blob/fileblob"
	"golang.org/x/crypto/ssh"

	"github.com/remotegpu/remotegpu/control/auth"
	"github.com/remotegpu/remotegpu/control/environment"
	"github.com/remotegpu/remotegpu/control/errs"
	"github.com/remotegpu/remotegpu/control/recording"
	"github.com/remotegpu/remotegpu/protocol"
	"github.com/remotegpu/remotegpu/protocol/tunnel"
)

// recordAll makes the workspace of the world record everything into dir.
func recordAll(w *world, dir string) *recording.Service {
	w.t.Helper()
	bucket, err := fileblob.OpenBucket(dir, &fileblob.Options{NoTempDir: true, Metadata: fileblob.MetadataDontWrite})
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { bucket.Close() })
	resolve := func(context.Context, string) (string, error) { return wsID, nil }
	s := recording.New(w.pool, recording.Config{Bucket: bucket, Resolve: resolve}, slog.New(slog.DiscardHandler))
	if _, err := w.pool.Exec(w.t.Context(), "insert into workspaces (id, name) values ($1, 'lab')", wsID); err != nil {
		w.t.Fatal(err)
	}
	if err := s.SetPolicy(w.t.Context(), auth.System("test"), wsID, recording.Policy{Mode: recording.All, KeepDays: 1}); err != nil {
		w.t.Fatal(err)
	}
	w.cfg.Record, w.cfg.Continue, w.cfg.Records = s.Begin, s.Continue, s.Records
	return s
}

// recordings waits until there are n whole ones.
func recordings(w *world, s *recording.Service, n int) (casts []string) {
	w.t.Helper()
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		all, err := s.List(w.t.Context(), auth.System("test"), wsID, "")
		if err != nil {
			w.t.Fatal(err)
		}
		casts = nil
		for _, r := range all {
			if r.EndedAt == nil {
				continue
			}
			_, file, err := s.Open(w.t.Context(), auth.System("test"), wsID, r.ID)
			if err != nil {
				w.t.Fatal(err)
			}
			b, err := io.ReadAll(file)
			file.Close()
			if err != nil {
				w.t.Fatal(err)
			}
			casts = append(casts, string(b))
		}
		if len(casts) == n {
			return casts
		}
		if time.Now().After(deadline) {
			w.t.Fatalf("%d recordings, want %d", len(casts), n)
		}
	}
}

func TestSessionsAreRecorded(t *testing.T) {
	t.Parallel()
	var s *recording.Service
	w := newWorld(t)
	s = recordAll(w, t.TempDir())
	ses, err := w.mustClient("box").NewSession()
	if err != nil {
		t.Fatal(err)
	}
	in, _ := ses.StdinPipe()
	out, _ := ses.StdoutPipe()
	if err := ses.RequestPty("xterm", 24, 80, ssh.TerminalModes{}); err != nil {
		t.Fatal(err)
	}
	if err := ses.Start("cat"); err != nil {
		t.Fatal(err)
	}
	lines := make([]byte, len("ready\n"))
	if _, err := io.ReadFull(out, lines); err != nil {
		t.Fatal(err)
	}
	if err := ses.WindowChange(40, 120); err != nil {
		t.Fatal(err)
	}
	shown := "resized 120x40\n"
	if _, err := io.ReadFull(out, make([]byte, len(shown))); err != nil {
		t.Fatal(err)
	}
	fmt.Fprint(in, "echoed")
	in.Close()
	if rest, err := io.ReadAll(out); err != nil || string(rest) != "echoed" {
		t.Fatalf("%q %v", rest, err)
	}
	if err := ses.Wait(); err != nil {
		t.Fatal(err)
	}
	cast := recordings(w, s, 1)[0]
	for _, want := range []string{`"TERM":"xterm"`, `"o", "ready\n"]`, `"r", "120x40"]`, `"o", "echoed"]`} {
		if !strings.Contains(cast, want) {
			t.Errorf("the recording has no %s:\n%s", want, cast)
		}
	}
}

// TestHeldSessionsAreRecorded: each byte once, over many connections.
func TestHeldSessionsAreRecorded(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	s := recordAll(w, t.TempDir())
	c, cut, err := w.roam(newQuery(protocol.AttachCreate))
	if err != nil {
		t.Fatal(err)
	}
	open := protocol.SessionOpen{Version: 1, Command: "cat", Term: "xterm", Size: protocol.WindowSize{Cols: 132, Rows: 43}}
	if err := protocol.WriteDocument(c, protocol.FrameOpen, open); err != nil {
		t.Fatal(err)
	}
	frames := protocol.NewFrameReader(c)
	want := "ready\n"
	for i := range 10 {
		line := fmt.Sprintf("line %d\n", i)
		want += line
		if err := protocol.WriteFrame(c, protocol.FrameStdin, []byte(line)); err != nil {
			t.Fatal(err)
		}
		cut()
	}
	if err := protocol.WriteFrame(c, protocol.FrameEOF, nil); err != nil {
		t.Fatal(err)
	}
	var got string
	for {
		kind, payload, err := frames.Next()
		if err != nil {
			t.Fatalf("after %q: %v", got, err)
		}
		if kind == protocol.FrameExit {
			break
		}
		got += string(payload)
	}
	if got != want {
		t.Errorf("shown %q, want %q", got, want)
	}
	c.Close()
	w.closeHeld()
	cast := recordings(w, s, 1)[0]
	shown := castOutput(t, cast)
	if shown != want || !strings.Contains(cast, `"r", "132x43"`) {
		t.Errorf("recorded %q, want %q:\n%s", shown, want, cast)
	}
}

// framed is what a program reads and writes, as frames.
type framed struct {
	io.Writer
	frames *protocol.FrameReader
	rest   []byte
}

func (f *framed) Read(p []byte) (int, error) {
	for len(f.rest) == 0 {
		kind, payload, err := f.frames.Next()
		if err != nil || kind == protocol.FrameEOF {
			return 0, io.EOF
		}
		if kind == protocol.FrameStdin {
			f.rest = payload
		}
	}
	n := copy(p, f.rest)
	f.rest = f.rest[n:]
	return n, nil
}

func (f *framed) Write(p []byte) (int, error) {
	for n := 0; n < len(p); n += protocol.MaxFrame {
		if err := protocol.WriteFrame(f.Writer, protocol.FrameStdout, p[n:min(len(p), n+protocol.MaxFrame)]); err != nil {
			return n, err
		}
	}
	return len(p), nil
}

func (f *framed) Close() error { return nil }

func serveFiles(c io.Writer, frames *protocol.FrameReader) {
	if s, err := sftp.NewServer(&framed{Writer: c, frames: frames}); err == nil {
		_ = s.Serve()
	}
}

// TestSFTPIsRecorded: a line per file.
func TestSFTPIsRecorded(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.files = true
	s := recordAll(w, t.TempDir())
	c, err := sftp.NewClient(w.mustClient("box"))
	if err != nil {
		t.Fatal(err)
	}
	name := t.TempDir() + "/a\x1b[31m"
	f, err := c.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.Write(make([]byte, 100_000)); err != nil {
		t.Fatal(err)
	}
	f.Close()
	if err := c.Remove(name); err != nil {
		t.Fatal(err)
	}
	c.Close()
	cast := recordings(w, s, 1)[0]
	if !strings.Contains(cast, `a\\x1b[31m\", 100000 bytes\r\n"]`) || !strings.Contains(cast, `"remove `) {
		t.Errorf("recorded:\n%s", cast)
	}
}

// TestRecordingStoreFails: no session without its recording, and the person
// reads why.
func TestRecordingStoreFails(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	w := newWorld(t)
	recordAll(w, dir)
	ses, err := w.mustClient("box").NewSession()
	if err != nil {
		t.Fatal(err)
	}
	var stderr strings.Builder
	ses.Stderr = &stderr
	out, _ := ses.StdoutPipe()
	if err := ses.Start("flood"); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(out, make([]byte, 1000)); err != nil {
		t.Fatal(err)
	}
	breakFolder(t, dir)
	_, _ = io.Copy(io.Discard, out)
	if err := ses.Wait(); err == nil || !strings.Contains(stderr.String(), "records sessions") {
		t.Errorf("under way: %v, %q", err, stderr.String())
	}
	_, said, code := w.openssh("", keyFile(t, w.key), "box@GATEWAY", "env")
	if code != 255 || !strings.Contains(said, "records sessions") {
		t.Errorf("a new one: exit %d, %q", code, said)
	}
}

// breakFolder puts a file where the store has its folder.
func breakFolder(t *testing.T, dir string) {
	t.Helper()
	var err error
	for i := range 100 { // a recorder may be writing into it, and make it anew
		if err = os.Rename(dir, fmt.Sprintf("%s.away%d", dir, i)); err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
		if err = os.WriteFile(dir, nil, 0o600); err == nil {
			return
		}
	}
	t.Fatal(err)
}

// TestNothingIsKeptOfNothing: the helper knows no such session, or the host is
// away.
func TestNothingIsKeptOfNothing(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	dir := t.TempDir()
	recordAll(w, dir)
	none := func(what string) {
		t.Helper()
		for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(10 * time.Millisecond) {
			var rows int
			if err := w.pool.QueryRow(t.Context(), "select count(*) from recordings").Scan(&rows); err != nil {
				t.Fatal(err)
			}
			parts, err := filepath.Glob(dir + "/recordings/*/*")
			if rows == 0 && len(parts) == 0 && err == nil {
				return
			}
			if time.Now().After(deadline) {
				t.Fatalf("%s: %d recordings and %q are left, %v", what, rows, parts, err)
			}
		}
	}
	if _, _, err := w.roam(newQuery(protocol.AttachJoin)); err == nil || !strings.Contains(err.Error(), "no longer there") {
		t.Errorf("a session that nobody holds: %v", err)
	}
	none("a session that nobody holds")
	w.leave()
	conn, err := tunnel.Dial(t.Context(), tunnel.DialConfig{URL: w.terminalURL("box", newQuery(protocol.AttachCreate)), Header: bearer})
	if err == nil {
		conn.Close()
		t.Error("a host that is away has a session")
	}
	none("a host that is away")
	if n := len(w.heldRecs.byClient); n != 0 {
		t.Errorf("%d are kept", n)
	}
}

// TestHeldRecordingsOutliveTheirServer: the session goes on, and its recording
// with it, each byte once, when the server is stopped or dies, and another one
// begins. Recorders of a server that died are not told: they must not write
// what they still have, when others do.
func TestHeldRecordingsOutliveTheirServer(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	s := recordAll(w, t.TempDir())
	c, cut, err := w.roam(newQuery(protocol.AttachCreate))
	if err != nil {
		t.Fatal(err)
	}
	open := protocol.SessionOpen{Version: 1, Command: "cat", Term: "xterm", Size: protocol.WindowSize{Cols: 132, Rows: 43}}
	if err := protocol.WriteDocument(c, protocol.FrameOpen, open); err != nil {
		t.Fatal(err)
	}
	late := time.AfterFunc(time.Minute, func() { c.Detach() })
	defer late.Stop()
	frames := protocol.NewFrameReader(c)
	var got string
	until := func(want string) {
		t.Helper()
		for !strings.HasSuffix(got, want) {
			kind, payload, err := frames.Next()
			if err != nil || kind != protocol.FrameStdout {
				t.Fatalf("frame %d after %q: %v", kind, got, err)
			}
			got += string(payload)
		}
	}
	until("ready\n")
	for i := range 8 {
		line := fmt.Sprintf("line %d %s\n", i, strings.Repeat("世界", 5_000))
		if err := protocol.WriteFrame(c, protocol.FrameStdin, []byte(line)); err != nil {
			t.Fatal(err)
		}
		ends := []func(){w.closeHeld, func() { dieHeld(w); cut() }}
		ends[i%2]() // while bytes are under way
		until(line)
		if err := protocol.WriteDocument(c, protocol.FrameResize, protocol.WindowSize{Cols: uint16(100 + i), Rows: 50}); err != nil {
			t.Fatal(err)
		}
		until(fmt.Sprintf("resized %dx50\n", 100+i))
		ends[(i+1)/2%2]()
	}
	if err := protocol.WriteFrame(c, protocol.FrameEOF, nil); err != nil {
		t.Fatal(err)
	}
	if kind, _, err := frames.Next(); err != nil || kind != protocol.FrameExit {
		t.Fatalf("frame %d, %v", kind, err)
	}
	c.Close()
	w.closeHeld()
	cast := recordings(w, s, 1)[0]
	shown := castOutput(t, cast)
	if shown != got || !strings.Contains(cast, `"r", "107x50"`) {
		t.Errorf("recorded %d bytes, shown were %d", len(shown), len(got))
	}
}

// castOutput is what a recording shows.
func castOutput(t *testing.T, cast string) (shown string) {
	t.Helper()
	for _, line := range strings.Split(cast, "\n")[1:] {
		var event [3]any
		if line != "" && json.Unmarshal([]byte(line), &event) != nil {
			t.Fatalf("line %q", line)
		}
		if event[1] == "o" {
			shown += event[2].(string)
		}
	}
	return shown
}

// TestOnlyTheClientGoesOn with a recording that was left, and once.
func TestOnlyTheClientGoesOn(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	s := recordAll(w, t.TempDir())
	r, err := s.Begin(t.Context(), w.user, recording.Subject{ID: "env_box", Name: "box", Workspace: wsID}, recording.Session{Via: recording.ViaTerminal, Term: "xterm"})
	if err != nil {
		t.Fatal(err)
	}
	left := recording.Held{Environment: "env_box", User: w.user.ID, Client: "ses_1cli_1"}
	if err := r.Hold(t.Context(), left.Client, time.Minute); err != nil {
		t.Fatal(err)
	}
	if err := r.Store([]byte(`{"out":7}`)); err != nil {
		t.Fatal(err)
	}
	for _, change := range []func(h *recording.Held){
		func(h *recording.Held) { h.Client = "ses_1cli_2" },
		func(h *recording.Held) { h.User = "usr_b" },
		func(h *recording.Held) { h.Environment = "env_second" },
	} {
		other := left
		change(&other)
		if r, _, err := s.Continue(t.Context(), other); r != nil || err != nil {
			t.Errorf("%+v goes on: %v", other, err)
		}
	}
	again, state, err := s.Continue(t.Context(), left)
	if err != nil || again == nil || string(state) != `{"out":7}` {
		t.Fatalf("%v, %s, %v", again, state, err)
	}
	if err := r.Store([]byte(`{"out":8}`)); !errors.Is(err, recording.ErrTaken) {
		t.Errorf("the one before stores: %v", err)
	}
	r.Close() // ends nothing
	if err := again.Check(t.Context()); err != nil {
		t.Errorf("the one that goes on: %v", err)
	}
	again.Leave()
	if _, err := w.pool.Exec(t.Context(), "update recordings set touched_at = now() - interval '2 minutes'"); err != nil {
		t.Fatal(err)
	}
	if late, _, err := s.Continue(t.Context(), left); late != nil || err != nil {
		t.Errorf("too late: %v", err)
	}
}

// dieHeld makes the server forget its recordings as one that is killed would.
func dieHeld(w *world) {
	w.heldRecs.mu.Lock()
	defer w.heldRecs.mu.Unlock()
	w.heldRecs.byClient = nil
}

// TestADatabaseAwayEndsNoRecordedSession: a client that comes back meanwhile is
// told nothing final.
func TestADatabaseAwayEndsNoRecordedSession(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	recordAll(w, t.TempDir())
	q := newQuery(protocol.AttachCreate)
	c, _, err := w.roam(q)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	env := environment.Environment{ID: "env_box", Name: "box", Workspace: wsID}
	a := protocol.Attach{Session: q.Get("session"), Client: q.Get("client"), Op: protocol.AttachResume}
	away, cancel := context.WithCancel(t.Context())
	cancel()
	if h, err := w.recordHeld(away, w.user, env, a); h != nil || err == nil || errs.KindOf(err) == errs.Denied {
		t.Errorf("while the database is away: %v, %v", h, err)
	}
	h, err := w.recordHeld(t.Context(), w.user, env, a)
	if err != nil || h == nil {
		t.Fatalf("when it is back: %v, %v", h, err)
	}
	w.leaveHeld(h)
}

// TestAHeldRecordingEndsWithItsProgram, and not when its client could no longer
// come back.
func TestAHeldRecordingEndsWithItsProgram(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	s := recordAll(w, t.TempDir())
	c, _, err := w.roam(newQuery(protocol.AttachCreate))
	if err != nil {
		t.Fatal(err)
	}
	if err := protocol.WriteDocument(c, protocol.FrameOpen, protocol.SessionOpen{Version: 1, Command: "cat", Term: "xterm", Size: protocol.WindowSize{Cols: 80, Rows: 24}}); err != nil {
		t.Fatal(err)
	}
	if err := protocol.WriteFrame(c, protocol.FrameEOF, nil); err != nil {
		t.Fatal(err)
	}
	frames := protocol.NewFrameReader(c)
	for kind := protocol.FrameType(0); kind != protocol.FrameExit; {
		if kind, _, err = frames.Next(); err != nil {
			t.Fatal(err)
		}
	}
	c.Close()
	if cast := recordings(w, s, 1)[0]; !strings.Contains(cast, "ready") {
		t.Errorf("recorded is %q", cast)
	}
}
