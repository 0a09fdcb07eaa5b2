// Package logs keeps what containers write to stdout and stderr.
//
// It owns the log files of workloads: their line format, their rotation and how
// they are read. It does not own where they lie. Its invariant: a workload
// never has more than Files files of about MaxSize bytes, and a line is either
// whole in one file or cut in parts that say so.
//
// The shim of containerd starts the log driver (Drive) as a process of its own
// beside each container, so that logs go on while agent and containerd are
// down. One line of a file:
//
//	2026-11-23T06:45:00.123456789Z o F text of the line
//	                               | +- F: whole line or its last part, P: more follows
//	                               +--- o: stdout, e: stderr
package logs

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"time"
)

// Limits of a workload's log.
const (
	MaxSize = 10 << 20 // bytes of one file
	Files   = 3        // the current one and older ones: NAME, NAME.1, NAME.2
	maxLine = 16 << 10 // bytes of text in one line of a file
)

// Streams of a container.
const (
	Stdout = 'o'
	Stderr = 'e'
)

// Line is one line of a log, or a part of a long one.
type Line struct {
	At     time.Time
	Stream byte // Stdout or Stderr
	Part   bool // more of the same line follows
	Text   []byte
}

var errLine = errors.New("not a line of a log")

const stamp = "2006-01-02T15:04:05.000000000Z"

// append writes l in the format of a file, with its line feed.
func (l Line) append(b []byte) []byte {
	end := byte('F')
	if l.Part {
		end = 'P'
	}
	b = l.At.UTC().AppendFormat(b, stamp)
	b = append(b, ' ', l.Stream, ' ', end, ' ')
	b = append(b, l.Text...)
	return append(b, '\n')
}

// parse reads one line of a file, without its line feed. Text shares b's memory.
func parse(b []byte) (Line, error) {
	if len(b) < len(stamp)+5 {
		return Line{}, errLine
	}
	clock, mark, text := string(b[:len(stamp)]), b[len(stamp):len(stamp)+5], b[len(stamp)+5:]
	at, err := time.Parse(stamp, clock)
	if err != nil || at.Format(stamp) != clock {
		return Line{}, errLine
	}
	if mark[0] != ' ' || mark[2] != ' ' || mark[4] != ' ' || bytes.IndexByte(text, '\n') >= 0 ||
		(mark[1] != Stdout && mark[1] != Stderr) || (mark[3] != 'F' && mark[3] != 'P') {
		return Line{}, errLine
	}
	return Line{At: at, Stream: mark[1], Part: mark[3] == 'P', Text: text}, nil
}

// Remove deletes a log with its older files.
func Remove(path string) error {
	var errs []error
	for i := range Files {
		if err := os.Remove(older(path, i)); err != nil && !errors.Is(err, os.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// older is the name of the i-th file back; 0 is the current one.
func older(path string, i int) string {
	if i == 0 {
		return path
	}
	return fmt.Sprintf("%s.%d", path, i)
}
