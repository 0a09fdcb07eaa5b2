package supervise

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"
	"time"
)

// Delays between restarts: random below a limit that doubles.
const (
	firstLimit  = 500 * time.Millisecond
	lastLimit   = 30 * time.Second
	stableAfter = time.Minute // a run this long clears the limit
)

// lookEvery is how often a containerd that is not our child is looked after.
const lookEvery = 2 * time.Second

// pause is how long to wait before the next start of something that ended.
type pause struct{ limit time.Duration }

func (p *pause) after(lived time.Duration) time.Duration {
	if lived > stableAfter || p.limit == 0 {
		p.limit = firstLimit
	}
	d := rand.N(p.limit)
	p.limit = min(2*p.limit, lastLimit)
	return d
}

func sleep(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// keepAgent starts the agent again whenever it ends.
func keepAgent(ctx context.Context, cfg Config) {
	// The kernel sends the death signal when the thread that forked ends.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var wait pause
	for ctx.Err() == nil {
		begun := time.Now()
		err := runAgent(ctx, cfg)
		if ctx.Err() != nil {
			return
		}
		d := wait.after(time.Since(begun))
		cfg.Log.Warn("agent ended and is started again", "err", err, "wait", d)
		sleep(ctx, d)
	}
}

// runAgent is one life of the agent.
func runAgent(ctx context.Context, cfg Config) error {
	cmd := command(cfg.Agent)
	cmd.SysProcAttr.Pdeathsig = syscall.SIGTERM
	if err := start(cmd, cfg, agentLog, agentPidFile); err != nil {
		return err
	}
	cfg.Log.Info("agent started", "pid", cmd.Process.Pid)
	over := make(chan struct{})
	defer close(over)
	go func() {
		select {
		case <-over:
			return
		case <-ctx.Done():
			cmd.Process.Signal(syscall.SIGTERM)
		}
		select {
		case <-over:
		case <-time.After(stopAgent):
			syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		}
	}()
	err := cmd.Wait()
	os.Remove(filepath.Join(cfg.RunDir, agentPidFile))
	return err
}

// command makes a process of its own group and session.
func command(args []string) *exec.Cmd {
	cmd := exec.Command(args[0], args[1:]...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	cmd.Dir = "/"
	return cmd
}

func start(cmd *exec.Cmd, cfg Config, logName, pidName string) error {
	out, err := openLog(cfg.LogDir, logName)
	if err != nil {
		return err
	}
	defer out.Close() // the child has its own
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start %s: %w", cmd.Path, err)
	}
	if err := writePid(filepath.Join(cfg.RunDir, pidName), cmd.Process.Pid); err != nil {
		cfg.Log.Warn("pid file not written", "err", err)
	}
	return nil
}

// keepContainerd starts containerd while nothing answers on its socket and the
// one that was started before is gone. It never stops it.
func keepContainerd(ctx context.Context, cfg Config) {
	var wait pause
	for ctx.Err() == nil {
		if _, ours := readPid(filepath.Join(cfg.RunDir, containerdPidFile)); ours || answers(cfg.Socket) {
			sleep(ctx, lookEvery)
			continue
		}
		begun := time.Now()
		err := runContainerd(ctx, cfg)
		if ctx.Err() != nil {
			return
		}
		d := wait.after(time.Since(begun))
		cfg.Log.Warn("containerd ended and is started again", "err", err, "wait", d)
		sleep(ctx, d)
	}
}

// runContainerd returns when containerd ends or ctx does, whichever is first.
func runContainerd(ctx context.Context, cfg Config) error {
	cmd := command(cfg.Containerd)
	if err := start(cmd, cfg, containerdLog, containerdPidFile); err != nil {
		return err
	}
	cfg.Log.Info("containerd started", "pid", cmd.Process.Pid)
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	select {
	case err := <-ended:
		return err
	case <-ctx.Done():
		return nil
	}
}

func answers(socket string) bool {
	conn, err := net.DialTimeout("unix", socket, time.Second)
	if err != nil {
		return false
	}
	conn.Close()
	return true
}
