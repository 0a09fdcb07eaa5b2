// Package transfer copies files between this machine and environments.
//
// It owns what is copied, under which names, and in which order; how an
// environment is reached is its caller's. Its invariant: a name that it gives to
// a file is given when all of the file is there; and what an environment says
// makes no file outside of the folder that a person named.
//
//	SRC        DST is a folder     DST is not there
//	file       DST/SRC             DST
//	folder     DST/SRC             DST, with all that is in SRC
//	folder/.   DST, as above       as above
package transfer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"sync/atomic"

	"golang.org/x/sync/errgroup"
)

// atOnce is how many files, or folders, are on their way at a time: small ones
// wait for answers.
const atOnce = 16

// Job is one copy. Its methods may be called while it runs.
type Job struct {
	From []Place
	To   Place
	Skip func(line string) // tells of what cannot be copied: sockets, devices

	files, allFiles atomic.Int64
	bytes, allBytes atomic.Int64
}

// Files returns how many are done, of how many so far known.
func (j *Job) Files() (done, all int64) { return j.files.Load(), j.allFiles.Load() }

// Bytes returns how many are done, of how many so far known.
func (j *Job) Bytes() (done, all int64) { return j.bytes.Load(), j.allBytes.Load() }

// Run copies all, or stops at the first error: what was copied stays.
func (j *Job) Run(ctx context.Context) error {
	for _, from := range j.From {
		if err := j.copy(ctx, from); err != nil {
			return err
		}
	}
	return nil
}

// copy copies one source.
func (j *Job) copy(ctx context.Context, from Place) error {
	source, err := from.source()
	if err != nil {
		return err
	}
	defer source.disk.Close()
	target, err := j.To.target(source, len(j.From) > 1)
	if err != nil {
		return err
	}
	defer target.disk.Close()
	c := &copying{Job: j, from: source, to: target}
	if err := c.walk(ctx); err != nil {
		return err
	}
	return c.run(ctx)
}

// entry is something to copy.
type entry struct {
	name string // from the source
	info fs.FileInfo
}

// copying is a source on its way.
type copying struct {
	*Job
	from, to spot
	folders  [][]entry // those of a depth, then those below them
	files    []entry   // and links
	made     [][]entry // folders that were not there before
}

// walk finds out what there is to copy.
func (c *copying) walk(ctx context.Context) error {
	if !c.from.info.IsDir() {
		return c.found(entry{c.from.name, c.from.info})
	}
	for level := []entry{{c.from.name, c.from.info}}; len(level) > 0; {
		c.folders = append(c.folders, level)
		lists := make([][]fs.FileInfo, len(level))
		err := each(ctx, level, func(i int, e entry) (err error) {
			lists[i], err = c.from.disk.ReadDir(e.name)
			return c.from.wrong(e.name, err)
		})
		if err != nil {
			return err
		}
		var next []entry
		for i, list := range lists {
			for _, info := range list {
				name := info.Name()
				if !fs.ValidPath(name) || path.Base(name) != name || name == "." { // it is an environment that says so
					return fmt.Errorf("%s has an entry %q, which is no name; nothing of it is copied", c.from.says(level[i].name), name)
				}
				e := entry{path.Join(level[i].name, name), info}
				if info.IsDir() {
					next = append(next, e)
				} else if err := c.found(e); err != nil {
					return err
				}
			}
		}
		level = next
	}
	return nil
}

// found takes what is no folder.
func (c *copying) found(e entry) error {
	switch mode := e.info.Mode(); {
	case mode.IsRegular():
		c.allBytes.Add(e.info.Size())
	case mode.Type() != fs.ModeSymlink:
		c.Skip(c.from.says(e.name) + " is no file, folder or link; it is left out")
		return nil
	}
	c.allFiles.Add(1)
	c.files = append(c.files, e)
	return nil
}

// run makes the folders, then what is in them, and then gives the folders the
// modes and times that they would have lost meanwhile.
func (c *copying) run(ctx context.Context) error {
	for _, level := range c.folders {
		made := make([]bool, len(level))
		err := each(ctx, level, func(i int, e entry) (err error) {
			made[i], err = c.folder(e)
			return err
		})
		if err != nil {
			return err
		}
		var list []entry
		for i, e := range level {
			if made[i] {
				list = append(list, e)
			}
		}
		c.made = append(c.made, list)
	}
	if err := each(ctx, c.files, func(_ int, e entry) error { return c.file(ctx, e) }); err != nil {
		return err
	}
	for i := range c.made { // a folder may forbid what is below it
		err := each(ctx, c.made[len(c.made)-1-i], func(_ int, e entry) error { return c.dress(c.target(e), e.info) })
		if err != nil {
			return err
		}
	}
	return nil
}

