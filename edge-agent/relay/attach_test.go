package relay_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/remotegpu/remotegpu/protocol"
	"github.com/remotegpu/remotegpu/protocol/resume"
)

// shell is a client of a session that outlives its connections.
type shell struct {
	*resume.Client
	t      *testing.T
	a      protocol.Attach
	frames *protocol.FrameReader
	seen   []byte

	mu   sync.Mutex // guards what follows
	conn net.Conn
	down bool
}

func attach(op, session, user string) protocol.Attach {
	if session == "" {
		session = protocol.NewID(protocol.PrefixSession)
	}
	return protocol.Attach{Version: 1, Session: session, Client: protocol.NewID(protocol.PrefixClient), User: user, Name: user + "@example.org", Op: op}
}

// attach connects a client with the box, as the control plane would for it.
func (b *box) attach(t *testing.T, a protocol.Attach) (*shell, error) {
	t.Helper()
	s := &shell{t: t, a: a}
	var err error
	s.Client, err = resume.Dial(t.Context(), resume.DialConfig{Dial: func(_ context.Context, at resume.Attempt) (io.ReadWriteCloser, error) {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.down {
			return nil, errors.New("no way")
		}
		if a := &s.a; at.Resume {
			a.Op = protocol.AttachResume
		}
		c, answer := b.dial(t)
		if answer != "" {
			return nil, errors.New(answer)
		}
		s.a.Received = at.Received
		s.conn = c
		return c, protocol.WriteDocument(c, protocol.FrameAttach, s.a)
	}})
	if err == nil {
		t.Cleanup(func() { s.Close() })
		s.frames = protocol.NewFrameReader(bufio.NewReader(s.Client))
	}
	return s, err
}

func (b *box) mustAttach(t *testing.T, a protocol.Attach) *shell {
	t.Helper()
	s, err := b.attach(t, a)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// create starts what o says in a new session.
func (b *box) create(t *testing.T, user, share string, o protocol.SessionOpen) *shell {
	t.Helper()
	a := attach(protocol.AttachCreate, "", user)
	a.Share = share
	s := b.mustAttach(t, a)
	o.Version = protocol.Version
	if err := protocol.WriteDocument(s, protocol.FrameOpen, o); err != nil {
		t.Fatal(err)
	}
	return s
}

func (s *shell) cut() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.conn.Close()
}

func (s *shell) set(down bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.down = down; down {
		s.conn.Close()
	}
}

func (s *shell) typed(text string) {
	s.t.Helper()
	if err := protocol.WriteFrame(s, protocol.FrameStdin, []byte(text)); err != nil {
		s.t.Fatal(err)
	}
}

// until reads output until want is in it.
func (s *shell) until(want string) {
	s.t.Helper()
	late := time.AfterFunc(time.Minute, func() { s.Detach() })
	defer late.Stop()
	for !bytes.Contains(s.seen, []byte(want)) {
		kind, payload, err := s.frames.Next()
		if err != nil || kind == protocol.FrameExit {
			s.t.Fatalf("waiting for %q: frame %d, %v; seen last:\n%s", want, kind, err, s.seen[max(0, len(s.seen)-500):])
		}
		s.seen = append(s.seen, payload...)
	}
	_, rest, _ := bytes.Cut(s.seen, []byte(want))
	s.seen = append([]byte(nil), rest...)
}

// rest reads to the end.
func (s *shell) rest() (r result) {
	late := time.AfterFunc(time.Minute, func() { s.Detach() })
	defer late.Stop()
	for {
		kind, payload, err := s.frames.Next()
		switch {
		case err != nil:
			r.end = err
			return r
		case kind == protocol.FrameStdout:
			r.out = append(r.out, payload...)
		case kind == protocol.FrameStderr:
			r.err = append(r.err, payload...)
		case kind == protocol.FrameExit:
			r.end = protocol.Unmarshal(payload, &r.exit)
			s.Close()
			return r
		}
	}
}

var terminal = protocol.SessionOpen{Term: "xterm", Size: protocol.WindowSize{Cols: 80, Rows: 24}}

