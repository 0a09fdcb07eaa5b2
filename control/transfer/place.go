package transfer

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"github.com/pkg/sftp"
)

// Place is a file or folder as a person names it.
type Place struct {
	Path        string
	Environment string       // as the person calls it; empty: this machine
	Files       *sftp.Client // of the environment
}

// Parse reads PATH or ENV:PATH. A path of this machine with a colon is written
// as for scp: ./a:b.
func Parse(text string) Place {
	env, p, ok := strings.Cut(text, ":")
	if !ok || env == "" || strings.ContainsAny(env, `/\`) || env[0] == '.' {
		return Place{Path: filepath.ToSlash(text)}
	}
	if p = strings.TrimPrefix(p, "~/"); p == "" || p == "~" { // what has no slash in front begins at home
		p = "."
	}
	return Place{Path: p, Environment: env}
}

func (p Place) String() string { return p.says(p.Path) }

// says is how a person names a path of the place's machine.
func (p Place) says(path string) string {
	if p.Environment == "" {
		return path
	}
	return p.Environment + ":" + path
}

func (p Place) stat(name string) (fs.FileInfo, error) {
	if p.Files != nil {
		return p.Files.Stat(name)
	}
	return os.Stat(name)
}

// whole returns the path from the root of what is there, and not of a link.
func (p Place) whole(name string) (string, error) {
	if p.Files != nil {
		return p.farWhole(name)
	}
	name, err := filepath.Abs(name)
	if err == nil {
		name, err = filepath.EvalSymlinks(name)
	}
	return filepath.ToSlash(name), err
}

const maxLinks = 40 // as Linux

func (p Place) farWhole(name string) (string, error) {
	for range maxLinks {
		info, err := p.Files.Lstat(name)
		if err != nil {
			return "", err
		}
		if info.Mode().Type() != fs.ModeSymlink {
			return p.Files.RealPath(name)
		}
		to, err := p.Files.ReadLink(name)
		if err != nil {
			return "", err
		}
		if !path.IsAbs(to) {
			to = path.Join(path.Dir(name), to)
		}
		name = to
	}
	return "", syscall.ELOOP
}

// open returns a folder.
func (p Place) open(folder string) (disk, error) {
	if p.Files != nil {
		return remote{p.Files, folder}, nil
	}
	root, err := os.OpenRoot(folder)
	return local{root}, err
}

// spot is a place that was found.
type spot struct {
	place  Place
	disk   disk
	folder string      // that disk is
	name   string      // of the source or target in it
	called string      // what a copy of it is called in another folder; empty: as that folder
	info   fs.FileInfo // of a source
}

func (s spot) says(name string) string { return s.place.says(path.Join(s.folder, name)) }

// wrong says what a person can do with an error of name.
func (s spot) wrong(name string, err error) error {
	if err == nil {
		return nil
	}
	return wrong(s.says(name), err)
}

// source finds what is to be copied: a file in its folder, or a folder itself.
func (p Place) source() (spot, error) {
	info, err := p.stat(p.Path)
	if err != nil {
		return spot{}, wrong(p.String(), err)
	}
	whole, err := p.whole(p.Path)
	if err != nil {
		return spot{}, wrong(p.String(), err)
	}
	s := spot{place: p, folder: path.Dir(whole), name: path.Base(whole), called: path.Base(p.Path), info: info}
	if s.called == ".." {
		s.called = s.name
	}
	if info.IsDir() {
		s.folder, s.name = whole, "."
		if p.Path == "." || s.called == "/" || strings.HasSuffix(p.Path, "/.") {
			s.called = ""
		}
	}
	if s.disk, err = p.open(s.folder); err != nil {
		return spot{}, wrong(p.String(), err)
	}
	return s, nil
}

// target finds where from goes. One without info is a stream.
func (p Place) target(from spot, several bool) (s spot, err error) {
	s = spot{place: p}
	whole, err := p.whole(path.Clean(p.Path))
	info, statErr := p.stat(path.Clean(p.Path))
	folder := from.info != nil && from.info.IsDir()
	switch {
	case statErr == nil && err != nil:
		return s, wrong(p.String(), err)
	case statErr == nil && info.IsDir() && from.info == nil:
		return s, fmt.Errorf("%s is a folder; say what the file is to be called", p)
	case statErr == nil && info.IsDir():
		s.folder, s.name = whole, path.Join(".", from.called)
	case statErr == nil && !info.Mode().IsRegular():
		return s, fmt.Errorf("%s is no ordinary file; it is left as it is", p)
	case statErr == nil && (folder || several || strings.HasSuffix(p.Path, "/")):
		return s, fmt.Errorf("%s is a file; a folder is needed there", p)
	case statErr == nil:
		s.folder, s.name = path.Dir(whole), path.Base(whole)
	case !errors.Is(statErr, fs.ErrNotExist):
		return s, wrong(p.String(), statErr)
	case several || !folder && strings.HasSuffix(p.Path, "/"):
		return s, fmt.Errorf("%s: there is no such folder; make it first", p)
	default:
		s.folder, s.name = path.Dir(path.Clean(p.Path)), path.Base(p.Path)
		if _, err := p.stat(s.folder); err != nil {
			return s, fmt.Errorf("%s: there is no such folder; make it first", p.says(s.folder))
		}
	}
	if s.disk, err = p.open(s.folder); err != nil {
		return s, wrong(p.says(s.folder), err)
	}
	return s, nil
}

// put makes a file under another name first, and only one that is whole gets
// its own.
func (s spot) put(name string, fill func(part string) error) error {
	part := path.Join(path.Dir(name), ".rgcp-"+rand.Text())
	err := fill(part)
	if err == nil {
		err = s.disk.Rename(part, name)
	}
	if err != nil {
		_ = s.disk.Remove(part) // it may not be there
	}
	return err
}

// wrong says what is wrong with what a person calls name.
func wrong(name string, err error) error {
	text := err.Error()
	var status *sftp.StatusError
	var local *fs.PathError
	var link *os.LinkError
	switch {
	case errors.Is(err, sftp.ErrSSHFxConnectionLost):
		text = "the connection was lost; copy it again"
	case errors.As(err, &status):
		text = strings.TrimPrefix(text, "sftp: ")
		if quoted, unquoteErr := strconv.QuotedPrefix(text); unquoteErr == nil {
			text, _ = strconv.Unquote(quoted) // it is quoted
		}
		text = text[strings.LastIndex(text, ": ")+1:]
	case errors.Is(err, fs.ErrNotExist):
		text = "there is no such file or folder"
	case errors.Is(err, fs.ErrPermission):
		text = "permission denied"
	case errors.As(err, &local):
		text = local.Err.Error()
	case errors.As(err, &link):
		text = link.Err.Error()
	}
	if errors.Is(err, syscall.ENOSPC) || strings.Contains(text, syscall.ENOSPC.Error()) {
		text = "the disk is full; free some of it, or copy to another folder"
	}
	return &placeError{name + ": " + strings.TrimSpace(text), err}
}

// placeError is an error with a sentence for a person.
type placeError struct {
	text string
	error
}

func (e *placeError) Error() string { return e.text }

func (e *placeError) Unwrap() error { return e.error }