// target returns what e is called at the target.
func (c *copying) target(e entry) string {
	if !c.from.info.IsDir() {
		return c.to.name
	}
	return path.Join(c.to.name, e.name)
}

// folder makes sure that there is one.
func (c *copying) folder(e entry) (made bool, err error) {
	name := c.target(e)
	if err = c.to.disk.Mkdir(name); err == nil {
		return true, nil
	}
	info, statErr := c.to.disk.Stat(name)
	switch {
	case statErr != nil:
		return false, c.to.wrong(name, err)
	case !info.IsDir():
		return false, fmt.Errorf("%s is a file, and %s a folder", c.to.says(name), c.from.says(e.name))
	}
	return false, nil
}

// dress gives name the mode and times of info.
func (c *copying) dress(name string, info fs.FileInfo) error {
	if err := c.to.disk.Chmod(name, info.Mode().Perm()); err != nil {
		return c.to.wrong(name, err)
	}
	return c.to.wrong(name, c.to.disk.Chtimes(name, info.ModTime(), info.ModTime()))
}

// file copies one, or a link.
func (c *copying) file(ctx context.Context, e entry) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	err := c.to.put(c.target(e), func(part string) error {
		if e.info.Mode().IsRegular() {
			return c.content(ctx, e, part)
		}
		to, err := c.from.disk.Readlink(e.name)
		if err != nil {
			return &readError{err}
		}
		return c.to.disk.Symlink(to, part)
	})
	if read, ok := errors.AsType[*readError](err); ok {
		return c.from.wrong(e.name, read.error)
	} else if err != nil {
		return c.to.wrong(c.target(e), err)
	}
	c.Job.files.Add(1)
	return nil
}

func (c *copying) content(ctx context.Context, e entry, part string) error {
	in, err := c.from.disk.Open(e.name)
	if err != nil {
		return &readError{err}
	}
	defer in.Close()
	out, err := c.to.disk.Create(part)
	if err != nil {
		return err
	}
	err = c.to.disk.Chmod(part, e.info.Mode().Perm()) // before there is anything to read in it
	if err == nil {
		err = pour(ctx, out, in, e.info.Size(), &c.bytes)
	}
	if closed := out.Close(); err == nil {
		err = closed // of a small file, a write's error comes with the close
	}
	if err != nil {
		return err
	}
	return c.to.disk.Chtimes(part, e.info.ModTime(), e.info.ModTime())
}

// Read writes the one source, a file, to w.
func (j *Job) Read(ctx context.Context, w io.Writer) error {
	from, err := j.From[0].source()
	if err != nil {
		return err
	}
	defer from.disk.Close()
	if !from.info.Mode().IsRegular() {
		return fmt.Errorf("%s is no file", from.says(from.name))
	}
	in, err := from.disk.Open(from.name)
	if err != nil {
		return from.wrong(from.name, err)
	}
	defer in.Close()
	j.allFiles.Store(1)
	j.allBytes.Store(from.info.Size())
	if err := pour(ctx, w, in, from.info.Size(), &j.bytes); err != nil {
		return from.wrong(from.name, err)
	}
	j.files.Add(1)
	return nil
}

// Write makes a file of what r has.
func (j *Job) Write(ctx context.Context, r io.Reader) error {
	to, err := j.To.target(spot{}, false)
	if err != nil {
		return err
	}
	defer to.disk.Close()
	j.allFiles.Store(1)
	err = to.put(to.name, func(part string) error {
		out, err := to.disk.Create(part)
		if err != nil {
			return err
		}
		err = pour(ctx, out, r, -1, &j.bytes)
		if closed := out.Close(); err == nil {
			err = closed
		}
		return err
	})
	if err != nil {
		return to.wrong(to.name, err)
	}
	j.files.Add(1)
	return nil
}

// each does one thing to many, some at a time, until one fails.
func each(ctx context.Context, all []entry, do func(i int, e entry) error) error {
	g, more := errgroup.WithContext(ctx)
	g.SetLimit(atOnce)
	for i, e := range all {
		if more.Err() != nil {
			break
		}
		g.Go(func() error { return do(i, e) })
	}
	if err := g.Wait(); err != nil {
		return err
	}
	return ctx.Err()
}
