package supervise

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"
)

// Names and sizes in the log folder.
const (
	agentLog      = "agent.log"
	containerdLog = "containerd.log"
	maxLog        = 10 << 20 // bytes; larger ones are put aside
	keepLogs      = 3        // old ones, .1 is the youngest
	rotateEvery   = time.Minute
)

// openLog opens a log for a child, which writes to the file itself: it must be
// able to go on without the supervisor.
func openLog(dir, name string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, name), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open log: %w", err)
	}
	return f, nil
}

func rotate(ctx context.Context, cfg Config) {
	for ctx.Err() == nil {
		for _, name := range []string{agentLog, containerdLog} {
			if err := rotateFile(filepath.Join(cfg.LogDir, name), maxLog); err != nil {
				cfg.Log.Warn("log is not rotated", "err", err)
			}
		}
		sleep(ctx, rotateEvery)
	}
}

// rotateFile copies a large log aside and empties it. Its writers append, so
// they go on at the new end; what they write in between is lost.
func rotateFile(path string, most int64) error {
	stat, err := os.Stat(path)
	if err != nil || stat.Size() <= most {
		return nil
	}
	for i := keepLogs - 1; i > 0; i-- {
		from := fmt.Sprintf("%s.%d", path, i)
		if _, err := os.Stat(from); err == nil {
			if err := os.Rename(from, fmt.Sprintf("%s.%d", path, i+1)); err != nil {
				return fmt.Errorf("put old log aside: %w", err)
			}
		}
	}
	err = copyFile(path, path+".1")
	if truncateErr := os.Truncate(path, 0); err == nil {
		err = truncateErr // also after a copy that failed: the disk may be full
	}
	return err
}

func copyFile(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return fmt.Errorf("copy log: %w", err)
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("copy log: %w", err)
	}
	_, err = io.Copy(out, in)
	if closeErr := out.Close(); err == nil {
		err = closeErr
	}
	if err != nil {
		return fmt.Errorf("copy log: %w", err)
	}
	return nil
}
