package recording

import (
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/pkg/sftp"

	"github.com/remotegpu/remotegpu/protocol/ahead"
)

// tap copies from one end to the other and shows what passes.
func tap(to io.WriteCloser, from io.Reader, show func([]byte)) {
	defer to.Close()
	buf := make([]byte, 1000) // packets come torn
	for {
		n, err := from.Read(buf)
		show(buf[:n])
		if _, werr := to.Write(buf[:n]); err != nil || werr != nil {
			return
		}
	}
}

// TestSFTPTellsWhatHappened: a real client and a real server.
func TestSFTPTellsWhatHappened(t *testing.T) {
	t.Parallel()
	var lines []string
	s := NewSFTP(func(line string) { lines = append(lines, line) })
	client, clientFar := net.Pipe()
	server, serverFar := net.Pipe()
	go tap(serverFar, clientFar, s.FromClient)
	go tap(clientFar, serverFar, s.FromServer)
	srv, err := sftp.NewServer(server)
	if err != nil {
		t.Fatal(err)
	}
	go srv.Serve()
	c, err := sftp.NewClientPipe(client, client)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	data := strings.Repeat("0123456789", 50_000)
	steps(t, c, dir, data)
	c.Close()
	s.Close()
	got := strings.ReplaceAll(strings.Join(lines, "\n"), dir, "DIR")
	want := `put "DIR/a", 500000 bytes
get "DIR/a", 500000 bytes
get "DIR/none": refused
put "DIR/empty", 0 bytes
mkdir "DIR/d"
rename "DIR/a" "DIR/b"
rename "DIR/b" "DIR/c"
symlink "DIR/c" "DIR/l"
remove "DIR/c"
remove "DIR/none": refused
rmdir "DIR/none": refused`
	if got != want {
		t.Errorf("told:\n%s\nwant:\n%s", got, want)
	}
}