// TestASessionOutlivesItsConnections pushes bytes through a program both ways
// while its connections are cut at random, a thousand times at most: on a slow
// machine hardly anything gets through between two cuts.
func TestASessionOutlivesItsConnections(t *testing.T) {
	t.Parallel()
	b := newBox(t)
	in := make([]byte, 6<<20)
	_, _ = rand.NewChaCha8([32]byte{7}).Read(in) // never fails
	s := b.create(t, "usr_a", "", protocol.SessionOpen{Command: "cat; echo done >&2; exit 7"})
	stop := make(chan struct{})
	cuts := 0
	var wg sync.WaitGroup
	wg.Go(func() {
		for ; cuts < 1000; cuts++ {
			select {
			case <-stop:
				return
			case <-time.After(rand.N(8 * time.Millisecond)):
				s.cut()
			}
		}
	})
	go func() {
		for rest := in; len(rest) > 0; {
			n := min(len(rest), 1+rand.IntN(60_000))
			if protocol.WriteFrame(s, protocol.FrameStdin, rest[:n]) != nil {
				return
			}
			rest = rest[n:]
		}
		_ = protocol.WriteFrame(s, protocol.FrameEOF, nil) // the other end says what is missing
	}()
	r := s.rest()
	close(stop)
	wg.Wait()
	if sha256.Sum256(r.out) != sha256.Sum256(in) || string(r.err) != "done\n" || r.exit.Code != 7 || r.end != nil {
		t.Errorf("%d of %d bytes, stderr %q, exit %+v, %v", len(r.out), len(in), r.err, r.exit, r.end)
	}
	t.Logf("%d cuts", cuts)
}

// TestWhoComesBackFindsTheEnd: a program that ends while nobody is there keeps
// its last words and its status.
func TestWhoComesBackFindsTheEnd(t *testing.T) {
	t.Parallel()
	b := newBox(t)
	s := b.create(t, "usr_a", "", terminal)
	s.typed("echo re''ady; sleep 2; echo last words; echo >/tmp/said; exit 9\n")
	s.until("ready")
	s.set(true)
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if _, err := os.Stat(b.dir + "/root/tmp/said"); err == nil {
			break
		}
		if time.Now().After(end) {
			t.Fatal("the program does not go on alone")
		}
	}
	time.Sleep(time.Second) // nothing tells that nobody is told
	s.set(false)
	s.until("last words")
	if r := s.rest(); r.exit.Code != 9 || r.end != nil {
		t.Errorf("exit %+v, %v", r.exit, r.end)
	}
	if _, err := b.attach(t, attach(protocol.AttachJoin, s.a.Session, "usr_a")); err == nil || !strings.Contains(err.Error(), "no longer there") {
		t.Errorf("joined what is over: %v", err)
	}
}

// TestASessionIsKeptSoLong: without its owner for longer than it is kept, the
// program is hung up.
func TestASessionIsKeptSoLong(t *testing.T) {
	t.Parallel()
	b := newBox(t)
	a := attach(protocol.AttachCreate, "", "usr_a")
	a.Keep = 1
	s := b.mustAttach(t, a)
	if err := protocol.WriteDocument(s, protocol.FrameOpen, protocol.SessionOpen{Version: 1, Command: "trap 'echo hung up >/tmp/told; exit' HUP; echo ready; while sleep 0.05; do :; done"}); err != nil {
		t.Fatal(err)
	}
	s.until("ready")
	s.set(true)
	for start := time.Now(); len(b.sessions(t, "usr_a")) > 0; {
		if time.Since(start) > 30*time.Second {
			t.Fatal("the session is still there")
		}
	}
	if r := b.session(t, protocol.SessionOpen{Command: "cat /tmp/told"}, nil); string(r.out) != "hung up\n" {
		t.Errorf("the program was told %q", r.out)
	}
	s.set(false)
	if _, err := s.Read(make([]byte, 1)); err == nil || !strings.Contains(err.Error(), "no longer there") {
		t.Errorf("who comes back too late reads %v", err)
	}
}

// TestCloseHangsUp: who leaves for good ends the program at once.
func TestCloseHangsUp(t *testing.T) {
	t.Parallel()
	b := newBox(t)
	s := b.create(t, "usr_a", "", terminal)
	s.typed("echo re''ady; sleep 1000\n")
	s.until("ready")
	s.Close()
	for start := time.Now(); len(b.sessions(t, "usr_a")) > 0; {
		if time.Since(start) > 30*time.Second {
			t.Fatal("the session is still there")
		}
	}
}

