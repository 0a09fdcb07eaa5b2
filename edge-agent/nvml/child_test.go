//go:build linux && cgo

package main

import (
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/NVIDIA/go-nvml/pkg/nvml"

	"github.com/remotegpu/remotegpu/edge-agent/gpu"
)

// The test binary is also the program: with NVML_TEST set it runs main.
func TestMain(m *testing.M) {
	if os.Getenv("NVML_TEST") != "" {
		main()
		return
	}
	os.Exit(m.Run())
}

// program returns a path that starts this program, in an environment that the
// agent does not hand down.
func program(t *testing.T) string {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "remotegpu-nvml")
	if err := os.WriteFile(path, []byte("#!/bin/sh\nNVML_TEST=1 exec "+self+" \"$@\"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

// fakeLibrary builds testdata/libnvidia-ml.c and puts it where the child looks first.
func fakeLibrary(t *testing.T, fault string) {
	t.Helper()
	dir := t.TempDir()
	buildLibrary(t, dir, fault)
	t.Setenv("LD_LIBRARY_PATH", dir)
}

func buildLibrary(t *testing.T, dir, fault string) {
	t.Helper()
	build := exec.Command("gcc", "-shared", "-fPIC", "-DFAULT="+fault, "-o", filepath.Join(dir, "libnvidia-ml.so.1"), "testdata/libnvidia-ml.c")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
}

func open(t *testing.T) gpu.Source {
	t.Helper()
	source, err := gpu.Open(t.Context(), gpu.Config{
		Spec: "nvml", NVMLProgram: program(t), CDIDir: t.TempDir(), Every: 10 * time.Millisecond, Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { source.Close() })
	return source
}

// eventually polls another process; it fails after 30 s.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(30 * time.Second)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("not within 30 s: %s", what)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func TestWithoutDriverTheReasonIsClear(t *testing.T) {
	if _, err := os.Stat("/dev/nvidiactl"); err == nil {
		t.Skip("this machine has a driver")
	}
	gpus, _, err := open(t).Inventory(t.Context())
	if err == nil || !strings.Contains(err.Error(), "the NVIDIA driver is not installed (libnvidia-ml.so.1 was not found): install it") || len(gpus) != 0 {
		t.Errorf("%v, %v", gpus, err)
	}
}

func TestDriverOutsideOfTheSystemsFolders(t *testing.T) {
	if _, err := os.Stat("/dev/nvidiactl"); err == nil {
		t.Skip("this machine has a driver, which comes first")
	}
	if os.Getenv("ALONE") == "" { // the library stays in the process
		again := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$")
		again.Env = append(os.Environ(), "ALONE=1")
		if out, err := again.CombinedOutput(); err != nil {
			t.Errorf("%v: %s", err, out)
		}
		return
	}
	d := newDriver(nvml.New(), t.TempDir())
	dir := filepath.Join(d.root, localDir, "lib64")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	buildLibrary(t, dir, "0")
	if got := inventory(t, d); len(got) != 2 {
		t.Errorf("%d GPUs", len(got))
	}
	if got := libraryDirs(); !slices.Equal(got, []string{dir}) {
		t.Errorf("containers get the libraries in %v, want %s", got, dir)
	}
}

func TestVeryOldDriver(t *testing.T) {
	fakeLibrary(t, "0")
	source := open(t)
	gpus, driver, err := source.Inventory(t.Context())
	if err != nil || driver != (gpu.Driver{Version: "390.157", CUDA: "9.1"}) || len(gpus) != 2 {
		t.Fatalf("%+v, %+v, %v", gpus, driver, err)
	}
	g := gpus[1]
	if g.Index != 1 || g.UUID != "GPU-00000001-0000-4000-8000-000000000000" || g.Name != "Tesla K80" || g.Brand != "Tesla" || g.Memory != 12<<30 ||
		g.Capability != "3.7" || g.PowerLimit != 149 || g.TempLimit != 88 || g.PCI != "0000:85:00.0" || g.NUMANode != -1 {
		t.Errorf("%+v", g)
	}
	if g.Healthy || !strings.HasPrefix(g.HealthMessage, "containers cannot get it: ") {
		t.Errorf("a GPU without device nodes: healthy %v, %q", g.Healthy, g.HealthMessage)
	}
	eventually(t, "samples", func() bool { s, _ := source.Sample(t.Context()); return len(s) == 2 })
	samples, _ := source.Sample(t.Context())
	s := samples[0]
	if s.Usage.Utilisation != 42 || s.Usage.MemoryUsed != 1<<20 || s.Usage.Temperature != 61 || s.Usage.PowerWatts != 60.5 || s.Fan != 0 ||
		s.ClockSM != 875 || s.ClockMemory != 2505 {
		t.Errorf("%+v", s)
	}
}

func TestDriverThatCrashes(t *testing.T) {
	fakeLibrary(t, "1")
	source := open(t)
	if _, _, err := source.Inventory(t.Context()); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the crash", func() bool {
		_, _, err := source.Inventory(t.Context())
		return err != nil && strings.Contains(err.Error(), "the NVML process ended while asked for sample")
	})
	gpus, _, _ := source.Inventory(t.Context())
	if len(gpus) != 2 || gpus[0].Healthy {
		t.Errorf("%+v", gpus)
	}
}

func TestDriverThatHangsIsNoBarToClosing(t *testing.T) {
	fakeLibrary(t, "2")
	source := open(t)
	if _, _, err := source.Inventory(t.Context()); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	if err := source.Close(); err != nil || time.Since(began) > 15*time.Second {
		t.Errorf("%v after %s", err, time.Since(began))
	}
}

func TestChildOfADeadAgentEndsInsideAHangingCall(t *testing.T) {
	fakeLibrary(t, "2")
	child := exec.Command(program(t), "serve")
	stdin, err := child.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := child.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	if err := ask(stdin, stdout, "inventory"); err != nil {
		t.Fatal(err)
	}
	if err := send(stdin, "sample"); err != nil {
		t.Fatal(err)
	}
	stdin.Close()
	ended := make(chan error, 1)
	go func() { ended <- child.Wait() }()
	select {
	case err := <-ended:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(30 * time.Second):
		child.Process.Kill()
		t.Error("it outlives its agent")
	}
}

func TestLostGPU(t *testing.T) {
	fakeLibrary(t, "3")
	source := open(t)
	if _, _, err := source.Inventory(t.Context()); err != nil {
		t.Fatal(err)
	}
	eventually(t, "samples", func() bool {
		s, _ := source.Sample(t.Context())
		return len(s) == 2 && !s[1].Usage.Healthy && s[0].Usage.Temperature == 61
	})
}

func TestHookProgramOfTheSpecification(t *testing.T) {
	out, err := exec.Command(program(t), "create-symlinks", "--help").CombinedOutput()
	if err != nil || !strings.Contains(string(out), "--link") {
		t.Errorf("%v: %s", err, out)
	}
	if out, err := exec.Command(program(t), "hook-of-a-later-version").CombinedOutput(); err != nil {
		t.Errorf("an unknown hook keeps the container from starting: %v: %s", err, out)
	}
}
