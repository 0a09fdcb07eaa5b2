package ahead

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"

	"github.com/pkg/sftp"

	"github.com/remotegpu/remotegpu/protocol"
)

// pair is a client of SFTP, a gateway, the host's end and a server.
type pair struct {
	*sftp.Client
	requests atomic.Int32 // writes of the gateway to the host
	answers  atomic.Int32
}

// answers writes whole messages.
type answers struct {
	io.WriteCloser
	host  *Host
	begun []byte
}

func (a *answers) Write(p []byte) (int, error) {
	a.begun = append(a.begun, p...)
	if len(a.begun) < 4 || len(a.begun) < 4+int(binary.BigEndian.Uint32(a.begun)) {
		return len(p), nil
	}
	m := a.host.Answer(a.begun)
	a.begun = nil
	if len(m) > 0 {
		if _, err := a.WriteCloser.Write(m); err != nil {
			return 0, err
		}
	}
	return len(p), nil
}

// served is both directions of a server.
type served struct {
	io.Reader
	io.WriteCloser
}

// newPair lays the lines between; without a gateway the client has the host's
// end itself.
func newPair(t *testing.T, gateway bool) *pair {
	t.Helper()
	return newPairOf(t, gateway, true)
}

func newPairOf(t *testing.T, gateway, checks bool) *pair {
	t.Helper()
	p := &pair{}
	near := p.lay(t, gateway, checks)
	var err error
	if p.Client, err = sftp.NewClientPipe(near, near, sftp.MaxPacket(32<<10)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Client.Close() })
	return p
}

// lay returns the client's end of the line.
func (p *pair) lay(t *testing.T, gateway, checks bool) net.Conn {
	t.Helper()
	near, nearFar := net.Pipe()
	far, farNear := net.Pipe()
	host := NewHost(far)
	srv, err := sftp.NewServer(served{host, &answers{WriteCloser: far, host: host}})
	if err != nil {
		t.Fatal(err)
	}
	go func() { _ = srv.Serve(); host.Close(); far.Close() }()
	toHost := func(b []byte) error {
		p.requests.Add(1)
		_, err := farNear.Write(b[protocol.FrameRoom:])
		return err
	}
	toClient := func(b []byte) error { _, err := nearFar.Write(b); return err }
	g := NewGateway(toHost, toClient, checks)
	fromClient, fromHost, end := g.FromClient, g.FromHost, g.End
	if !gateway {
		fromClient = func(b []byte) error { return toHost(append(make([]byte, protocol.FrameRoom), b...)) }
		fromHost, end = toClient, func() error { return nil }
	}
	pump := func(from net.Conn, size int, take func([]byte) error, done func()) {
		buf := make([]byte, size)
		for {
			n, err := from.Read(buf)
			if n > 0 && take(buf[:n]) != nil || err != nil {
				done()
				return
			}
		}
	}
	go pump(nearFar, 1000, fromClient, func() { _ = end(); farNear.Close() })
	go pump(farNear, 700, func(b []byte) error { p.answers.Add(1); return fromHost(b) }, func() { nearFar.Close() })
	t.Cleanup(func() { near.Close() })
	return near
}

// TestFilesAreTheSame: what is written is there after the close, and what is
// read is what was there, of every size around the limits.
func TestFilesAreTheSame(t *testing.T) {
	dir := t.TempDir()
	for _, gateway := range []bool{true, false} {
		p := newPair(t, gateway)
		for _, size := range []int{0, 1, 4096, mostData - 1, mostData, mostData + 1, most, 32 << 10, 32<<10 + 1, 300_000} {
			path, want := filepath.Join(dir, fmt.Sprint(gateway, size)), bytes.Repeat([]byte(fmt.Sprint(size, " ")), size/3+1)[:size]
			f, err := p.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC)
			if err != nil {
				t.Fatal(err)
			}
			if n, err := f.Write(want); n != size || err != nil {
				t.Fatalf("%d of %d bytes were written: %v", n, size, err)
			}
			if err := f.Close(); err != nil {
				t.Fatal(err)
			}
			if got, err := os.ReadFile(path); !bytes.Equal(got, want) {
				t.Errorf("gateway %v: after the close of %d bytes there are %d: %v", gateway, size, len(got), err)
			}
			r, err := p.Open(path)
			if err != nil {
				t.Fatal(err)
			}
			got, err := io.ReadAll(r)
			if !bytes.Equal(got, want) || err != nil {
				t.Errorf("gateway %v: of %d bytes %d are read: %v", gateway, size, len(got), err)
			}
			if err := r.Close(); err != nil {
				t.Error(err)
			}
		}
	}
}

