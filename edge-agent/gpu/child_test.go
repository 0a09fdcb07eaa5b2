package gpu

import (
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/remotegpu/remotegpu/edge-agent/gpu/wire"
	"github.com/remotegpu/remotegpu/protocol"
)

// The test binary is also the child: fakeChild writes a script that starts it
// with FAKE_CHILD set.
func TestMain(m *testing.M) {
	if behaviour := os.Getenv("FAKE_CHILD"); behaviour != "" {
		playChild(behaviour, os.Getenv("FAKE_DIR"))
		return
	}
	os.Exit(m.Run())
}

var quick = patience{start: 30 * time.Second, answer: 2 * time.Second, first: 10 * time.Millisecond, most: 50 * time.Millisecond, refresh: 50 * time.Millisecond}

// fakeChild returns a running source whose child behaves so. Its folder has a
// line in "starts" per start, and obeys a file "behaviour" if there is one.
func fakeChild(t *testing.T, behaviour string, wait patience) (*child, string) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	script := fmt.Sprintf("#!/bin/sh\nFAKE_CHILD=%s FAKE_DIR=%s exec %s \"$@\"\n", behaviour, dir, self)
	program := filepath.Join(dir, "nvml")
	syscall.ForkLock.RLock() // a parallel test's child must not inherit the open file: it could not be executed
	err = os.WriteFile(program, []byte(script), 0o755)
	syscall.ForkLock.RUnlock()
	if err != nil {
		t.Fatal(err)
	}
	c := startChild(t.Context(), Config{NVMLProgram: program, CDIDir: dir, Every: 10 * time.Millisecond, Log: slog.New(slog.DiscardHandler)}, wait)
	t.Cleanup(func() { c.Close() })
	return c, dir
}

// playChild is what runs in the child.
func playChild(behaviour, dir string) {
	note(dir, "starts", "start\n")
	note(dir, "pids", fmt.Sprintln(os.Getpid()))
	if behaviour == "noisy" {
		for range 10_000 {
			fmt.Fprintln(os.Stderr, strings.Repeat("noise ", 100))
		}
	}
	for n := 1; ; n++ {
		var r wire.Request
		if err := wire.Read(os.Stdin, &r); err != nil {
			os.Exit(0)
		}
		now := behaviour
		if b, err := os.ReadFile(filepath.Join(dir, "behaviour")); err == nil {
			now = string(b)
		}
		misbehave(now, r)
		reply := fakeReply(now, r)
		if err := wire.Write(os.Stdout, reply); err != nil {
			os.Exit(0)
		}
		if r.Op == wire.OpCDI {
			note(dir, "cdi", r.CDIFile+" "+r.Hook+"\n")
		}
	}
}

// misbehave returns only when the behaviour has an answer.
func misbehave(behaviour string, r wire.Request) {
	switch behaviour {
	case "crash":
		os.Exit(139)
	case "hang":
		time.Sleep(time.Hour)
	case "stubborn": // no signal but SIGKILL ends it
		signal.Ignore(syscall.SIGTERM, syscall.SIGINT, syscall.SIGPIPE, syscall.SIGHUP)
		time.Sleep(time.Hour)
	case "crash-at-cdi":
		if r.Op == wire.OpCDI {
			os.Exit(139)
		}
	case "garbage":
		fmt.Fprint(os.Stdout, "Segmentation fault\n")
		os.Exit(1)
	case "huge":
		os.Stdout.Write([]byte{0xff, 0xff, 0xff, 0xff})
		time.Sleep(time.Hour)
	case "half":
		os.Stdout.Write([]byte{0, 0, 1, 0, 0xa1})
		time.Sleep(time.Hour)
	case "flood":
		for {
			if _, err := io.Copy(os.Stdout, strings.NewReader(strings.Repeat("\x00\x00\x00\x03\xa1\x01\x00", 10_000))); err != nil {
				os.Exit(1)
			}
		}
	case "wrong-id":
		_ = wire.Write(os.Stdout, &wire.Reply{ID: r.ID + 1})
	}
}

func fakeReply(behaviour string, r wire.Request) *wire.Reply {
	reply := &wire.Reply{ID: r.ID, Driver: Driver{Version: "570.1", CUDA: "12.8"}}
	count := 2
	switch {
	case behaviour == "no-driver":
		return &wire.Reply{ID: r.ID, Error: "the NVIDIA driver is not installed: install it"}
	case behaviour == "no-cdi" && r.Op == wire.OpCDI:
		return &wire.Reply{ID: r.ID, Error: "disk full"}
	case behaviour == "one-lost":
		count = 1
	case behaviour == "updated":
		reply.Driver.Version = "580.1"
	}
	for i := range count {
		uuid := fmt.Sprintf("GPU-%d", i)
		switch r.Op {
		case wire.OpInventory:
			reply.GPUs = append(reply.GPUs, protocol.GPU{Index: uint32(i), UUID: uuid, Name: "Fake", Healthy: true})
		case wire.OpSample:
			reply.Samples = append(reply.Samples, Sample{Usage: protocol.GPUUsage{UUID: uuid, Utilisation: 50, Healthy: true}})
		}
	}
	return reply
}