func steps(t *testing.T, c *sftp.Client, dir, data string) {
	t.Helper()
	f, err := c.Create(filepath.Join(dir, "a"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.ReadFrom(strings.NewReader(data)); err != nil {
		t.Fatal(err)
	}
	f.Close()
	f, err = c.Open(filepath.Join(dir, "a"))
	if err != nil {
		t.Fatal(err)
	}
	if n, err := io.Copy(io.Discard, f); n != int64(len(data)) || err != nil {
		t.Fatal(n, err)
	}
	f.Close()
	if _, err := c.Open(filepath.Join(dir, "none")); !os.IsNotExist(err) {
		t.Fatal(err)
	}
	f, err = c.Create(filepath.Join(dir, "empty"))
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
	for _, err := range []error{
		c.Mkdir(dir + "/d"), c.Rename(dir+"/a", dir+"/b"), c.PosixRename(dir+"/b", dir+"/c"),
		c.Symlink(dir+"/c", dir+"/l"), c.Remove(dir + "/c"),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	_ = c.Remove(dir + "/none")
}

// TestSFTPTellsWhatIsReadAhead: what package ahead says in other words is told as
// well, or a client that says it itself could hide it.
func TestSFTPTellsWhatIsReadAhead(t *testing.T) {
	t.Parallel()
	var lines []string
	s := NewSFTP(func(line string) { lines = append(lines, line) })
	open := func(path string, flags byte) []byte {
		return append(sftpPacket(sftpOpen, 1, path), 0, 0, 0, flags, 0, 0, 0, 0)
	}
	whole := func(p []byte) []byte { binary.BigEndian.PutUint32(p, uint32(len(p)-4)); return p }
	s.FromClient(whole(open("read", 1)))
	s.FromServer(whole(sftpPacket(ahead.TypeData, 1, "content")))
	s.FromServer(whole(sftpPacket(sftpHandle, 1, "h")))
	s.FromClient(whole(sftpPacket(ahead.TypeQuietClose, 2, "h")))
	s.FromClient(whole(open("written", 2)))
	s.FromServer(whole(sftpPacket(sftpHandle, 1, "h")))
	s.FromClient(whole(append(sftpPacket(ahead.TypeQuietWrite, 3, "h"), 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 3, 'n', 'e', 'w')))
	s.FromClient(whole(sftpPacket(sftpClose, 4, "h")))
	s.FromServer(whole(append(sftpPacket(sftpStatus, 4), 0, 0, 0, 0)))
	for code, path := range []string{"beside", "elsewhere"} {
		s.FromClient(whole(append(sftpPacket(ahead.TypeQuietOpen, 5, "ahead-1"), open(path, 26)[9:]...)))
		s.FromClient(whole(append(sftpPacket(ahead.TypeQuietWrite, 6, "ahead-1"), 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 'm', 'e')))
		s.FromClient(whole(sftpPacket(sftpClose, 7, "ahead-1")))
		s.FromServer(whole(append(sftpPacket(sftpStatus, 7), 0, 0, 0, byte(code))))
	}
	got := strings.Join(lines, "\n")
	want := `get "read", 7 bytes
put "written", 3 bytes
put "beside", 2 bytes
put "elsewhere", 2 bytes: refused`
	if got != want {
		t.Errorf("told:\n%s\nwant:\n%s", got, want)
	}
	s.check(t)
}

// TestSFTPHandlesNobodyGave: the host knows a file that was opened ahead by a second
// name, which nobody has said but which can be guessed.
func TestSFTPHandlesNobodyGave(t *testing.T) {
	t.Parallel()
	var lines []string
	s := NewSFTP(func(line string) { lines = append(lines, line) })
	whole := func(p []byte) []byte { binary.BigEndian.PutUint32(p, uint32(len(p)-4)); return p }
	s.FromClient(whole(append(sftpPacket(ahead.TypeQuietOpen, 1, "ahead-1", "secret"), 0, 0, 0, 26, 0, 0, 0, 0)))
	s.FromClient(whole(append(sftpPacket(sftpWrite, 2, "1"), 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 3, 'n', 'e', 'w')))
	s.FromServer(whole(append(sftpPacket(sftpStatus, 2), 0, 0, 0, 0)))
	s.FromClient(sftpPacket(sftpClose, 3, "ahead-1"))
	s.FromServer(whole(append(sftpPacket(sftpStatus, 3), 0, 0, 0, 0)))
	s.Close()
	if got, want := strings.Join(lines, "\n"), "put \"secret\", 0 bytes\nof files that nobody was seen to open: 0 bytes read, 3 written"; got != want {
		t.Errorf("told:\n%s\nwant:\n%s", got, want)
	}
	s.check(t)
}

// TestSFTPSameID: an id that a client uses twice hides nothing.
func TestSFTPSameID(t *testing.T) {
	t.Parallel()
	const stat, attributes = 17, 105
	var lines []string
	s := NewSFTP(func(line string) { lines = append(lines, line) })
	s.FromClient(sftpPacket(stat, 7, "/"))
	s.FromClient(sftpPacket(sftpOpen, 7, "secret", "\x00\x00\x00\x00"))
	s.FromServer(sftpPacket(attributes, 7))
	s.FromServer(sftpPacket(ahead.TypeData, 7, "content"))
	s.FromServer(sftpPacket(sftpHandle, 7, "1"))
	s.FromClient(sftpPacket(stat, 7, "/"))
	s.FromClient(sftpPacket(sftpClose, 7, "1"))
	s.FromClient(sftpPacket(stat, 7, "/none"))
	s.FromClient(sftpPacket(sftpRemove, 7, "secret"))
	s.FromServer(sftpPacket(ahead.TypeFailed, 7, "2", "\x00\x00\x00\x04"))
	s.FromServer(sftpPacket(attributes, 7))
	for _, code := range []byte{0, 2, 0} {
		p := append(sftpPacket(sftpStatus, 7), 0, 0, 0, code)
		binary.BigEndian.PutUint32(p, uint32(len(p)-4))
		s.FromServer(p)
	}
	if got, want := strings.Join(lines, "\n"), "get \"secret\", 7 bytes\nremove \"secret\""; got != want {
		t.Errorf("told:\n%s\nwant:\n%s", got, want)
	}
	s.check(t)
}

func FuzzSFTP(f *testing.F) {
	open := append(binary.BigEndian.AppendUint32(nil, 18), 3, 0, 0, 0, 1, 0, 0, 0, 1, 'a', 0, 0, 0, 26, 0, 0, 0, 0)
	f.Add(open, []byte{0, 0, 0, 10, 102, 0, 0, 0, 1, 0, 0, 0, 1, 'h'})
	f.Add(append(open, open...), []byte{})
	f.Add([]byte{0, 0, 0, 0}, []byte{255, 255, 255, 255, 1})
	f.Fuzz(func(t *testing.T, up, down []byte) {
		told := 0
		s := NewSFTP(func(line string) {
			told++
			if strings.ContainsAny(line, "\r\n\x1b") {
				t.Errorf("a line that a terminal would act on: %q", line)
			}
		})
		for len(up) > 0 || len(down) > 0 {
			n, m := min(3, len(up)), min(3, len(down))
			s.FromClient(up[:n])
			s.FromServer(down[:m])
			up, down = up[n:], down[m:]
			s.check(t)
		}
		s.Close()
		s.check(t)
	})
}

// check compares what is kept with the count of it.
func (s *SFTP) check(t *testing.T) {
	size := 0
	for _, same := range s.asked {
		for _, r := range same {
			size += r.size()
		}
	}
	for handle, f := range s.files {
		size += f.size(handle)
	}
	if size != s.kept || s.kept > maxKept || len(s.up.head) > sftpHead+4 || len(s.down.head) > sftpHead+4 {
		t.Errorf("it keeps %d bytes, counts %d, and may keep %d; heads of %d and %d bytes", size, s.kept, maxKept, len(s.up.head), len(s.down.head))
	}
}

// sftpPacket is one of a kind with an id and texts.
func sftpPacket(kind byte, id uint32, texts ...string) []byte {
	body := binary.BigEndian.AppendUint32([]byte{kind}, id)
	for _, text := range texts {
		body = append(binary.BigEndian.AppendUint32(body, uint32(len(text))), text...)
	}
	return append(binary.BigEndian.AppendUint32(nil, uint32(len(body))), body...)
}

// TestSFTPKeepsLittle: a client that asks for much at a time, and a server that
// grants it, take no memory, and every file is told of.
func TestSFTPKeepsLittle(t *testing.T) {
	const files = 2_000
	told := map[string]int{}
	s := NewSFTP(func(line string) {
		_, path, _ := strings.Cut(line, `"f`)
		number, _, _ := strings.Cut(path, `\`)
		told[strings.Clone(number)]++
	})
	heap := func() uint64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	began := heap()
	long := strings.Repeat("\x01", maxPath-8) // quoted, each is four
	flags := string(make([]byte, 8))
	for i := range uint32(files) {
		name := fmt.Sprint("f", i)
		open := sftpPacket(sftpOpen, i, name+long, flags)
		s.FromClient(open)
		s.FromClient(sftpPacket(sftpRemove, files+i, name+long))
		if i%2 == 0 {
			s.FromServer(sftpPacket(sftpHandle, i, fmt.Sprint(i)+strings.Repeat("h", 200)))
		}
	}
	if grown := int64(heap()) - int64(began); grown > 8<<20 {
		t.Errorf("it holds %d KiB", grown>>10)
	}
	s.check(t)
	s.Close()
	s.check(t)
	for i := range files {
		if n := told[fmt.Sprint(i)]; n < 1 {
			t.Fatalf("of file %d nothing was told", i)
		}
	}
}
