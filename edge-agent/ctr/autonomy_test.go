package ctr

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/remotegpu/remotegpu/edge-agent/reconcile"
	"github.com/remotegpu/remotegpu/protocol"
)

// agent is a loop over a real runtime, as the agent runs it.
type agent struct {
	*host
	loop *reconcile.Loop
	stop func()
	gen  uint64
	last []protocol.Workload
}

func newAgent(h *host) *agent {
	a := &agent{host: h}
	a.begin()
	return a
}

func (a *agent) begin() {
	a.loop = reconcile.New(reconcile.Config{Runtime: a.Runtime, Log: a.cfg.Log})
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() { a.loop.Run(ctx); close(ended) }()
	a.stop = func() { cancel(); <-ended }
}

// restart is a new agent process: nothing in memory is left.
func (a *agent) restart() {
	a.stop()
	a.Runtime.Close()
	next, err := New(a.cfg)
	a.do(err)
	a.Runtime = next
	a.begin()
	a.loop.Apply(&protocol.Desired{Version: 1, Generation: a.gen, Workloads: a.last})
}

func (a *agent) apply(ws ...protocol.Workload) {
	a.gen++
	a.last = ws
	a.loop.Apply(&protocol.Desired{Version: 1, Generation: a.gen, Workloads: ws})
}

// reach waits for a phase of a workload.
func (a *agent) reach(id, phase, message string) (found protocol.WorkloadStatus) {
	a.t.Helper()
	end := time.Now().Add(time.Minute)
	for {
		for _, s := range a.loop.Statuses() {
			if s.ID == id {
				found = s
			}
		}
		if found.Phase == phase && strings.Contains(found.Message, message) {
			return found
		}
		if time.Now().After(end) {
			a.t.Fatalf("%s is %+v, want phase %s with message %q", id, found, phase, message)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// birth is when a process began, in clock ticks since boot.
func birth(t *testing.T, pid uint32) string {
	t.Helper()
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		t.Fatal(err)
	}
	return strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))[19]
}

func ticker(id string) protocol.Workload {
	return shell("[ -f /been ] && echo again; echo > /been; while :; do echo tick; sleep 0.2; done", func(w *protocol.Workload) {
		w.ID, w.Name, w.Restart = id, id, protocol.RestartAlways
	})
}

// TestAutonomy takes everything around a container away, one after the other.
func TestAutonomy(t *testing.T) {
	dir, err := os.MkdirTemp(scratch, "autonomy")
	if err != nil {
		t.Fatal(err)
	}
	d := newDaemon(dir)
	d.start()
	t.Cleanup(func() { d.stop() })
	a := newAgent(newHost(t, d))
	t.Cleanup(func() { a.stop() })
	a.apply(ticker("env_a"))
	first := a.reach("env_a", protocol.PhaseRunning, "")
	born := birth(t, first.Pid)
	same := func(what string) {
		t.Helper()
		if s := a.reach("env_a", protocol.PhaseRunning, ""); s.Pid != first.Pid || s.StartedAt != first.StartedAt || s.Restarts != 0 || birth(t, s.Pid) != born {
			t.Fatalf("after %s: %+v, want pid %d untouched", what, s, first.Pid)
		}
	}

	a.restart()
	same("a new agent")

	d.kill()
	a.reach("env_a", protocol.PhaseRunning, "containerd does not answer")
	lines := strings.Count(a.output(), "tick")
	a.until("the log goes on without containerd", func() bool { return strings.Count(a.output(), "tick") > lines })
	a.apply(ticker("env_a"), ticker("env_b")) // asked for meanwhile
	a.reach("env_b", protocol.PhasePending, "containerd does not answer")
	d.start()
	a.ready()
	begun := time.Now()
	a.reach("env_b", protocol.PhaseRunning, "")
	if took := time.Since(begun); took > 10*time.Second {
		t.Errorf("env_b came %v after containerd", took)
	}
	same("kill -9 of containerd")
	a.until("the document is applied", func() bool { return a.loop.Applied() == a.gen })

	// It dies while nobody looks.
	a.stop()
	d.kill()
	syscall.Kill(int(first.Pid), syscall.SIGKILL)
	d.start()
	a.restart()
	a.until("it runs anew", func() bool {
		s := a.reach("env_a", protocol.PhaseRunning, "")
		return s.Restarts == 1 && s.Pid != first.Pid && *s.ExitCode == 137
	})

	a.reboot(d)
	a.until("it is back after a reboot", func() bool { return a.reach("env_a", protocol.PhaseRunning, "").Restarts == 2 })
	a.reach("env_b", protocol.PhaseRunning, "")
	a.until("its files are there", func() bool { return strings.Count(a.output(), "again") == 2 })

	a.apply()
	a.until("the host is empty", func() bool {
		have, err := a.Observe(t.Context())
		return err == nil && len(have.Containers)+len(have.Leftovers) == 0 && a.loop.Applied() == a.gen && len(a.loop.Statuses()) == 0
	})
	if left := shims(t, d); len(left) != 0 {
		t.Errorf("shims %v stay", left)
	}
	for _, dir := range []string{"/sys/fs/cgroup/memory/remotegpu/env_a", "/sys/fs/cgroup/remotegpu/env_a"} {
		if _, err := os.Stat(dir); err == nil {
			t.Errorf("cgroup %s stays", dir)
		}
	}
}

// TestBadCommandIsExplained follows a command that the image lacks to where a
// person looks.
func TestBadCommandIsExplained(t *testing.T) {
	a := newAgent(newHost(t, shared))
	t.Cleanup(func() { a.stop() })
	a.apply(shell("", func(w *protocol.Workload) { w.Command = []string{"no-such-program"} }))
	s := a.reach("env_a", protocol.PhaseExited, "was not found in the image")
	if s.ExitCode == nil || *s.ExitCode != 127 || !strings.Contains(a.output(), "no-such-program") {
		t.Errorf("status %+v, log %q", s, a.output())
	}
}

// reboot ends every process and forgets what lies on a tmpfs, as a reboot does.
func (a *agent) reboot(d *daemon) {
	a.stop()
	d.kill()
	for _, pid := range shims(a.t, d) {
		syscall.Kill(pid, syscall.SIGKILL)
	}
	for _, s := range a.loop.Statuses() {
		syscall.Kill(int(s.Pid), syscall.SIGKILL)
	}
	for _, dir := range []string{filepath.Join(d.dir, "state"), a.cfg.RunDir} {
		for _, m := range mountsUnder(a.t, dir) {
			syscall.Unmount(m, syscall.MNT_DETACH)
		}
		a.do(os.RemoveAll(dir))
	}
	d.start()
	a.restart()
}

// shims are the processes that hold the daemon's containers.
func shims(t *testing.T, d *daemon) (pids []int) {
	t.Helper()
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		line, _ := os.ReadFile(f)
		args := strings.Split(string(line), "\x00")
		if strings.HasSuffix(args[0], "containerd-shim-runc-v2") && strings.Contains(string(line), d.socket()) {
			pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(f)))
			pids = append(pids, pid)
		}
	}
	return pids
}

// mountsUnder are the mount points in dir.
func mountsUnder(t *testing.T, dir string) (points []string) {
	t.Helper()
	table, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range strings.Split(string(table), "\n") {
		if f := strings.Fields(line); len(f) > 1 && within(f[1], dir) {
			points = append(points, f[1])
		}
	}
	return points
}