func note(dir, name, line string) {
	f, err := os.OpenFile(filepath.Join(dir, name), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		panic(err)
	}
	defer f.Close()
	fmt.Fprint(f, line)
}

func count(dir, name string) int {
	b, _ := os.ReadFile(filepath.Join(dir, name))
	return strings.Count(string(b), "\n")
}

// behave changes what the child does from its next request on.
func behave(t *testing.T, dir, behaviour string) {
	t.Helper()
	temp := filepath.Join(dir, "behaviour.new")
	if err := os.WriteFile(temp, []byte(behaviour), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(temp, filepath.Join(dir, "behaviour")); err != nil {
		t.Fatal(err)
	}
}

// eventually polls, because the child is another process; it fails after a minute.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(time.Minute)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("not within a minute: %s", what)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func health(t *testing.T, c *child) (healthy []bool) {
	t.Helper()
	gpus, _, _ := c.Inventory(t.Context())
	for _, g := range gpus {
		healthy = append(healthy, g.Healthy)
		if g.Healthy == (g.HealthMessage != "") {
			t.Errorf("healthy %v with message %q", g.Healthy, g.HealthMessage)
		}
	}
	return healthy
}

func TestChildAnswers(t *testing.T) {
	c, dir := fakeChild(t, "good", quick)
	gpus, driver, err := c.Inventory(t.Context())
	if err != nil || driver.Version != "570.1" || len(gpus) != 2 || !gpus[1].Healthy {
		t.Fatalf("%+v, %+v, %v", gpus, driver, err)
	}
	eventually(t, "samples", func() bool { s, err := c.Sample(t.Context()); return err == nil && len(s) == 2 })
	samples, _ := c.Sample(t.Context())
	if samples[1].Usage.UUID != "GPU-1" || !samples[1].Usage.Healthy || samples[1].Usage.Utilisation != 50 {
		t.Errorf("%+v", samples)
	}
	cdi, err := os.ReadFile(filepath.Join(dir, "cdi"))
	if want := filepath.Join(dir, cdiFile) + " " + c.cfg.NVMLProgram + "\n"; err != nil || string(cdi) != want {
		t.Errorf("CDI asked for %q (%v), want %q", cdi, err, want)
	}
}

