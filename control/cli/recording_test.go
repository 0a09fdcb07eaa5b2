package cli

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"
)

// TestOthersWords: what others have named, said or had recorded commands nothing to
// the terminal of who looks at it.
func TestOthersWords(t *testing.T) {
	t.Parallel()
	const hostile = "a\x1b]52;c;cm0gLXJm\x07b\x1b[6nc\u009b31md\r\ne\u202ef"
	commands := func(what, out string) {
		t.Helper()
		if !strings.ContainsAny(out, "abcdef") || strings.ContainsAny(out, "\x1b\x07\u009b\r\u202e") {
			t.Errorf("%s: %q", what, out)
		}
	}
	var b bytes.Buffer
	a := &app{out: &b, errOut: &b, output: "table"}
	if err := a.show(nil, func(w io.Writer) { row(w, hostile, "x") }); err != nil {
		t.Fatal(err)
	}
	commands("table", b.String())
	if lines := strings.Count(b.String(), "\n"); lines != 1 {
		t.Errorf("a row of %d lines: %q", lines, b.String())
	}
	b.Reset()
	a.status(a.root(), errors.New(hostile))
	commands("error", b.String())
	b.Reset()
	_ = a.cannot(errors.New(hostile))
	commands("ssh", b.String())

	b.Reset()
	cast := `{"version": 2, "width": 80, "height": 24}` + "\n" + `[0.1, "o", "a\u001b]52;c;cm0gLXJm\u0007b\u001b[6n\u001bP$qm\u001b\\\u001b[31mc"]` + "\n"
	if err := (player{speed: 1, idle: 1}).play(t.Context(), &b, strings.NewReader(cast)); err != nil {
		t.Fatal(err)
	}
	if got, want := b.String(), "ab\x1b[31mc"; got != want {
		t.Errorf("played %q, want %q", got, want)
	}
}
