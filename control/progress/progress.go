// Package progress shows a person how something gets on.
//
// It owns the one line of a terminal that changes, the bar in it, and what of
// others' words a terminal may be shown; what is said is the caller's. Its
// invariant: a terminal never holds more than one line of it, and what is no
// terminal gets each text once, as a line of its own.
package progress

import (
	"fmt"
	"io"
	"os"
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/term"
)

// Plain is text, which may be anybody's, as a terminal may be shown it: one line that
// commands it nothing.
func Plain(text string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r == '\n', r == '\t':
			return ' '
		case unicode.IsControl(r), unicode.Is(unicode.Bidi_Control, r):
			return utf8.RuneError
		}
		return r
	}, text)
}

// Line is the line. It is for one goroutine at a time.
type Line struct {
	w    io.Writer
	file *os.File // the terminal; nil: there is none
	last string
	open bool // it stands on the terminal
}

// New shows on w, live if that is a terminal.
func New(w io.Writer) *Line {
	l := &Line{w: w}
	if f, ok := w.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		l.file = f
	}
	return l
}

// Live reports whether the line changes in place, so that it may say what
// changes often.
func (l *Line) Live() bool { return l.file != nil }

// Show says text, unless it is what was said last.
func (l *Line) Show(text string) {
	text = Plain(text)
	if text == l.last {
		return
	}
	l.last = text
	if l.file == nil {
		fmt.Fprintln(l.w, text)
		return
	}
	if cols, _, err := term.GetSize(int(l.file.Fd())); err == nil && cols > 0 {
		text = fmt.Sprintf("%.*s", cols-1, text) // what wraps cannot be taken back
	}
	fmt.Fprint(l.w, "\r\033[K"+text)
	l.open = true
}

// End takes the line off the terminal.
func (l *Line) End() {
	if l.open {
		fmt.Fprint(l.w, "\r\033[K")
	}
	l.open, l.last = false, ""
}

// Bar draws how much of total bytes is done. Nothing of nothing is all.
func Bar(done, total uint64) string {
	const width = 24
	full := width
	if done < total {
		full = int(float64(done) / float64(total) * width)
	}
	return fmt.Sprintf("[%s%s] %s of %s", strings.Repeat("#", full), strings.Repeat(".", width-full), Size(done), Size(total))
}

// Size says bytes in binary units with at most one digit after the point.
func Size(n uint64) string {
	const unit = 1024
	if n < unit {
		return fmt.Sprintf("%d B", n)
	}
	v, i := float64(n), -1
	for ; v >= unit && i < 4; i++ {
		v /= unit
	}
	text := fmt.Sprintf("%.1f", v)
	return strings.TrimSuffix(text, ".0") + " " + []string{"KiB", "MiB", "GiB", "TiB", "PiB"}[i]
}
