package cli

import (
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"golang.org/x/term"
)

func trimLine(b []byte) string { return strings.TrimRight(string(b), "\r\n") }

// age says how long ago t was, as kubectl does: 42s, 5m, 3h, 12d.
func age(t time.Time) string {
	d := time.Since(t)
	switch {
	case t.IsZero():
		return ""
	case d < time.Minute:
		return fmt.Sprintf("%ds", max(0, int(d.Seconds())))
	case d < time.Hour:
		return fmt.Sprintf("%dm", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh", int(d.Hours()))
	}
	return fmt.Sprintf("%dd", int(d.Hours()/24))
}

func ago(t *time.Time) string {
	if t == nil {
		return "never"
	}
	return age(*t) + " ago"
}

func date(t *time.Time, none string) string {
	if t == nil {
		return none
	}
	return t.Local().Format("2006-01-02")
}

// size says bytes in binary units with at most one digit after the point.
func size(n uint64) string {
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

// count says "1 label" or "3 labels".
func count(n int, noun string) string {
	if n != 1 {
		noun += "s"
	}
	return fmt.Sprintf("%d %s", n, noun)
}

// progress shows how an environment gets on: on a terminal one line that
// changes, elsewhere a line per phase.
type progress struct {
	w    io.Writer
	live bool
	last string
	open bool // the line on the terminal has no end yet
}

func newProgress(w io.Writer) *progress {
	f, ok := w.(*os.File)
	return &progress{w: w, live: ok && term.IsTerminal(int(f.Fd()))}
}

func (p *progress) show(env envRow) {
	line := "  " + env.Phase
	if env.Phase == "pulling" && env.PullTotal > 0 && p.live {
		line += " " + bar(env.Pulled, env.PullTotal)
	} else if env.Message != "" {
		line += ": " + env.Message
	}
	if line == p.last {
		return
	}
	p.last = line
	if p.live {
		fmt.Fprintf(p.w, "\r\033[K%.200s", line)
		p.open = true
		return
	}
	fmt.Fprintln(p.w, line)
}

func (p *progress) end() {
	if p.open {
		fmt.Fprint(p.w, "\r\033[K")
	}
}

func bar(done, total uint64) string {
	const width = 24
	full := int(width * min(done, total) / total)
	return fmt.Sprintf("[%s%s] %s of %s", strings.Repeat("#", full), strings.Repeat(".", width-full), size(done), size(total))
}
