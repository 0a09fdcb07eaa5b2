package recording

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"os"
	"runtime"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"gocloud.dev/blob/fileblob"

	"github.com/remotegpu/remotegpu/control/account"
	"github.com/remotegpu/remotegpu/control/auth"
	"github.com/remotegpu/remotegpu/control/errs"
	"github.com/remotegpu/remotegpu/control/pg"
	"github.com/remotegpu/remotegpu/control/pgtest"
	"github.com/remotegpu/remotegpu/control/workspace"
)

func TestMain(m *testing.M) { pgtest.Main(m) }

type world struct {
	*Service
	t    *testing.T
	pool *pg.Pool
	dir  string
	sub  Subject
}

// caller is somebody with a role in the workspace lab.
func (w *world) caller(role auth.Role) auth.Caller {
	c := auth.Caller{Kind: auth.KindUser, ID: "usr_" + string(role), Name: string(role) + "@example.org"}
	if role != "" {
		c.Roles = map[string]auth.Role{w.sub.Workspace: role}
	}
	return c
}

func newWorld(t *testing.T, dir string) *world {
	t.Helper()
	pool := pgtest.New(t)
	accounts, workspaces := account.New(pool), workspace.New(pool)
	system := auth.System("test")
	if _, err := accounts.CreateUser(t.Context(), system, account.User{Email: "o@example.org"}, "correct horse"); err != nil {
		t.Fatal(err)
	}
	ws, err := workspaces.Create(t.Context(), system, "lab", "o@example.org")
	if err != nil {
		t.Fatal(err)
	}
	bucket, err := fileblob.OpenBucket(dir, &fileblob.Options{Metadata: fileblob.MetadataDontWrite, NoTempDir: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { bucket.Close() })
	s := New(pool, Config{Bucket: bucket, Resolve: workspaces.Resolve}, slog.New(slog.DiscardHandler))
	return &world{s, t, pool, dir, Subject{"env_box", "box", ws.ID}}
}

func (w *world) policy(mode string) {
	w.t.Helper()
	if err := w.SetPolicy(w.t.Context(), w.caller(auth.Admin), "lab", Policy{mode, 30}); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) begin(term string) *Recorder {
	w.t.Helper()
	r, err := w.Begin(w.t.Context(), w.caller(auth.Member), w.sub, Session{Via: ViaSSH, Term: term, Cols: 100, Rows: 30})
	if err != nil {
		w.t.Fatal(err)
	}
	return r
}

// played returns the header and what the terminal of the only recording showed.
func (w *world) played() (header map[string]any, shown string, events []string) {
	w.t.Helper()
	all, err := w.List(w.t.Context(), w.caller(auth.Admin), "lab", "box")
	if err != nil || len(all) != 1 {
		w.t.Fatalf("%d recordings, %v", len(all), err)
	}
	_, file, err := w.Open(w.t.Context(), w.caller(auth.Admin), "lab", all[0].ID)
	if err != nil {
		w.t.Fatal(err)
	}
	defer file.Close()
	in := bufio.NewScanner(file)
	in.Buffer(nil, 4<<20)
	in.Scan()
	if err := json.Unmarshal(in.Bytes(), &header); err != nil {
		w.t.Fatalf("header %q: %v", in.Text(), err)
	}
	for in.Scan() {
		var event []any
		if err := json.Unmarshal(in.Bytes(), &event); err != nil || len(event) != 3 {
			w.t.Fatalf("line %.80q: %v", in.Text(), err)
		}
		if event[1] == "o" {
			shown += event[2].(string)
		}
		events = append(events, fmt.Sprint(event[1]))
	}
	return header, shown, events
}

func TestRecording(t *testing.T) {
	t.Parallel()
	w := newWorld(t, t.TempDir())
	if r := w.begin("xterm"); r != nil {
		t.Fatal("recorded without a policy")
	}
	w.policy(Terminal)
	if r := w.begin(""); r != nil {
		t.Fatal("a command without a terminal is recorded under policy terminal")
	}
	r := w.begin("xterm")
	want := "hello \x1b[1m世界\x1b[0m\r\n"
	for i := range len(want) { // characters come torn
		if err := r.Output([]byte(want[i : i+1])); err != nil {
			t.Fatal(err)
		}
	}
	if err := r.Resize(120, 40); err != nil {
		t.Fatal(err)
	}
	r.Close()
	header, shown, events := w.played()
	if shown != want || header["version"] != 2.0 || header["width"] != 100.0 || events[len(events)-1] != "r" {
		t.Errorf("shown %q, header %v, last %v", shown, header, events[len(events)-1])
	}
	all, _ := w.List(t.Context(), w.caller(auth.Admin), "lab", "")
	if all[0].EndedAt == nil || all[0].Cut || all[0].Bytes == 0 || all[0].UserName != "member@example.org" {
		t.Errorf("%+v", all[0])
	}
	if parts, _ := os.ReadDir(w.dir + "/recordings/" + all[0].ID); len(parts) != 0 {
		t.Errorf("%d parts are left", len(parts))
	}
}

// TestServerDies: what was written stays readable, and another server ends it.
func TestServerDies(t *testing.T) {
	t.Parallel()
	w := newWorld(t, t.TempDir())
	w.policy(All)
	r := w.begin("xterm")
	_ = r.Output([]byte(strings.Repeat("x", partBytes)))
	r.mu.Lock() // it never comes back
	if _, shown, _ := w.played(); len(shown) != partBytes {
		t.Errorf("%d bytes while it runs", len(shown))
	}
	w.tidy(t.Context(), 0)
	all, _ := w.List(t.Context(), w.caller(auth.Owner), "lab", "")
	if _, shown, _ := w.played(); len(shown) != partBytes || !all[0].Cut || all[0].EndedAt == nil {
		t.Errorf("%d bytes, %+v", len(shown), all[0])
	}
}

// TestReadingIsLeft: of who stops in the middle nothing goes on, and who has not
// begun costs nothing.
func TestReadingIsLeft(t *testing.T) {
	t.Parallel()
	w := newWorld(t, t.TempDir())
	w.policy(Terminal)
	r := w.begin("xterm")
	defer r.Close()
	for _, at := range []int64{0, 1, 30} {
		_, file, err := w.Open(t.Context(), w.caller(auth.Admin), "lab", r.id)
		if err != nil {
			t.Fatal(err)
		}
		if n, err := io.CopyN(io.Discard, file, at); n != at || err != nil {
			t.Fatalf("%d, %v", n, err)
		}
		stacks := make([]byte, 1<<20)
		if stacks = stacks[:runtime.Stack(stacks, true)]; strings.Contains(string(stacks), "recording.(*Service).parts") {
			t.Errorf("after %d bytes somebody else reads on:\n%s", at, stacks)
		}
		if err := file.Close(); err != nil {
			t.Error(err)
		}
	}
}

func TestExpiry(t *testing.T) {
	t.Parallel()
	w := newWorld(t, t.TempDir())
	w.policy(All)
	r := w.begin("")
	_ = r.Output([]byte("x"))
	r.Close()
	if _, err := w.pool.Exec(t.Context(), "update recordings set expires_at = now()"); err != nil {
		t.Fatal(err)
	}
	w.tidy(t.Context(), time.Hour)
	if all, err := w.List(t.Context(), w.caller(auth.Admin), "lab", ""); len(all) != 0 || err != nil {
		t.Errorf("%+v %v", all, err)
	}
	if files, _ := os.ReadDir(w.dir + "/recordings"); len(files) > 1 || len(files) == 1 && !files[0].IsDir() {
		t.Errorf("files are left: %v", files)
	}
}

// TestStoreIsFull: a session that must be recorded and cannot does not begin,
// and one under way is told to end.
func TestStoreIsFull(t *testing.T) {
	t.Parallel()
	if os.Getuid() != 0 {
		t.Skip("a small file system needs root")
	}
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=1m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = syscall.Unmount(dir, syscall.MNT_DETACH) })
	w := newWorld(t, dir)
	w.policy(All)
	r := w.begin("xterm")
	var err error
	for range 10 {
		if err = r.Output([]byte(strings.Repeat("x", partBytes))); err != nil {
			break
		}
	}
	wantKind(t, err, errs.Unavailable, "takes no more")
	if _, err := io.WriteString(mustCreate(t, dir+"/fill"), strings.Repeat("x", 2<<20)); err == nil {
		t.Fatal("the store is not full")
	}
	_, err = w.Begin(t.Context(), w.caller(auth.Member), w.sub, Session{Via: ViaSSH, Term: "xterm"})
	wantKind(t, err, errs.Unavailable, "takes no more")
	r.Close()
}