// TestErrors: a write that fails is told at the close at the latest, of its file
// alone when it is alone, and an open that fails at once.
func TestErrors(t *testing.T) {
	p := newPair(t, true)
	dir := t.TempDir()
	full := filepath.Join(dir, "full")
	if err := os.Symlink("/dev/full", full); err != nil {
		t.Fatal(err)
	}
	if _, err := p.Open(filepath.Join(dir, "none")); !os.IsNotExist(err) {
		t.Errorf("open of nothing: %v", err)
	}
	for range 3 {
		f, err := p.OpenFile(full, os.O_WRONLY)
		if err != nil {
			t.Fatal(err)
		}
		_, write := f.Write([]byte("lost"))
		if shut := f.Close(); shut == nil && write == nil {
			t.Error("a file on a full disk is said to be stored")
		} else if !strings.Contains(fmt.Sprint(write, shut), "no space left") {
			t.Errorf("write %v, close %v", write, shut)
		}
		g, err := p.OpenFile(filepath.Join(dir, "good"), os.O_WRONLY|os.O_CREATE)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := g.Write([]byte("kept")); err != nil {
			t.Error(err)
		}
		if err := g.Close(); err != nil {
			t.Errorf("the file after one that failed: %v", err)
		}
	}
	f, err := p.OpenFile(full, os.O_WRONLY)
	if err != nil {
		t.Fatal(err)
	}
	_, write := f.Write([]byte("lost"))
	if err := f.Sync(); err == nil && write == nil {
		t.Error("a file on a full disk is said to be on it")
	}
	if f.Close() == nil && write == nil {
		t.Error("and then to be stored")
	}
}

// TestLess: a small file takes what it says, as sftp writes it and as scp does.
// Time is synctest's: a client that the machine holds up for keepFor takes more.
func TestLess(t *testing.T) { synctest.Test(t, less) }

func less(t *testing.T) {
	p := newPair(t, true)
	dir := t.TempDir()
	const files = 50
	put := func(i, flags int) {
		f, err := p.OpenFile(filepath.Join(dir, fmt.Sprint(i)), os.O_WRONLY|os.O_CREATE|flags)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.Write([]byte("small")); err != nil {
			t.Error(err)
		}
		if flags == 0 {
			if err := f.Truncate(5); err != nil {
				t.Error(err)
			}
		}
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	}
	for _, flags := range []int{os.O_TRUNC, 0} {
		before, asked := p.answers.Load(), p.requests.Load()
		for i := range files {
			put(i, flags)
		}
		if n, m := p.answers.Load()-before, p.requests.Load()-asked; n > files+2 || m > files+2 { // the first is opened by itself
			t.Errorf("flags %d: the host was written to %d times and answered %d for %d files, want once each", flags, m, n, files)
		}
	}
	before := p.answers.Load()
	for i := range files {
		f, err := p.Open(filepath.Join(dir, fmt.Sprint(i)))
		if err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, 100)
		if n, err := f.ReadAt(buf, 0); n != 5 || err != io.EOF {
			t.Errorf("%d bytes: %v", n, err)
		}
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	}
	if n := p.answers.Load() - before; n > files {
		t.Errorf("the host answered %d times to %d files that were read, want once each", n, files)
	}
}

// TestOpenedAhead: a new file beside one that was written just so is opened with
// its first write; what fails is told at the close, and the next open at once again.
// Time is synctest's, for the failure is told before when the close comes late.
func TestOpenedAhead(t *testing.T) { synctest.Test(t, openedAhead) }

