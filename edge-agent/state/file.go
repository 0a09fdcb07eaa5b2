package state

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/remotegpu/remotegpu/protocol"
)

// maxFile bounds what is read back, in bytes.
const maxFile = 2 * protocol.MaxDocument

// errUnreadable is wrapped when the disk does not give a file's content.
var errUnreadable = errors.New("file cannot be read")

// replace writes a file whole or not at all: temporary file, fsync, rename,
// fsync of the folder. On an error the old file is still there.
func replace(dir, name string, content []byte) error {
	err := replaceFile(dir, name, content)
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return fmt.Errorf("the disk that holds %s is full, %s stays as it was: free some space there: %w", dir, name, err)
	}
	return err
}

func replaceFile(dir, name string, content []byte) error {
	f, err := os.CreateTemp(dir, "."+name+".*") // mode 0600
	if err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	_, err = f.Write(content)
	if err == nil {
		err = f.Sync()
	}
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	if err == nil {
		err = os.Rename(f.Name(), filepath.Join(dir, name))
	}
	if err != nil {
		os.Remove(f.Name())
		return fmt.Errorf("write %s: %w", name, err)
	}
	return syncDir(dir)
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("open %s: %w", dir, err)
	}
	defer d.Close()
	if err := d.Sync(); err != nil {
		return fmt.Errorf("sync %s: %w", dir, err)
	}
	return nil
}

// read returns a file's content; ok is false if there is none.
func read(dir, name string) (content []byte, ok bool, err error) {
	path := filepath.Join(dir, name)
	stat, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, false, nil
	}
	if err == nil && stat.Size() > maxFile {
		return nil, true, fmt.Errorf("it has %d bytes, more than the %d that can be", stat.Size(), maxFile)
	}
	if err == nil {
		content, err = os.ReadFile(path)
	}
	if err != nil {
		return nil, false, fmt.Errorf("%w: %w", errUnreadable, err)
	}
	return content, true, nil
}

// keepAside is how many damaged files of one name are kept.
const keepAside = 3

// moveAside renames a damaged file, so that somebody can look at it later, and
// returns its new path. The last few are kept under their own time.
func moveAside(dir, name string) (string, error) {
	from := filepath.Join(dir, name)
	to := fmt.Sprintf("%s.corrupt.%s", from, time.Now().UTC().Format("20060102T150405.000000000"))
	if err := os.Rename(from, to); err != nil {
		return "", fmt.Errorf("move damaged %s aside: %w", name, err)
	}
	kept, err := filepath.Glob(from + ".corrupt*")
	if err != nil {
		return "", fmt.Errorf("look for damaged files: %w", err)
	}
	for _, oldest := range kept[:max(0, len(kept)-keepAside)] { // Glob sorts
		os.Remove(oldest) // one that stays harms nobody
	}
	return to, nil
}