func TestChildFailsFromTheStart(t *testing.T) {
	for behaviour, want := range map[string]string{
		"crash":     "the NVML process ended",
		"garbage":   "over the limit",
		"huge":      "over the limit",
		"half":      "did not answer",
		"hang":      "did not answer",
		"flood":     "the NVML process answered request 0, asked was 1",
		"wrong-id":  "the NVML process answered request 2, asked was 1",
		"no-driver": "the NVIDIA driver is not installed: install it",
	} {
		t.Run(behaviour, func(t *testing.T) {
			t.Parallel()
			wait := quick
			if behaviour == "hang" || behaviour == "half" {
				wait.start = 5 * time.Second // and a good one starts in it
			}
			c, dir := fakeChild(t, behaviour, wait)
			gpus, driver, err := c.Inventory(t.Context())
			if err == nil || !strings.Contains(err.Error(), want) || len(gpus) != 0 || driver != (Driver{}) {
				t.Errorf("%v, %v, %v; want %q", gpus, driver, err, want)
			}
			eventually(t, "another try", func() bool { return count(dir, "starts") > 1 })
			behave(t, dir, "good")
			eventually(t, "recovery", func() bool { _, _, err := c.Inventory(t.Context()); return err == nil })
			if diff := cmp.Diff([]bool{true, true}, health(t, c)); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestChildFailsLater(t *testing.T) {
	for _, behaviour := range []string{"crash", "garbage", "huge", "half", "hang", "stubborn", "flood", "wrong-id", "no-driver"} {
		t.Run(behaviour, func(t *testing.T) {
			t.Parallel()
			c, dir := fakeChild(t, "good", quick)
			if _, _, err := c.Inventory(t.Context()); err != nil {
				t.Fatal(err)
			}
			behave(t, dir, behaviour)
			eventually(t, "failure", func() bool { _, _, err := c.Inventory(t.Context()); return err != nil })
			if diff := cmp.Diff([]bool{false, false}, health(t, c)); diff != "" {
				t.Error("the last known GPUs stay, unhealthy:", diff)
			}
			if samples, err := c.Sample(t.Context()); err == nil || len(samples) != 2 || samples[0].Usage.Healthy || samples[0].Usage.Utilisation != 0 {
				t.Errorf("samples %+v, %v", samples, err)
			}
			behave(t, dir, "good")
			eventually(t, "recovery", func() bool { _, _, err := c.Inventory(t.Context()); return err == nil })
			if diff := cmp.Diff([]bool{true, true}, health(t, c)); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestChildNeverBlocksItsCallers(t *testing.T) {
	wait := quick
	wait.answer = time.Hour
	c, dir := fakeChild(t, "good", wait)
	if _, _, err := c.Inventory(t.Context()); err != nil {
		t.Fatal(err)
	}
	behave(t, dir, "hang")
	began := time.Now()
	for range 1000 {
		_, _, _ = c.Inventory(t.Context())
		_, _ = c.Sample(t.Context())
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	if took := time.Since(began); took > 30*time.Second {
		t.Errorf("callers waited %s for a child that hangs", took)
	}
}

func TestChildEndsWithItsSource(t *testing.T) {
	c, dir := fakeChild(t, "good", quick)
	if _, _, err := c.Inventory(t.Context()); err != nil {
		t.Fatal(err)
	}
	behave(t, dir, "stubborn")
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(filepath.Join(dir, "pids"))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		var pid int
		fmt.Sscan(line, &pid)
		if err := syscall.Kill(pid, 0); err != syscall.ESRCH {
			t.Errorf("child %d lives on: %v", pid, err)
		}
	}
}

func TestChildIsKilledFromOutside(t *testing.T) {
	c, dir := fakeChild(t, "good", quick)
	if _, _, err := c.Inventory(t.Context()); err != nil {
		t.Fatal(err)
	}
	b, _ := os.ReadFile(filepath.Join(dir, "pids"))
	var pid int
	fmt.Sscan(string(b), &pid)
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	eventually(t, "a second child", func() bool { _, _, err := c.Inventory(t.Context()); return err == nil && count(dir, "starts") == 2 })
}

func TestLostGPUStaysUnhealthyBesideTheOthers(t *testing.T) {
	c, dir := fakeChild(t, "good", quick)
	if _, _, err := c.Inventory(t.Context()); err != nil {
		t.Fatal(err)
	}
	behave(t, dir, "one-lost")
	eventually(t, "one GPU lost", func() bool { return cmp.Equal(health(t, c), []bool{true, false}) })
	gpus, _, err := c.Inventory(t.Context())
	if err != nil || !strings.Contains(gpus[1].HealthMessage, "reboot the host") {
		t.Errorf("%q, %v", gpus[1].HealthMessage, err)
	}
	eventually(t, "its sample", func() bool {
		s, _ := c.Sample(t.Context())
		return len(s) == 2 && s[0].Usage.Healthy && !s[1].Usage.Healthy
	})
	behave(t, dir, "good")
	eventually(t, "it is back", func() bool { return cmp.Equal(health(t, c), []bool{true, true}) })
}

func TestCDIIsWrittenAnewWhenTheDriverChanges(t *testing.T) {
	c, dir := fakeChild(t, "good", quick)
	if _, _, err := c.Inventory(t.Context()); err != nil {
		t.Fatal(err)
	}
	behave(t, dir, "updated")
	eventually(t, "the new driver", func() bool { _, d, _ := c.Inventory(t.Context()); return d.Version == "580.1" })
	if n := count(dir, "cdi"); n != 2 {
		t.Errorf("written %d times for two drivers", n)
	}
}

func TestGPUsThatContainersCannotGetAreUnhealthy(t *testing.T) {
	c, _ := fakeChild(t, "no-cdi", quick)
	gpus, _, err := c.Inventory(t.Context())
	if err != nil || len(gpus) != 2 || gpus[0].Healthy || gpus[0].HealthMessage != "containers cannot get it: disk full" {
		t.Errorf("%+v, %v", gpus, err)
	}
}

func TestChildThatCrashesOverCDIStillTellsItsGPUs(t *testing.T) {
	c, dir := fakeChild(t, "crash-at-cdi", quick)
	gpus, driver, _ := c.Inventory(t.Context())
	if len(gpus) != 2 || gpus[0].Healthy || driver.Version != "570.1" {
		t.Errorf("%+v, %+v", gpus, driver)
	}
	behave(t, dir, "good")
	eventually(t, "recovery", func() bool { return cmp.Equal(health(t, c), []bool{true, true}) })
}

func TestNoisyChildStillAnswers(t *testing.T) {
	c, _ := fakeChild(t, "noisy", quick)
	if _, _, err := c.Inventory(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestMissingProgramIsOneSentence(t *testing.T) {
	c := openTest(t, Config{Spec: "nvml", NVMLProgram: "/nowhere/remotegpu-nvml"})
	_, _, err := c.Inventory(t.Context())
	if err == nil || !strings.Contains(err.Error(), "install the agent again") {
		t.Error(err)
	}
}