func openedAhead(t *testing.T) {
	p := newPair(t, true)
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "folder"), 0o700); err != nil {
		t.Fatal(err)
	}
	put := func(name, text string) error {
		f, err := p.OpenFile(filepath.Join(dir, name), os.O_WRONLY|os.O_CREATE|os.O_TRUNC)
		if err != nil {
			return fmt.Errorf("open: %w", err)
		}
		for part := range slices.Chunk([]byte(text), 20_000) {
			if _, err := f.Write(part); err != nil {
				f.Close()
				return fmt.Errorf("write: %w", err)
			}
		}
		if err := f.Close(); err != nil {
			return fmt.Errorf("close: %w", err)
		}
		return nil
	}
	long := strings.Repeat("0123456789", 30_000)
	steps := []struct{ name, text, fails string }{
		{"a", "first", ""},
		{"b", "second", ""},
		{"folder", "third", "close: "}, // it was opened ahead
		{"folder", "third", "open: "},
		{"a", "anew", ""},
		{"c", long, ""},
		{"d", "", ""},
		{"e", long[:20_000], ""},
		{"folder", long, "write: "},
		{"folder", long, "open: "},
		{"e", "", ""},
	}
	for i, s := range steps {
		err := put(s.name, s.text)
		if s.fails == "" && err != nil || s.fails != "" && (err == nil || !strings.HasPrefix(err.Error(), s.fails) || !strings.Contains(err.Error(), "is a directory")) {
			t.Fatalf("step %d, %s: %v, want %q", i, s.name, err, s.fails)
		}
		if got, err := os.ReadFile(filepath.Join(dir, s.name)); s.fails == "" && (string(got) != s.text || err != nil) {
			t.Fatalf("step %d, %s: %d bytes, want %d: %v", i, s.name, len(got), len(s.text), err)
		}
	}
	for range 100 { // what is cut behind a write is cut, and what is asked behind it sees it
		g, err := p.OpenFile(filepath.Join(dir, "e"), os.O_WRONLY|os.O_CREATE)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := g.Write([]byte("longer")); err != nil {
			t.Error(err)
		}
		if st, err := g.Stat(); err != nil || st.Size() != 6 {
			t.Fatalf("behind the write: %v, %v", st, err)
		}
		if err := g.Close(); err != nil {
			t.Error(err)
		}
		if g, err = p.OpenFile(filepath.Join(dir, "e"), os.O_WRONLY|os.O_CREATE); err != nil {
			t.Fatal(err)
		}
		if _, err := g.Write([]byte("longer")); err != nil {
			t.Error(err)
		}
		if err := g.Truncate(4); err != nil {
			t.Error(err)
		}
		if err := g.Close(); err != nil {
			t.Error(err)
		}
		if got, err := os.ReadFile(filepath.Join(dir, "e")); string(got) != "long" || err != nil {
			t.Fatalf("cut: %q, %v", got, err)
		}
	}
	f, err := p.OpenFile(filepath.Join(dir, "f"), os.O_WRONLY|os.O_CREATE|os.O_TRUNC)
	if err != nil {
		t.Fatal(err)
	}
	if st, err := f.Stat(); err != nil || st.Size() != 0 {
		t.Errorf("one that was opened ahead: %v, %v", st, err)
	}
	if err := f.Truncate(7); err != nil {
		t.Error(err)
	}
	if st, err := p.Stat(filepath.Join(dir, "f")); err != nil || st.Size() != 7 {
		t.Errorf("and cut: %v, %v", st, err)
	}
	if err := f.Close(); err != nil {
		t.Error(err)
	}
}

// TestWhoDoesNotCheck: a client that may not look at what a close says hears of a
// failure before, and so does one that asks for something else with its open.
func TestWhoDoesNotCheck(t *testing.T) {
	p := newPairOf(t, true, false)
	dir := t.TempDir()
	if err := os.Symlink("/dev/full", filepath.Join(dir, "full")); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"a", "b", "full"} {
		f, err := p.OpenFile(filepath.Join(dir, name), os.O_WRONLY|os.O_CREATE|os.O_TRUNC)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.Write([]byte("small")); (err != nil) != (name == "full") {
			t.Errorf("write of %s: %v", name, err)
		}
		if err := f.Close(); err != nil {
			t.Errorf("close of %s: %v", name, err)
		}
	}
	var host, client []byte
	g := NewGateway(func(b []byte) error { host = append(host, b[protocol.FrameRoom:]...); return nil },
		func(b []byte) error { client = append(client, b...); return nil }, true)
	g.on = true
	open := message(typeOpen, 1, text("/full"), number(flagWrite|flagCreate), number(0))
	stat := message(17, 2, text("/full")) // as sshfs does
	write := message(typeWrite, 3, text("h"), make([]byte, 8), text("data"))
	attributes := message(105, 2, number(0))
	handle := message(typeHandle, 1, text("h"))
	if err := errors.Join(g.FromClient(append(open, stat...)), g.FromHost(append(handle, attributes...)), g.FromClient(write)); err != nil {
		t.Fatal(err)
	}
	if want := slices.Concat(message(typeOpen, 1, text("/full"), number(flagWrite|flagCreate), number(0)), stat, write); !bytes.Equal(host, want) {
		t.Errorf("the host got %q, want %q", host, want)
	}
	if want := slices.Concat(handle, attributes); !bytes.Equal(client, want) {
		t.Errorf("the client got %q, want %q", client, want)
	}
}