// sessions asks for the sessions that user may see.
func (b *box) sessions(t *testing.T, user string) []protocol.LiveSession {
	t.Helper()
	c, answer := b.dial(t)
	if answer != "" {
		t.Fatal(answer)
	}
	if err := protocol.WriteDocument(c, protocol.FrameQuery, protocol.SessionQuery{Version: 1, User: user}); err != nil {
		t.Fatal(err)
	}
	kind, payload, err := protocol.NewFrameReader(c).Next()
	var list protocol.SessionList
	if err != nil || kind != protocol.FrameSessions || protocol.Unmarshal(payload, &list) != nil {
		t.Fatalf("frame %d, %v", kind, err)
	}
	c.Close()
	return list.Sessions
}

// TestTakingOver: the owner goes on at another terminal, which sees what was
// there without being asked old questions; the first one is told.
func TestTakingOver(t *testing.T) {
	t.Parallel()
	b := newBox(t)
	first := b.create(t, "usr_a", "", terminal)
	first.typed("stty -echo; printf 'before\\033[6nit'; echo re''ady\n")
	first.until("before\x1b[6nitready")
	second := b.mustAttach(t, attach(protocol.AttachJoin, first.a.Session, "usr_a"))
	second.until("beforeitready")
	if _, err := io.ReadAll(first); err == nil || !strings.Contains(err.Error(), "taken the session over") {
		t.Errorf("the first terminal reads %v", err)
	}
	if err := protocol.WriteDocument(second, protocol.FrameResize, protocol.WindowSize{Cols: 132, Rows: 43}); err != nil {
		t.Fatal(err)
	}
	second.typed("stty size; printf 'live\\033[6n\\n'\n")
	second.until("43 132")
	second.until("live\x1b[6n") // what is asked now is asked
	first.a.Op = protocol.AttachResume
	if _, err := b.attach(t, first.a); err == nil || !strings.Contains(err.Error(), "taken the session over") {
		t.Errorf("the first terminal is back: %v", err)
	}
	second.typed("exit 4\n")
	if r := second.rest(); r.exit.Code != 4 {
		t.Errorf("exit %+v, %v", r.exit, r.end)
	}
}

// TestTakingOverAFullOne: a terminal that nobody reads any more holds the
// program up until another takes over.
func TestTakingOverAFullOne(t *testing.T) {
	t.Parallel()
	b := newBox(t)
	first := b.create(t, "usr_a", "", terminal)
	first.typed("stty -echo; echo re''ady\n")
	first.until("ready")
	first.typed("yes aaaaaaaaaaaaaaa | head -n 400000; echo do''ne\n")
	first.until("aaaa")
	first.set(true)
	time.Sleep(500 * time.Millisecond) // until the window is full, or not yet: both are to work
	second := b.mustAttach(t, attach(protocol.AttachJoin, first.a.Session, "usr_a"))
	second.until("done")
}

func TestSharing(t *testing.T) {
	t.Parallel()
	b := newBox(t)
	owner := b.create(t, "usr_a", protocol.ShareWatch, terminal)
	owner.typed("stty -echo; echo re''ady\n")
	owner.until("ready")
	id := owner.a.Session

	watcher := b.mustAttach(t, attach(protocol.AttachJoin, id, "usr_b"))
	watcher.until("ready")
	watcher.typed("echo from the watcher\n")
	owner.typed("echo from the owner\n")
	watcher.until("from the owner")
	owner.until("from the owner")
	list := b.sessions(t, "usr_b")
	if len(list) != 1 || list[0].ID != id || list[0].Name != "usr_a@example.org" || !list[0].Attached || list[0].Others != 1 || list[0].Share != protocol.ShareWatch || list[0].Program != "login shell" {
		t.Errorf("sessions: %+v", list)
	}
	writer := attach(protocol.AttachJoin, id, "usr_c")
	writer.Mode = protocol.ModeWrite
	if _, err := b.attach(t, writer); err == nil || !strings.Contains(err.Error(), "lets others watch") {
		t.Errorf("types where others may watch: %v", err)
	}
	writer.Mode = protocol.ModeOwn
	if _, err := b.attach(t, writer); err == nil {
		t.Error("another user owns the session")
	}

	again := attach(protocol.AttachJoin, id, "usr_a") // from another terminal, and shares more
	again.Share = protocol.ShareWrite
	owner = b.mustAttach(t, again)
	writer.Mode = ""
	typist := b.mustAttach(t, writer)
	typist.typed("printf 'typed\\033[c\\n'\n")
	owner.until("typed\x1b[c")
	typist.until("typed\r\n")  // it must not answer
	watcher.until("typed\r\n") // as above
	watcher.cut()
	typist.cut()
	owner.typed("echo st''ill\n")
	watcher.until("still")
	typist.until("still")

	none := attach(protocol.AttachJoin, id, "usr_a")
	none.Share = protocol.ShareNone
	owner = b.mustAttach(t, none)
	for _, s := range []*shell{watcher, typist} {
		if _, err := io.ReadAll(s); err == nil || !strings.Contains(err.Error(), "no longer shares") {
			t.Errorf("reads %v after the end of sharing", err)
		}
	}
	if list := b.sessions(t, "usr_b"); len(list) != 0 {
		t.Errorf("another user sees %+v", list)
	}
	for what, a := range map[string]protocol.Attach{
		"joins":                 attach(protocol.AttachJoin, id, "usr_b"),
		"creates":               attach(protocol.AttachCreate, id, "usr_b"),
		"resumes":               watcher.a,
		"is the owner's client": {Version: 1, Session: id, Client: owner.a.Client, User: "usr_b", Op: protocol.AttachResume},
	} {
		if s, err := b.attach(t, a); err == nil || !strings.Contains(err.Error(), "does not share it") {
			t.Errorf("who may not %s: %v, %v", what, s, err)
		}
	}
}

