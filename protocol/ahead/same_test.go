package ahead

import (
	"encoding/binary"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// twins are a client with a gateway and one without, who do the same, each in a
// folder of its own.
type twins struct {
	t    *testing.T
	rnd  *rand.Rand
	ends [2]net.Conn
	dirs [2]string
	id   uint32
	log  []string
	open [][2]string // handles
}

// TestSameAsWithout: whatever a client does that has the right to it, it gets the
// answers that it gets without a gateway, and leaves the same files.
func TestSameAsWithout(t *testing.T) {
	t.Parallel()
	for seed := range uint64(20) {
		w := &twins{t: t, rnd: rand.New(rand.NewPCG(seed, 0)), log: []string{fmt.Sprint("seed ", seed)}}
		for i := range w.ends {
			w.ends[i], w.dirs[i] = (&pair{}).lay(t, i == 0, true), t.TempDir()
		}
		w.ask("init", typeInit, nil)
		for range 100 {
			w.step()
		}
		for len(w.open) > 0 {
			w.close()
		}
		if with, without := w.files(0), w.files(1); !maps.Equal(with, without) {
			t.Fatalf("%s\nthere are %v, without %v", strings.Join(w.log, "\n"), slices.Sorted(maps.Keys(with)), slices.Sorted(maps.Keys(without)))
		}
	}
}

// TestRenameKeeps: a rename takes nobody's place, as the draft and OpenSSH's server
// have it; posix-rename does.
func TestRenameKeeps(t *testing.T) {
	t.Parallel()
	for _, gateway := range []bool{true, false} {
		p, dir := newPair(t, gateway), t.TempDir()
		for _, name := range []string{"old", "kept"} {
			if err := os.WriteFile(filepath.Join(dir, name), []byte(name), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if err := p.Rename(filepath.Join(dir, "old"), filepath.Join(dir, "kept")); err == nil {
			t.Error("a rename to what is there is said to be done")
		}
		if b, err := os.ReadFile(filepath.Join(dir, "kept")); string(b) != "kept" || err != nil {
			t.Errorf("gateway %v: there is %q, %v", gateway, b, err)
		}
		if err := p.Rename(filepath.Join(dir, "old"), filepath.Join(dir, "new")); err != nil {
			t.Error(err)
		}
		if err := p.PosixRename(filepath.Join(dir, "new"), filepath.Join(dir, "kept")); err != nil {
			t.Error(err)
		}
		if b, err := os.ReadFile(filepath.Join(dir, "kept")); string(b) != "old" || err != nil {
			t.Errorf("gateway %v: then there is %q, %v", gateway, b, err)
		}
	}
}

// TestRemovesOfItsKind: no file goes by what removes folders, nor the other way round.
func TestRemovesOfItsKind(t *testing.T) {
	t.Parallel()
	end, dir := (&pair{}).lay(t, false, true), t.TempDir()
	w := &twins{t: t, ends: [2]net.Conn{end, (&pair{}).lay(t, true, true)}}
	file, folder := filepath.Join(dir, "file"), filepath.Join(dir, "folder")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(folder, 0o700); err != nil {
		t.Fatal(err)
	}
	w.ask("init", typeInit, nil)
	for _, wrong := range []struct {
		kind byte
		path string
	}{{typeRemove, folder}, {typeRmdir, file}} {
		if m := w.ask("removal", wrong.kind, func(int) []byte { return text(wrong.path) })[0]; isOK(m) {
			t.Errorf("%d of %s is said to be done", wrong.kind, wrong.path)
		}
		if _, err := os.Stat(wrong.path); err != nil {
			t.Error(err)
		}
	}
	for kind, path := range map[byte]string{typeRemove: file, typeRmdir: folder} {
		if _, err := end.Write(message(kind, 9, text(path))); err != nil {
			t.Fatal(err)
		}
		answer := make([]byte, 4)
		if _, err := io.ReadFull(end, answer); err != nil {
			t.Fatal(err)
		}
		answer = append(answer, make([]byte, binary.BigEndian.Uint32(answer))...)
		if _, err := io.ReadFull(end, answer[4:]); err != nil || !isOK(answer) {
			t.Errorf("%d of %s: %q, %v", kind, path, answer, err)
		}
	}
}

// TestOrder: what is asked for without waiting is as if it had been waited for, of
// bytes that overlap and of what else a file has; sshfs relies on that.
func TestOrder(t *testing.T) {
	t.Parallel()
	for _, gateway := range []bool{true, false} {
		end, path := (&pair{}).lay(t, gateway, true), filepath.Join(t.TempDir(), "file")
		_ = end.SetDeadline(time.Now().Add(20 * time.Second))
		asked := func(all ...[]byte) (answers [][]byte) {
			written := make(chan error, 1)
			go func() { _, err := end.Write(slices.Concat(all...)); written <- err }()
			for range all {
				m := make([]byte, 4)
				if _, err := io.ReadFull(end, m); err != nil {
					t.Fatal(err)
				}
				m = append(m, make([]byte, binary.BigEndian.Uint32(m))...)
				if _, err := io.ReadFull(end, m[4:]); err != nil {
					t.Fatal(err)
				}
				answers = append(answers, m)
			}
			if err := <-written; err != nil {
				t.Fatal(err)
			}
			return answers
		}
		asked(message(typeInit, 3))
		h := text(fieldsOf(asked(message(typeOpen, 1, text(path), number(flagRead|flagWrite|flagCreate), number(0)))[0]).text())
		begin := make([]byte, 8)
		for round := range 100 {
			all := asked(
				message(typeWrite, 2, h, begin, text(strings.Repeat("a", 32<<10))),
				message(typeWrite, 3, h, begin, text("newer")),
				message(typeRead, 4, h, begin, number(5)),
				message(typeFstat, 5, h),
				message(typeFsetstat, 6, h, number(attributeSize), begin),
				message(typeWrite, 7, h, begin, text("last")),
				message(typeRead, 8, h, begin, number(9)),
				message(typeFsetstat, 9, h, number(attributeSize), begin),
			)
			attributes := fieldsOf(all[3])
			attributes.number()
			if newer, size, last := fieldsOf(all[2]).text(), attributes.long(), fieldsOf(all[6]).text(); newer != "newer" || size != 32<<10 || last != "last" {
				t.Fatalf("gateway %v, round %d: %q is read, then it has %d bytes, then %q is read", gateway, round, newer, size, last)
			}
		}
	}
}

// step does something that a client may do next.
func (w *twins) step() {
	name := []string{"a", "b", "c", "folder/a", "folder/b"}[w.rnd.IntN(5)]
	at := func(i int) []byte { return text(filepath.Join(w.dirs[i], name)) }
	attributes := append(number(4), number(0o640)...)
	switch n := w.rnd.IntN(10); {
	case n < 3: // all of a file, as OpenSSH's programs do
		flags := []uint32{flagWrite | flagCreate, flagWrite | flagCreate | flagTruncate, flagRead}[n]
		if !w.opens(name, flags) {
			return
		}
		size := w.rnd.IntN(20_000)
		if flags == flagRead {
			for range 3 {
				w.move(typeRead, len(w.open)-1, uint64(size)*3/2, size)
			}
		} else if w.move(typeWrite, len(w.open)-1, 0, size); flags&flagTruncate == 0 {
			w.cut(len(w.open)-1, uint64(size))
		}
		w.close()
	case n < 4:
		w.opens(name, []uint32{flagRead, flagWrite, flagRead | flagWrite, flagWrite | flagCreate, flagWrite | flagCreate | flagTruncate}[w.rnd.IntN(5)])
	case n < 8 && len(w.open) > 0:
		i := w.rnd.IntN(len(w.open))
		switch w.rnd.IntN(6) {
		case 0:
			w.ask("fstat", typeFstat, func(end int) []byte { return text(w.open[i][end]) })
		case 1:
			w.ask("chmod", typeFsetstat, func(end int) []byte { return append(text(w.open[i][end]), attributes...) })
		case 2:
			w.cut(i, uint64(w.rnd.IntN(10_000)))
		case 3:
			w.move(typeRead, i, uint64(w.rnd.IntN(3))*5_000, w.rnd.IntN(40_000))
		case 4:
			w.move(typeWrite, i, uint64(w.rnd.IntN(3))*5_000, w.rnd.IntN(40_000))
		case 5:
			w.close()
		}
	case n < 9:
		const mkdir, stat = 14, 17
		switch w.rnd.IntN(4) {
		case 0:
			w.ask("mkdir", mkdir, func(end int) []byte { return append(text(filepath.Join(w.dirs[end], "folder")), attributes...) })
		case 1:
			w.ask("stat "+name, stat, at)
		case 2:
			w.ask("rename "+name, typeRename, func(end int) []byte { return append(at(end), text(filepath.Join(w.dirs[end], "b"))...) })
		case 3:
			w.ask("remove "+name, typeRemove, at)
		}
	default:
		time.Sleep(2 * keepFor)
	}
}

func (w *twins) opens(name string, flags uint32) bool {
	answers := w.ask(fmt.Sprintf("open %s %d", name, flags), typeOpen, func(i int) []byte {
		return slices.Concat(text(filepath.Join(w.dirs[i], name)), number(flags), number(0))
	})
	if kindOf(answers[0]) != typeHandle {
		return false
	}
	w.open = append(w.open, [2]string{fieldsOf(answers[0]).text(), fieldsOf(answers[1]).text()})
	return true
}

// close closes what was opened last.
func (w *twins) close() {
	last := w.open[len(w.open)-1]
	w.open = w.open[:len(w.open)-1]
	w.ask(fmt.Sprint("close ", last), typeClose, func(i int) []byte { return text(last[i]) })
}

// move reads or writes.
func (w *twins) move(kind byte, file int, at uint64, size int) {
	tail := number(uint32(size))
	if kind == typeWrite {
		tail = text(strings.Repeat(string(rune('a'+w.rnd.IntN(26))), size))
	}
	w.ask(fmt.Sprintf("%d of %v at %d, %d", kind, w.open[file], at, size), kind, func(i int) []byte {
		return slices.Concat(text(w.open[file][i]), binary.BigEndian.AppendUint64(nil, at), tail)
	})
}

func (w *twins) cut(file int, size uint64) {
	w.ask(fmt.Sprintf("cut %v to %d", w.open[file], size), typeFsetstat, func(i int) []byte {
		return slices.Concat(text(w.open[file][i]), number(attributeSize), binary.BigEndian.AppendUint64(nil, size))
	})
}

// ask has both ask, and compares the answers.
func (w *twins) ask(what string, kind byte, fields func(i int) []byte) (answers [2][]byte) {
	w.t.Helper()
	w.id++
	w.log = append(w.log, what)
	var said [2]string
	for i, end := range w.ends {
		m := message(kind, 3)
		if fields != nil {
			m = message(kind, w.id, fields(i))
		}
		_ = end.SetDeadline(time.Now().Add(20 * time.Second))
		if _, err := end.Write(m); err != nil {
			w.t.Fatal(err)
		}
		answer := make([]byte, 4)
		if _, err := io.ReadFull(end, answer); err != nil {
			w.t.Fatalf("%s\n%v", strings.Join(w.log, "\n"), err)
		}
		answer = append(answer, make([]byte, binary.BigEndian.Uint32(answer))...)
		if _, err := io.ReadFull(end, answer[4:]); err != nil {
			w.t.Fatal(err)
		}
		answers[i], said[i] = answer, w.meaning(answer)
	}
	if said[0] != said[1] {
		w.t.Fatalf("%s\nis answered %.200q, without %.200q", strings.Join(w.log, "\n"), said[0], said[1])
	}
	return answers
}

// meaning is an answer without what may differ: handles, folders and times.
func (w *twins) meaning(m []byte) string {
	const typeAttributes = 105
	in := fieldsOf(m)
	switch kindOf(m) {
	case typeHandle:
		return fmt.Sprint("handle for ", idOf(m))
	case typeStatus:
		return fmt.Sprintf("status %d for %d", in.number(), idOf(m))
	case typeAttributes:
		return fmt.Sprintf("for %d %d, %d bytes, %d:%d, %o", idOf(m), in.number(), in.long(), in.number(), in.number(), in.number())
	}
	return string(m[4:])
}

// files are what there is, by name.
func (w *twins) files(end int) map[string]string {
	all := map[string]string{}
	err := filepath.WalkDir(w.dirs[end], func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := os.ReadFile(path)
		name, _ := filepath.Rel(w.dirs[end], path) // it is below
		all[name] = string(b)
		return err
	})
	if err != nil {
		w.t.Error(err)
	}
	return all
}
