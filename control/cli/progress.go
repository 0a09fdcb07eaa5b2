package cli

import (
	"fmt"
	"io"
	"os"
	"strings"

	"golang.org/x/term"
)

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