// TestTheOwnerLeavesForGood: the program is hung up, and those who watch see
// its end at once.
func TestTheOwnerLeavesForGood(t *testing.T) {
	t.Parallel()
	b := newBox(t)
	owner := b.create(t, "usr_a", protocol.ShareWatch, terminal)
	owner.typed("echo re''ady\n")
	owner.until("ready")
	watcher := b.mustAttach(t, attach(protocol.AttachJoin, owner.a.Session, "usr_b"))
	watcher.until("ready")
	began := time.Now()
	owner.Close()
	if r := watcher.rest(); r.end != nil || r.exit.Signal != "HUP" {
		t.Errorf("the watcher sees exit %+v, %v", r.exit, r.end)
	}
	if waited := time.Since(began); waited > 10*time.Second {
		t.Errorf("the watcher waited %v", waited)
	}
}

// TestASlowWatcher misses output, is told so, and holds up nobody.
func TestASlowWatcher(t *testing.T) {
	t.Parallel()
	b := newBox(t)
	owner := b.create(t, "usr_a", protocol.ShareWatch, terminal)
	owner.typed("stty -echo; echo re''ady\n")
	owner.until("ready")
	watcher := b.mustAttach(t, attach(protocol.AttachJoin, owner.a.Session, "usr_b"))
	owner.typed("yes bbbbbbbbbbbbbbb | head -n 300000; echo do''ne\n")
	owner.until("done")
	watcher.until("output was skipped")
	watcher.until("done")
	owner.typed("exit 3\n")
	if r := watcher.rest(); r.exit.Code != 3 {
		t.Errorf("the watcher sees exit %+v, %v", r.exit, r.end)
	}
}

func TestAttachRefusals(t *testing.T) {
	t.Parallel()
	b := newBox(t)
	for op, want := range map[string]string{
		protocol.AttachJoin: "no longer there", protocol.AttachResume: "environment was restarted", "steal": "cannot be read",
	} {
		if _, err := b.attach(t, attach(op, "", "usr_a")); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", op, err)
		}
	}
	s := b.create(t, "usr_a", "", protocol.SessionOpen{Command: "id", User: "root"})
	if r := s.rest(); r.exit.Code != 2 || !strings.Contains(r.exit.Message, "own user") {
		t.Errorf("another user: %+v, %q", r.exit, r.out)
	}
	s = b.create(t, "usr_a", "", protocol.SessionOpen{Args: []string{"/none"}})
	if r := s.rest(); r.exit.Code != 127 {
		t.Errorf("no program: %+v", r.exit)
	}
	pipes := b.create(t, "usr_a", protocol.ShareWatch, protocol.SessionOpen{Command: "echo ready; cat"})
	pipes.until("ready")
	if _, err := b.attach(t, attach(protocol.AttachJoin, pipes.a.Session, "usr_a")); err == nil || !strings.Contains(err.Error(), "has no terminal") {
		t.Errorf("joined pipes: %v", err)
	}
}
