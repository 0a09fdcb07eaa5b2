package transfer

import (
	"io"
	"io/fs"
	"os"
	"path"
	"time"

	"github.com/pkg/sftp"
)

// disk is a folder, and what is below it, of this machine or of an environment.
// Names are relative to it, with slashes.
type disk interface {
	Stat(name string) (fs.FileInfo, error)
	Lstat(name string) (fs.FileInfo, error)
	ReadDir(name string) ([]fs.FileInfo, error)
	Open(name string) (io.ReadCloser, error)
	Create(name string) (io.WriteCloser, error) // one that is not there yet
	Mkdir(name string) error
	Chmod(name string, mode fs.FileMode) error
	Chtimes(name string, atime, mtime time.Time) error
	Rename(from, to string) error // also onto a file
	Remove(name string) error
	Readlink(name string) (string, error)
	Symlink(target, name string) error
	Close() error
}

// local is a folder of this machine. What an environment says leads nowhere
// outside of it, also by a link that came from there.
type local struct{ *os.Root }

func (l local) ReadDir(name string) ([]fs.FileInfo, error) {
	f, err := l.Root.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return f.Readdir(-1)
}

func (l local) Open(name string) (io.ReadCloser, error) { return l.Root.Open(name) }

func (l local) Create(name string) (io.WriteCloser, error) {
	return l.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
}

func (l local) Mkdir(name string) error { return l.Root.Mkdir(name, 0o700) }

// remote is a folder of an environment.
type remote struct {
	*sftp.Client
	dir string
}

func (r remote) at(name string) string { return path.Join(r.dir, name) }

func (r remote) Stat(name string) (fs.FileInfo, error) { return r.Client.Stat(r.at(name)) }

func (r remote) Lstat(name string) (fs.FileInfo, error) { return r.Client.Lstat(r.at(name)) }

func (r remote) ReadDir(name string) ([]fs.FileInfo, error) { return r.Client.ReadDir(r.at(name)) }

func (r remote) Open(name string) (io.ReadCloser, error) { return r.Client.Open(r.at(name)) }

func (r remote) Create(name string) (io.WriteCloser, error) {
	return r.OpenFile(r.at(name), os.O_WRONLY|os.O_CREATE|os.O_EXCL)
}

func (r remote) Mkdir(name string) error { return r.Client.Mkdir(r.at(name)) }

func (r remote) Chmod(name string, mode fs.FileMode) error { return r.Client.Chmod(r.at(name), mode) }

func (r remote) Chtimes(name string, atime, mtime time.Time) error {
	return r.Client.Chtimes(r.at(name), atime, mtime)
}

func (r remote) Rename(from, to string) error { return r.PosixRename(r.at(from), r.at(to)) }

func (r remote) Remove(name string) error { return r.Client.Remove(r.at(name)) }

func (r remote) Readlink(name string) (string, error) { return r.ReadLink(r.at(name)) }

func (r remote) Symlink(target, name string) error { return r.Client.Symlink(target, r.at(name)) }

func (remote) Close() error { return nil } // the client is its owner's
