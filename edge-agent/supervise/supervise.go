// Package supervise keeps the agent and containerd alive on machines without
// systemd.
//
// It owns the two processes, their logs and pid files. It knows nothing of
// what they do. Its invariants: at most one supervisor per run folder; a
// containerd that answers is left alone, whoever started it; when the
// supervisor ends, by a signal or by kill -9, the agent ends with it, while
// containerd and every container run on.
package supervise

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Names in the run folder.
const (
	pidFile           = "supervise.pid" // locked while the supervisor lives
	agentPidFile      = "agent.pid"
	containerdPidFile = "containerd.pid"
)

const (
	poll      = 50 * time.Millisecond // while waiting for a process that is no child
	stopAgent = 8 * time.Second       // between SIGTERM and SIGKILL
)

// ErrRunning says that the run folder has a supervisor already.
var ErrRunning = errors.New("a supervisor runs already")

// Config says what to keep alive. All but Log is required.
type Config struct {
	RunDir     string
	LogDir     string
	Socket     string   // containerd's
	Containerd []string // command, run only while nothing answers on Socket
	Agent      []string // command
	Log        *slog.Logger
}

// Run keeps both alive until ctx ends; then it stops the agent.
func Run(ctx context.Context, cfg Config) error {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	for _, dir := range []string{cfg.RunDir, cfg.LogDir, filepath.Dir(cfg.Socket)} {
		if err := os.MkdirAll(dir, 0o711); err != nil {
			return fmt.Errorf("make folder: %w", err)
		}
	}
	lock, err := take(cfg.RunDir)
	if err != nil {
		return err
	}
	defer lock.Close()
	var all sync.WaitGroup
	all.Go(func() { keepAgent(ctx, cfg) })
	all.Go(func() { keepContainerd(ctx, cfg) })
	all.Go(func() { rotate(ctx, cfg) })
	all.Wait()
	return lock.Truncate(0)
}

// take makes this process the supervisor of a run folder.
func take(runDir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(runDir, pidFile), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, fmt.Errorf("open pid file: %w", err)
	}
	// Whoever asks Running holds the lock for a moment too.
	err = syscall.EWOULDBLOCK
	for range 10 {
		if err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err == nil {
			break
		}
		time.Sleep(poll)
	}
	if err != nil {
		f.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, ErrRunning
		}
		return nil, fmt.Errorf("lock pid file: %w", err)
	}
	if err = f.Truncate(0); err == nil {
		_, err = f.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0)
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("write pid file: %w", err)
	}
	return f, nil
}

// Running returns the pid of a run folder's supervisor, 0 if there is none.
func Running(runDir string) int {
	f, err := os.Open(filepath.Join(runDir, pidFile))
	if err != nil {
		return 0
	}
	defer f.Close()
	if syscall.Flock(int(f.Fd()), syscall.LOCK_SH|syscall.LOCK_NB) == nil {
		return 0 // nobody holds it; closing gives it back
	}
	raw, err := os.ReadFile(f.Name())
	if err != nil {
		return 0
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(raw)))
	if err != nil {
		return 0
	}
	return pid
}

// Stop ends the supervisor of a run folder and its agent, and with containerd
// true also the containerd that it started. What does not run is no error.
func Stop(ctx context.Context, runDir string, containerd bool) error {
	if pid := Running(runDir); pid > 0 {
		if err := syscall.Kill(pid, syscall.SIGTERM); err != nil && !errors.Is(err, syscall.ESRCH) {
			return fmt.Errorf("stop the supervisor (pid %d): %w", pid, err)
		}
		if err := until(ctx, func() bool { return Running(runDir) != pid }); err != nil {
			return fmt.Errorf("wait for the supervisor (pid %d): %w", pid, err)
		}
	}
	if !containerd {
		return nil
	}
	p, ok := readPid(filepath.Join(runDir, containerdPidFile))
	if !ok {
		return nil
	}
	if err := p.signal(syscall.SIGTERM); err != nil {
		return fmt.Errorf("stop containerd (pid %d): %w", p.pid, err)
	}
	if err := until(ctx, func() bool { return !p.alive() }); err != nil {
		return fmt.Errorf("wait for containerd (pid %d): %w", p.pid, err)
	}
	return os.Remove(filepath.Join(runDir, containerdPidFile))
}

func until(ctx context.Context, done func() bool) error {
	tick := time.NewTicker(poll)
	defer tick.Stop()
	for !done() {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
	return nil
}