// TestBlame: a file that fails has no part in what is told of another.
func TestBlame(t *testing.T) {
	p := newPair(t, true)
	dir := t.TempDir()
	if err := os.Symlink("/dev/full", filepath.Join(dir, "full")); err != nil {
		t.Fatal(err)
	}
	var files []*sftp.File
	for _, name := range []string{"log", "full"} {
		f, err := p.OpenFile(filepath.Join(dir, name), os.O_WRONLY|os.O_CREATE)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.Write([]byte("small")); err != nil {
			t.Fatal(err)
		}
		files = append(files, f)
	}
	if err := p.PosixRename(filepath.Join(dir, "log"), filepath.Join(dir, "log.1")); err != nil {
		t.Errorf("a rename beside a file that failed: %v", err)
	}
	if err := files[0].Close(); err != nil {
		t.Errorf("the close of another: %v", err)
	}
	if err := files[1].Close(); err == nil || !strings.Contains(err.Error(), "no space left") {
		t.Errorf("and its own: %v", err)
	}
}

// TestKeepsLittle: a client that never waits for anybody is not kept in memory.
func TestKeepsLittle(t *testing.T) {
	g := NewGateway(func([]byte) error { return nil }, func([]byte) error { return nil }, true)
	g.on, g.folder = true, "/"
	data := text(strings.Repeat("x", mostData-100))
	for i := range uint32(10_000) {
		handle := text(virtualPrefix + strconv.FormatUint(uint64(i+1), 36))
		m := append(message(typeOpen, i, text("/a"), number(flagWrite|flagCreate), number(0)), message(typeWrite, i, handle, make([]byte, 8), data)...)
		if err := g.FromClient(m); err != nil {
			t.Fatal(err)
		}
	}
	if cap(g.out) > 1<<20 || len(g.early) > maxFiles || len(g.opens) > maxFiles {
		t.Errorf("it keeps %d KiB, %d files and %d opens", cap(g.out)>>10, len(g.early), len(g.opens))
	}
}

// TestStale: who writes beside it or waits reads what is there.
func TestStale(t *testing.T) {
	p := newPair(t, true)
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, []byte("old"), 0o600); err != nil {
		t.Fatal(err)
	}
	r, err := p.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	w, err := p.OpenFile(path, os.O_WRONLY)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write([]byte("new")); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(r); string(got) != "new" || err != nil {
		t.Errorf("after a write of the same client: %q, %v", got, err)
	}
}

// FuzzBetween plays hostile ends: neither may make the other fall.
func FuzzBetween(f *testing.F) {
	f.Add([]byte("\x00\x00\x00\x05\x01\x00\x00\x00\x03"), []byte("\x00\x00\x00\x05\x02\x00\x00\x00\x03"))
	f.Add(extended(message(typeInit, 3)), extended(message(typeVersion, 3)))
	f.Add(message(typeOpen, 1, text("a"), number(1)), append(message(TypeData, 1, text("data")), message(typeHandle, 1, text("h"))...))
	opened := message(TypeQuietOpen, 1, text("ahead-1"), text("a"), number(flagWrite|flagCreate), number(0))
	f.Add(append(opened, message(TypeQuietWrite, 2, text("ahead-1"), make([]byte, 8), text("data"))...), message(typeStatus, 1, number(4)))
	f.Add(append(opened, message(typeClose, 2, text("ahead-1"))...), message(typeHandle, 1, text("0")))
	f.Fuzz(func(t *testing.T, client, server []byte) {
		var out []byte
		g := NewGateway(func(b []byte) error { out = append(out, b[protocol.FrameRoom:]...); return nil }, func([]byte) error { return nil }, true)
		g.on = true
		for _, n := range []int{1, 7, 1 << 20} {
			_ = g.FromClient(bytes.Clone(client[:min(n, len(client))]))
			_ = g.FromHost(bytes.Clone(server[:min(n, len(server))]))
		}
		_ = g.End()
		h := NewHost(bytes.NewReader(append(extended(message(typeInit, 3)), client...)))
		h.Close() // nobody answers what it waits for
		_, _ = io.Copy(io.Discard, h)
		_ = h.Answer(bytes.Clone(server))
	})
}
