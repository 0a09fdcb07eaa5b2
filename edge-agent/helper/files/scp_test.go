package files

import (
	"bufio"
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// FuzzSCP plays a hostile source: nothing may be written outside of the folder.
func FuzzSCP(f *testing.F) {
	f.Add([]byte("C0644 5 name\nhello\x00"))
	f.Add([]byte("T1 0 1 0\nD0755 0 d\nC0600 1 x\ny\x00E\n"))
	f.Add([]byte("C0644 1 ../x\ny\x00"))
	f.Add([]byte("D0755 0 ..\nC0644 1 x\ny\x00E\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) > 4<<10 {
			return
		}
		dir := t.TempDir()
		inside := filepath.Join(dir, "inside")
		if err := os.Mkdir(inside, 0o755); err != nil {
			t.Fatal(err)
		}
		c := &copying{in: bufio.NewReader(bytes.NewReader(b)), out: &bytes.Buffer{}, recursive: true, preserve: true}
		_ = c.sink(inside) // what is wrong with b is no fault
		entries, err := os.ReadDir(dir)
		if err != nil || len(entries) != 1 {
			t.Errorf("%q wrote outside: %v %v", b, entries, err)
		}
	})
}

func TestSCPSaysWhatIsWrong(t *testing.T) {
	for in, says := range map[string]string{
		"C0644 1 ../x\ny\x00":   "no plain file name",
		"C0644 1 ..\ny\x00":     "no plain file name",
		"C0644 1 a/b\ny\x00":    "no plain file name",
		"C99999 1 x\ny\x00":     "octal",
		"C0644 -1 x\ny\x00":     "size is no number",
		"C0644\n":               "too few words",
		"D0755 0 d\n":           "a folder, which was not asked for",
		"\x02scp: bad things\n": "",
	} {
		var out bytes.Buffer
		c := &copying{in: bufio.NewReader(strings.NewReader(in)), out: &out}
		if err := c.sink(t.TempDir()); err == nil || !strings.Contains(out.String(), says) {
			t.Errorf("%q: %v, says %q", in, err, out.String())
		}
	}
}
