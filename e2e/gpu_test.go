package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

const gpuImage = srvAddr + ":8443/default/gpu:1"

// gpuSource is where the GPUs of a test for GPU machines come from. Without a
// driver it is skipped, unless RG_GPU_SOURCE names simulated ones: then what
// only a driver can prove is.
func gpuSource(t *testing.T) (source string, real bool) {
	t.Helper()
	if source = os.Getenv("RG_GPU_SOURCE"); source != "" {
		return source, !strings.HasPrefix(source, "sim:")
	}
	if _, err := os.Stat("/dev/nvidiactl"); err != nil {
		t.Skip("this machine has no NVIDIA driver (no /dev/nvidiactl): make gpu-check runs this on one that has")
	}
	return "auto", true
}

// TestGPU is the main job on a machine with real GPUs: join, environment,
// shell, and a program that computes there.
func TestGPU(t *testing.T) {
	source, real := gpuSource(t)
	w := newWorld(t)
	p, m := w.newPlane(), w.machine()
	t.Cleanup(func() { m.dump(t) })
	p.login()
	p.pushGPURoot()
	t.Log(p.join(m, "--name box --gpu-source "+source))
	gpus := p.gpus()
	if len(gpus) == 0 {
		t.Fatal("the host has no GPUs")
	}
	all := strconv.Itoa(len(gpus))
	w.in("client", "remotegpu env create one --gpus "+all+" --image "+gpuImage)
	ssh := p.sshKey() + " one.default@" + srvAddr

	t.Run("computes", func(t *testing.T) {
		if !real {
			t.Skip("simulated GPUs do not compute")
		}
		out := w.in("client", ssh+" 'PATH=$PATH:/usr/local/nvidia/bin; nvidia-smi; nvidia-smi -L; vectoradd'")
		t.Logf("in the environment:\n%s", out)
		for _, g := range gpus {
			if !strings.Contains(out, g.UUID) {
				t.Errorf("nvidia-smi does not see %s", g.UUID)
			}
		}
		if !strings.Contains(out, "sums on "+gpus[0].Name+" are right") {
			t.Error("it does not compute")
		}
	})
	t.Run("no GPU without asking", func(t *testing.T) {
		w.in("client", "remotegpu env create none --image "+gpuImage)
		none := strings.Replace(ssh, " one.default", " none.default", 1)
		out, err := w.try("client", none+" 'ls /dev; vectoradd'")
		t.Logf("in the environment:\n%s", out)
		if err == nil || strings.Contains(out, "nvidia") {
			t.Errorf("an environment that asked for none has a GPU: %v", err)
		}
	})
	t.Run("no GPU twice", func(t *testing.T) {
		out, _ := w.try("client", "timeout 5 remotegpu env create two --gpus 1 --image "+gpuImage)
		e := p.env("two")
		t.Logf("%s\n%s: %s", out, e.Phase, e.Message)
		if e.Phase != "pending" || !strings.Contains(e.Message, "GPU") {
			t.Errorf("it is %s: %q", e.Phase, e.Message)
		}
	})
	for name, signal := range map[string]syscall.Signal{"a crash of NVML": syscall.SIGKILL, "a hang of NVML": syscall.SIGSTOP} {
		t.Run(name, func(t *testing.T) {
			if !real {
				t.Skip("simulated GPUs have no NVML")
			}
			childReturns(t, p, m, signal)
		})
	}
	t.Run("given back", func(t *testing.T) {
		w.in("client", "remotegpu env rm one")
		p.waitPhase("two", "running", time.Minute)
	})
}

// childReturns ends or stops the process that talks to the driver. The agent
// and the container live on, and another process takes its place.
func childReturns(t *testing.T, p *plane, m *machine, signal syscall.Signal) {
	agent, child, container := m.pidOf(t, "remotegpu-agent run"), m.pidOf(t, "remotegpu-nvml serve"), p.env("one").Pid
	if err := syscall.Kill(child, signal); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	eventually(t, time.Minute, "another process asks the driver", func() (string, bool) {
		now := m.running([]string{"remotegpu-nvml serve"})
		return fmt.Sprintf("they are %v", now), len(now) == 1 && now[0] != child
	})
	t.Logf("another one after %s", time.Since(began))
	eventually(t, time.Minute, "the GPUs are healthy", func() (string, bool) {
		gpus := p.gpus()
		for _, g := range gpus {
			if g.Health != "healthy" {
				return g.Health + ": " + g.HealthMessage, false
			}
		}
		return "no GPUs", len(gpus) > 0
	})
	t.Logf("healthy after %s", time.Since(began))
	if now := m.pidOf(t, "remotegpu-agent run"); now != agent {
		t.Errorf("the agent was %d and is %d", agent, now)
	}
	if e := p.env("one"); e.Pid != container || e.Phase != "running" {
		t.Errorf("the container was %d and is %d, %s", container, e.Pid, e.Phase)
	}
}

// pushGPURoot pushes an image that holds nothing of NVIDIA's and can compute.
func (p *plane) pushGPURoot() {
	p.w.t.Helper()
	root := filepath.Join(p.w.dir, "gpuroot")
	p.w.must("../edge-agent/ctr/testdata/gpuroot.sh", root)
	p.push(root, "gpu")
}

type hostGPU struct {
	UUID, Name, Health string
	HealthMessage      string `json:"health_message"`
}

// gpus are the GPUs of the host box.
func (p *plane) gpus() []hostGPU {
	p.w.t.Helper()
	out := p.w.in("client", "remotegpu host show box")
	var host struct{ GPUs []hostGPU }
	if err := json.Unmarshal([]byte(out), &host); err != nil {
		p.w.t.Fatalf("%v: %s", err, out)
	}
	return host.GPUs
}
