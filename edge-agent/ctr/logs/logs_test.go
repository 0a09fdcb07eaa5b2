package logs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/time/rate"
)

func TestMain(m *testing.M) {
	if len(os.Args) == 3 && os.Args[1] == Argument {
		if err := Drive(os.Args[2]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func texts(t *testing.T, path string, tail int) []string {
	t.Helper()
	var got []string
	err := Read(context.Background(), path, tail, false, func(l Line) error {
		got = append(got, string(l.Text))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return got
}

// TestDriveAsShim starts this test binary as the shim would.
func TestDriveAsShim(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a.log")
	pipes := make([]*os.File, 6)
	for i := 0; i < 6; i += 2 {
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		pipes[i], pipes[i+1] = r, w
	}
	cmd := exec.Command(os.Args[0], Argument, path)
	cmd.ExtraFiles = []*os.File{pipes[0], pipes[2], pipes[5]}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	for _, i := range []int{0, 2, 5} {
		pipes[i].Close()
	}
	if _, err := pipes[4].Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Fatalf("ready pipe: %v, want it closed", err)
	}
	fmt.Fprint(pipes[1], "out\nhalf")
	fmt.Fprint(pipes[3], "err\n")
	pipes[1].Close()
	pipes[3].Close()
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	got := texts(t, path, -1)
	if len(got) != 3 || !strings.Contains(strings.Join(got, " "), "half") {
		t.Fatalf("lines %q", got)
	}
}

func TestRotation(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a.log")
	w, err := open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer w.close()
	other, err := open(path) // the driver of the run before, not gone yet
	if err != nil {
		t.Fatal(err)
	}
	defer other.close()
	w.max, other.max = 1000, 1000
	for i := range 200 {
		from := w
		if i%2 == 0 {
			from = other
		}
		from.copy(Stdout, strings.NewReader(fmt.Sprintf("line %03d\n", i)))
	}
	all, _ := filepath.Glob(path + "*")
	if len(all) != Files {
		t.Fatalf("files %v, want %d", all, Files)
	}
	for _, f := range all {
		if st, _ := os.Stat(f); st.Size() > 1000 {
			t.Errorf("%s has %d bytes", f, st.Size())
		}
	}
	got := texts(t, path, -1)
	for i, text := range got {
		if want := fmt.Sprintf("line %03d", 200-len(got)+i); text != want {
			t.Fatalf("line %d from the start is %q, want %q", i, text, want)
		}
	}
	if last := texts(t, path, 30); len(last) != 30 || last[0] != "line 170" {
		t.Fatalf("tail of 30 is %q", last)
	}
	if none := texts(t, path, 0); len(none) != 0 {
		t.Fatalf("tail of 0 is %q", none)
	}
	if err := Remove(path); err != nil {
		t.Fatal(err)
	}
	if got := texts(t, path, -1); len(got) != 0 {
		t.Fatalf("removed log has %q", got)
	}
}

// TestWhoWritesMuchWaits: a log without end is taken at a rate, each line whole.
func TestWhoWritesMuchWaits(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	w, err := open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer w.close()
	w.pace = rate.NewLimiter(100<<10, 64<<10)
	line := strings.Repeat("x", 1023) + "\n"
	begun := time.Now()
	w.copy(Stdout, strings.NewReader(strings.Repeat(line, 164))) // 100 KiB after the burst
	if took := time.Since(begun); took < 900*time.Millisecond {
		t.Errorf("it was all taken in %v", took)
	}
	lines := 0
	if err := Read(t.Context(), path, -1, false, func(l Line) error {
		lines++
		return nil
	}); err != nil || lines != 164 {
		t.Errorf("%d lines, %v", lines, err)
	}
}

func TestLongLineIsCut(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a.log")
	w, err := open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer w.close()
	long := bytes.Repeat([]byte("x"), 3*maxLine+5)
	w.copy(Stderr, bytes.NewReader(append(long, '\n')))
	var whole []byte
	parts := 0
	Read(context.Background(), path, -1, false, func(l Line) error {
		whole = append(whole, l.Text...)
		if l.Part {
			parts++
		}
		return nil
	})
	if !bytes.Equal(whole, long) || parts != 3 {
		t.Fatalf("%d bytes in %d parts, want %d in 3", len(whole), parts, len(long))
	}
}

func TestFollow(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a.log")
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	lines := make(chan string)
	go Read(ctx, path, 10, true, func(l Line) error {
		lines <- string(l.Text)
		return nil
	})
	w, err := open(path) // begins to exist while it is followed
	if err != nil {
		t.Fatal(err)
	}
	defer w.close()
	w.max = 200
	for i := range 20 { // rotates several times
		want := fmt.Sprint("line ", i)
		w.copy(Stdout, strings.NewReader(want+"\n"))
		select {
		case got := <-lines:
			if got != want {
				t.Fatalf("got %q, want %q", got, want)
			}
		case <-ctx.Done():
			t.Fatalf("%q never came", want)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add(Line{At: time.Unix(1, 2), Stream: Stdout, Text: []byte("hello")}.append(nil))
	f.Add([]byte("2026-11-23T06:45:00.123456789Z e P x"))
	f.Add([]byte(""))
	f.Fuzz(func(t *testing.T, b []byte) {
		b = bytes.TrimSuffix(b, []byte("\n"))
		l, err := parse(b)
		if err != nil {
			return
		}
		if again := l.append(nil); !bytes.Equal(again, append(b, '\n')) {
			t.Errorf("%q is written as %q", b, again)
		}
	})
}