// TestRoomIsKept: what the store must keep free is not taken by a recording, nor by
// joining its parts, which needs as much again.
func TestRoomIsKept(t *testing.T) {
	t.Parallel()
	w := newWorld(t, t.TempDir())
	w.policy(All)
	var room atomic.Int64
	room.Store(8 * partBytes)
	w.cfg.Room = func(bytes int64) error {
		if bytes > room.Load() {
			return errs.E(errs.Unavailable, "nearly full")
		}
		return nil
	}
	r := w.begin("xterm")
	for range 4 {
		if err := r.Output([]byte(strings.Repeat("x", partBytes))); err != nil {
			t.Fatal(err)
		}
	}
	room.Store(3 * partBytes)
	r.Close()
	w.tidy(t.Context(), 0)
	if whole, err := w.cfg.Bucket.Exists(t.Context(), castKey(r.id)); err != nil || whole {
		t.Errorf("the parts were joined: %v", err)
	}
	room.Store(partBytes / 2)
	wantKind(t, w.begin("xterm").Output([]byte(strings.Repeat("x", partBytes))), errs.Unavailable, "takes no more")
	room.Store(8 * partBytes)
	w.tidy(t.Context(), 0)
	if whole, err := w.cfg.Bucket.Exists(t.Context(), castKey(r.id)); err != nil || !whole {
		t.Errorf("with room again the parts were not joined: %v", err)
	}
}

func mustCreate(t *testing.T, name string) *os.File {
	t.Helper()
	f, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func TestRights(t *testing.T) {
	t.Parallel()
	w := newWorld(t, t.TempDir())
	w.policy(All)
	w.begin("").Close()
	for _, who := range []auth.Role{"", auth.Viewer, auth.Member} {
		if _, err := w.List(t.Context(), w.caller(who), "lab", ""); err == nil {
			t.Errorf("%q lists recordings", who)
		}
		if err := w.SetPolicy(t.Context(), w.caller(who), "lab", Policy{Off, 1}); err == nil {
			t.Errorf("%q changes the policy", who)
		}
	}
	wantKind(t, w.SetPolicy(t.Context(), w.caller(auth.Owner), "lab", Policy{"some", 1}), errs.Invalid, "no mode")
	wantKind(t, w.SetPolicy(t.Context(), w.caller(auth.Owner), "lab", Policy{All, 0}), errs.Invalid, "1 to 3650")
	_, _, err := w.Open(t.Context(), w.caller(auth.Owner), "lab", "rec_none")
	wantKind(t, err, errs.NotFound, "no such recording")
}

func wantKind(t *testing.T, err error, kind errs.Kind, text string) {
	t.Helper()
	if errs.KindOf(err) != kind || !strings.Contains(errs.Text(err), text) {
		t.Errorf("%v, want %v with %q", err, kind, text)
	}
}
