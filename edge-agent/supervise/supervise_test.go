package supervise

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
	"time"
)

// The test program is its own supervisor, so that it can be killed.
func TestMain(m *testing.M) {
	if dir := os.Getenv("SUPERVISE_TEST_DIR"); dir != "" {
		if err := Run(context.Background(), testConfig(dir)); err != nil {
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

func testConfig(dir string) Config {
	socket := filepath.Join(dir, "c.sock")
	return Config{
		RunDir: filepath.Join(dir, "run"), LogDir: filepath.Join(dir, "log"), Socket: socket,
		Containerd: []string{"containerd", "--config", filepath.Join(dir, "none.toml"), "--address", socket, "--root", filepath.Join(dir, "root"), "--state", filepath.Join(dir, "state")},
		Agent:      []string{"sh", "-c", "echo hello; exec sleep 1000"},
	}
}

func wait(t *testing.T, what string, done func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := until(ctx, done); err != nil {
		t.Fatalf("%s: %v", what, err)
	}
}

// newDir returns a folder with a short path, for sockets, and config of a
// containerd that starts fast.
func newDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "sup")
	if err != nil {
		t.Fatal(err)
	}
	config := "version = 2\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n"
	if err := os.WriteFile(filepath.Join(dir, "none.toml"), []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := Stop(ctx, filepath.Join(dir, "run"), true); err != nil {
			t.Error(err)
		}
		os.RemoveAll(dir)
	})
	return dir
}

// begin runs a supervisor in this process and returns what ends it.
func begin(t *testing.T, cfg Config) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	cfg.Log = slog.New(slog.NewTextHandler(t.Output(), nil))
	go func() { done <- Run(ctx, cfg) }()
	stopped := false
	stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	t.Cleanup(stop)
	return stop
}

func child(cfg Config, name string) process {
	p, _ := readPid(filepath.Join(cfg.RunDir, name))
	return p
}

func TestKeepsBothAlive(t *testing.T) {
	if _, err := exec.LookPath("containerd"); err != nil || os.Getuid() != 0 {
		t.Skip("needs root and containerd")
	}
	cfg := testConfig(newDir(t))
	stop := begin(t, cfg)
	wait(t, "containerd answers", func() bool { return answers(cfg.Socket) })
	wait(t, "agent runs", func() bool { return child(cfg, agentPidFile).pid > 0 })
	if err := Run(t.Context(), cfg); !errors.Is(err, ErrRunning) {
		t.Errorf("second supervisor: %v", err)
	}
	if pid := Running(cfg.RunDir); pid != os.Getpid() {
		t.Errorf("Running is %d", pid)
	}
	for _, name := range []string{agentPidFile, containerdPidFile} {
		old := child(cfg, name)
		if group, err := syscall.Getpgid(old.pid); err != nil || group != old.pid {
			t.Errorf("%s: process group %d of pid %d, %v", name, group, old.pid, err)
		}
		syscall.Kill(old.pid, syscall.SIGKILL)
		wait(t, name+" is back", func() bool { p := child(cfg, name); return p.pid > 0 && p != old })
	}
	wait(t, "containerd answers again", func() bool { return answers(cfg.Socket) })

	agent, containerd := child(cfg, agentPidFile), child(cfg, containerdPidFile)
	stop()
	if agent.alive() || !containerd.alive() || !answers(cfg.Socket) {
		t.Errorf("after the end: agent lives %v, containerd lives %v", agent.alive(), containerd.alive())
	}
	begin(t, cfg)
	wait(t, "agent runs", func() bool { return child(cfg, agentPidFile).pid > 0 })
	if child(cfg, containerdPidFile) != containerd {
		t.Error("a containerd that answers was replaced")
	}
}

func TestAgentDoesNotOutliveItsSupervisor(t *testing.T) {
	dir := newDir(t)
	cfg := testConfig(dir)
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "SUPERVISE_TEST_DIR="+dir)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	wait(t, "agent runs", func() bool { return child(cfg, agentPidFile).pid > 0 })
	if Running(cfg.RunDir) != cmd.Process.Pid {
		t.Errorf("Running is %d", Running(cfg.RunDir))
	}
	agent := child(cfg, agentPidFile)
	cmd.Process.Kill()
	cmd.Wait()
	wait(t, "agent ends", func() bool { return !agent.alive() })
	if Running(cfg.RunDir) != 0 {
		t.Error("a dead supervisor counts as running")
	}
}

func TestStop(t *testing.T) {
	dir := newDir(t)
	cfg := testConfig(dir)
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "SUPERVISE_TEST_DIR="+dir)
	// Run ends by its context alone; here SIGTERM ends the process, and the
	// death signal its agent.
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go cmd.Wait()
	wait(t, "supervisor runs", func() bool { return Running(cfg.RunDir) == cmd.Process.Pid })
	for range 2 { // the second time there is nothing to stop
		if err := Stop(t.Context(), cfg.RunDir, true); err != nil {
			t.Fatal(err)
		}
	}
	if Running(cfg.RunDir) != 0 || answers(cfg.Socket) {
		t.Error("something still runs")
	}
}

func TestRotateFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x.log")
	f, err := openLog(filepath.Dir(path), "x.log")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for i := range 6 {
		if _, err := f.WriteString(strconv.Itoa(i) + "........."); err != nil {
			t.Fatal(err)
		}
		if err := rotateFile(path, 5); err != nil {
			t.Fatal(err)
		}
	}
	f.WriteString("end")
	for name, want := range map[string]string{"": "end", ".1": "5.........", ".2": "4.........", ".3": "3........."} {
		if got, _ := os.ReadFile(path + name); !bytes.Equal(got, []byte(want)) {
			t.Errorf("x.log%s holds %q, want %q", name, got, want)
		}
	}
	if _, err := os.Stat(path + ".4"); err == nil {
		t.Error("too many old logs")
	}
}
