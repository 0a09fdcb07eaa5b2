package logs

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"
)

// poll is how often a followed log is looked at.
const poll = 200 * time.Millisecond

// Read calls each for the last tail lines of the log at path (below zero: all)
// and, with follow, for what is added until ctx ends. A log that does not
// exist is empty. What each returns as error ends it. Line.Text is valid during
// the call.
func Read(ctx context.Context, path string, tail int, follow bool, each func(Line) error) error {
	r := &reader{path: path, each: each}
	defer r.close()
	if err := r.begin(tail); err != nil {
		return err
	}
	for {
		if err := r.rest(); err != nil || !follow {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(poll):
		}
	}
}

type reader struct {
	path string
	each func(Line) error
	file *os.File // the current one; nil: it does not exist yet
	in   *bufio.Reader
	half []byte // of a line that is not whole yet
}

// begin reads the older files and skips what tail leaves out.
func (r *reader) begin(tail int) error {
	var files []*os.File
	defer func() {
		for _, f := range files {
			f.Close()
		}
	}()
	for i := Files - 1; i >= 0; i-- {
		f, err := os.Open(older(r.path, i))
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return fmt.Errorf("open log: %w", err)
		}
		if i == 0 {
			r.file = f
		} else {
			files = append(files, f)
		}
	}
	all := files
	if r.file != nil {
		all = append(all[:len(all):len(all)], r.file)
	}
	if err := skip(all, tail); err != nil {
		return err
	}
	for _, f := range files {
		if err := r.drain(bufio.NewReaderSize(f, 2*maxLine)); err != nil {
			return err
		}
		r.half = nil
	}
	return nil
}

// skip moves files, oldest first, to where their last tail lines begin.
func skip(files []*os.File, tail int) error {
	if tail < 0 {
		return nil
	}
	left := tail
	for i := len(files) - 1; i >= 0; i-- {
		at, found, err := lastLines(files[i], left)
		if err != nil {
			return fmt.Errorf("read log: %w", err)
		}
		if _, err := files[i].Seek(at, io.SeekStart); err != nil {
			return fmt.Errorf("read log: %w", err)
		}
		left -= found
	}
	return nil
}

// lastLines returns where the last n lines of f begin and how many there are.
func lastLines(f *os.File, n int) (at int64, found int, err error) {
	end, err := f.Seek(0, io.SeekEnd)
	if err != nil || n == 0 {
		return end, 0, err
	}
	buf := make([]byte, 64<<10)
	for at = end; at > 0; {
		size := min(int64(len(buf)), at)
		at -= size
		if _, err := f.ReadAt(buf[:size], at); err != nil {
			return 0, 0, err
		}
		for i := size - 1; i >= 0; i-- {
			if buf[i] != '\n' || at+i == end-1 {
				continue
			}
			if found++; found == n {
				return at + i + 1, n, nil
			}
		}
	}
	if end > 0 {
		found++
	}
	return 0, found, nil
}

// rest reads what is there now, through a rotation too.
func (r *reader) rest() error {
	for {
		if r.file == nil {
			f, err := os.Open(r.path)
			if errors.Is(err, os.ErrNotExist) {
				return nil
			}
			if err != nil {
				return fmt.Errorf("open log: %w", err)
			}
			r.file = f
		}
		if r.in == nil {
			r.in = bufio.NewReaderSize(r.file, 2*maxLine)
		}
		rotated := r.rotated() // asked first: what is written before it is read below
		if err := r.drain(r.in); err != nil || !rotated {
			return err
		}
		r.close()
	}
}

func (r *reader) rotated() bool {
	ours, err := r.file.Stat()
	if err != nil {
		return true
	}
	now, err := os.Stat(r.path)
	return err == nil && !os.SameFile(ours, now)
}

func (r *reader) close() {
	if r.file != nil {
		r.file.Close()
	}
	r.file, r.in, r.half = nil, nil, nil
}

// drain hands whole lines over; lines that are damaged are left out.
func (r *reader) drain(in *bufio.Reader) error {
	for {
		b, err := in.ReadSlice('\n')
		r.half = append(r.half, b...)
		switch {
		case err == nil:
			l, bad := parse(bytes.TrimSuffix(r.half, []byte("\n")))
			r.half = r.half[:0]
			if bad != nil {
				continue
			}
			if err := r.each(l); err != nil {
				return err
			}
		case errors.Is(err, io.EOF):
			return nil
		case errors.Is(err, bufio.ErrBufferFull):
			if len(r.half) > 4*maxLine {
				r.half = r.half[:0]
			}
		default:
			return fmt.Errorf("read log: %w", err)
		}
	}
}
