package files

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// times are of the next file or folder.
type times struct{ modified, accessed time.Time }

// sink writes what comes to target.
func (c *copying) sink(target string) error {
	if st, err := os.Stat(target); c.toFolder && (err != nil || !st.IsDir()) {
		if err == nil {
			err = errors.New("it is no folder")
		}
		_ = c.warn(fmt.Errorf("%s: %w", target, err)) // the other side may be gone
		return err
	}
	if err := c.ok(); err != nil {
		return err
	}
	return c.receive(target)
}

// receive reads lines until the folder, or everything, has ended.
func (c *copying) receive(target string) error {
	var t *times
	for {
		kind, err := c.in.ReadByte()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		line, err := c.line()
		if err != nil {
			return err
		}
		switch kind {
		case 'C', 'D':
			err = c.take(target, kind == 'D', line, t)
			t = nil
		case 'T':
			t = &times{}
			if t.modified, t.accessed, err = parseTimes(line); err == nil {
				err = c.ok()
			}
		case 'E':
			return c.ok()
		case 1: // what it could not read
			c.failed = true
		default:
			return errFatal
		}
		if err != nil {
			return err
		}
	}
}

// take receives one file or folder. An error is the end of everything.
func (c *copying) take(target string, folder bool, line string, t *times) error {
	e, err := parseEntry(folder, line)
	if err != nil {
		_ = c.warn(err) // as in sink
		return err
	}
	if st, err := os.Stat(target); err == nil && st.IsDir() {
		target = filepath.Join(target, e.name)
	}
	if folder {
		return c.takeFolder(target, e, t)
	}
	return c.takeFile(target, e, t)
}

func (c *copying) takeFolder(target string, e entry, t *times) error {
	if !c.recursive {
		err := errors.New(e.name + " is a folder, which was not asked for")
		_ = c.warn(err) // as in sink
		return err
	}
	if st, err := os.Stat(target); err != nil || !st.IsDir() {
		if err := os.Mkdir(target, e.mode|0o700); err != nil {
			_ = c.warn(err) // as in sink; what is inside has no place
			return err
		}
	}
	if err := c.ok(); err != nil {
		return err
	}
	if err := c.receive(target); err != nil {
		return err
	}
	if err := c.finish(target, e, t); err != nil {
		c.failed = true
	}
	return nil
}

func (c *copying) takeFile(target string, e entry, t *times) error {
	f, err := os.OpenFile(target, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, e.mode)
	if err != nil {
		return c.warn(err) // the other side goes on with the next file
	}
	defer f.Close()
	if err := c.ok(); err != nil {
		return err
	}
	rest := &io.LimitedReader{R: c.in, N: e.size}
	_, err = io.Copy(f, rest)
	if err != nil { // the disk is full: what still comes must be read
		_, _ = io.Copy(io.Discard, rest) // its end is looked at next
	}
	if rest.N > 0 {
		return io.ErrUnexpectedEOF
	}
	if err == nil {
		err = f.Close()
	}
	if done, gone := c.answer(); gone != nil || !done {
		return gone
	}
	if err == nil {
		err = c.finish(target, e, t)
	}
	if err != nil {
		return c.warn(err)
	}
	return c.ok()
}

// finish sets what -p wants.
func (c *copying) finish(target string, e entry, t *times) error {
	if c.preserve {
		if err := os.Chmod(target, e.mode); err != nil {
			return err
		}
	}
	if t != nil {
		return os.Chtimes(target, t.accessed, t.modified)
	}
	return nil
}

// source sends paths.
func (c *copying) source(paths []string) error {
	if _, err := c.answer(); err != nil {
		return err
	}
	for _, path := range paths {
		if err := c.send(path); err != nil {
			return err
		}
	}
	return nil
}

// send sends a file or folder. What cannot be read is a warning; an error is
// the end.
func (c *copying) send(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return c.warn(err)
	}
	defer f.Close()
	st, err := f.Stat()
	name := filepath.Base(path)
	switch {
	case err != nil:
		return c.warn(err)
	case strings.Contains(name, "\n"):
		return c.warn(fmt.Errorf("%q: this way of copying cannot carry a name with a line end", name))
	case st.IsDir() && c.recursive:
		return c.sendFolder(f, st, name)
	case !st.Mode().IsRegular():
		return c.warn(fmt.Errorf("%s: not a regular file", path))
	}
	if done, err := c.announce(st, fmt.Sprintf("C%04o %d %s\n", st.Mode().Perm(), st.Size(), name)); err != nil || !done {
		return err
	}
	n, err := io.CopyN(c.out, f, st.Size())
	if err == nil {
		err = c.ok()
	} else if n < st.Size() { // it has shrunk, or the disk is broken: the promised bytes must come
		if _, err := io.CopyN(c.out, zeros{}, st.Size()-n); err != nil {
			return err
		}
		err = c.warn(err)
	}
	if err != nil {
		return err
	}
	_, err = c.answer()
	return err
}

func (c *copying) sendFolder(f *os.File, st os.FileInfo, name string) error {
	if done, err := c.announce(st, fmt.Sprintf("D%04o 0 %s\n", st.Mode().Perm(), name)); err != nil || !done {
		return err
	}
	for {
		names, err := f.Readdirnames(1000)
		for _, name := range names {
			if err := c.send(filepath.Join(f.Name(), name)); err != nil {
				return err
			}
		}
		if err != nil {
			break
		}
	}
	if _, err := io.WriteString(c.out, "E\n"); err != nil {
		return err
	}
	_, err := c.answer()
	return err
}

// announce sends the lines before a file or folder.
func (c *copying) announce(st os.FileInfo, line string) (done bool, err error) {
	if c.preserve {
		at := st.ModTime().Unix()
		if _, err := fmt.Fprintf(c.out, "T%d 0 %d 0\n", at, at); err != nil {
			return false, err
		}
		if done, err := c.answer(); err != nil || !done {
			return false, err
		}
	}
	if _, err := io.WriteString(c.out, line); err != nil {
		return false, err
	}
	return c.answer()
}

// zeros reads as zeros without end.
type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}
