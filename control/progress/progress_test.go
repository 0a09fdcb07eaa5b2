package progress

import (
	"bytes"
	"io"
	"math"
	"testing"
	"time"

	"github.com/creack/pty"
)

func TestBar(t *testing.T) {
	for _, c := range []struct {
		done, total uint64
		want        string
	}{
		{0, 0, "[########################] 0 B of 0 B"},
		{0, 10, "[........................] 0 B of 10 B"},
		{5, 10, "[############............] 5 B of 10 B"},
		{1023, 1024, "[#######################.] 1023 B of 1 KiB"},
		{10, 10, "[########################] 10 B of 10 B"},
		{12, 10, "[########################] 12 B of 10 B"}, // it has grown meanwhile
		{math.MaxUint64 / 2, math.MaxUint64, "[############............] 8192 PiB of 16384 PiB"},
	} {
		if got := Bar(c.done, c.total); got != c.want {
			t.Errorf("Bar(%d, %d) = %q, want %q", c.done, c.total, got, c.want)
		}
	}
}

func TestSize(t *testing.T) {
	for n, want := range map[uint64]string{0: "0 B", 1023: "1023 B", 1024: "1 KiB", 1536: "1.5 KiB", 1 << 30: "1 GiB", math.MaxUint64: "16384 PiB"} {
		if got := Size(n); got != want {
			t.Errorf("Size(%d) = %q, want %q", n, got, want)
		}
	}
}

// TestNoTerminal: a log gets a line per text, and no control characters.
func TestNoTerminal(t *testing.T) {
	var b bytes.Buffer
	l := New(&b)
	if l.Live() {
		t.Error("a buffer is no terminal")
	}
	for _, text := range []string{"one", "one", "two"} {
		l.Show(text)
	}
	l.End()
	if b.String() != "one\ntwo\n" {
		t.Errorf("%q", b.String())
	}
}

// TestTerminal: on a real one, each text takes the place of that before, is cut
// where the terminal ends, and nothing stays.
func TestTerminal(t *testing.T) {
	mine, theirs, err := pty.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer mine.Close()
	defer theirs.Close()
	if err := pty.Setsize(theirs, &pty.Winsize{Rows: 24, Cols: 10}); err != nil {
		t.Fatal(err)
	}
	l := New(theirs)
	if !l.Live() {
		t.Fatal("a terminal is one")
	}
	l.Show("short")
	l.Show("short")
	l.Show("ünger als zehn")
	l.End()
	l.End()
	const want = "\r\033[Kshort\r\033[Künger als\r\033[K"
	got := make([]byte, len(want))
	if err := mine.SetReadDeadline(time.Now().Add(30 * time.Second)); err != nil {
		t.Log(err) // some systems have none; the test's own limit ends it then
	}
	if _, err := io.ReadFull(mine, got); err != nil || string(got) != want {
		t.Errorf("%q %v, want %q", got, err, want)
	}
}
