//go:build linux && cgo

package main

import (
	"encoding/json"
	"fmt"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/NVIDIA/go-nvml/pkg/nvml"
	"tags.cncf.io/container-device-interface/specs-go"

	"github.com/remotegpu/remotegpu/edge-agent/gpu/wire"
	"github.com/remotegpu/remotegpu/protocol"
)

// machineDriver is the driver of this machine; a test that needs one is
// skipped where there is none.
func machineDriver(t *testing.T) *driver {
	t.Helper()
	if _, err := os.Stat("/dev/nvidiactl"); err != nil {
		t.Skip("this machine has no NVIDIA driver (no /dev/nvidiactl): make gpu-check runs this on one that has")
	}
	t.Setenv("PATH", os.Getenv("PATH")+":"+localDir+"/bin")
	return newDriver(nvml.New(), "/")
}

// smi asks NVIDIA's own program for fields of every GPU.
func smi(t *testing.T, fields ...string) (gpus []map[string]string) {
	t.Helper()
	out, err := exec.Command("nvidia-smi", "--query-gpu="+strings.Join(fields, ","), "--format=csv,noheader,nounits").CombinedOutput()
	if err != nil {
		t.Fatalf("nvidia-smi: %v: %s", err, out)
	}
	for line := range strings.Lines(string(out)) {
		g := make(map[string]string)
		for i, value := range strings.Split(strings.TrimSpace(line), ", ") {
			g[fields[i]] = value
		}
		gpus = append(gpus, g)
	}
	return gpus
}

func show(t *testing.T, what string, v any) {
	t.Helper()
	body, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%s:\n%s", what, body)
}

func TestInventoryOfThisMachine(t *testing.T) {
	d := machineDriver(t)
	began := time.Now()
	reply := d.answer(&wire.Request{Op: wire.OpInventory})
	t.Logf("the first answer took %s", time.Since(began))
	if reply.Error != "" {
		t.Fatal(reply.Error)
	}
	show(t, "inventory", reply)
	want := smi(t, "index", "uuid", "name", "memory.total", "compute_cap", "enforced.power.limit", "pci.bus_id", "driver_version", "mig.mode.current")
	if len(want) != len(reply.GPUs) {
		t.Fatalf("nvidia-smi sees %d GPUs", len(want))
	}
	for i, g := range reply.GPUs {
		got := map[string]string{
			"index": strconv.Itoa(int(g.Index)), "uuid": g.UUID, "name": g.Name, "memory.total": strconv.Itoa(int(g.Memory >> 20)), "compute_cap": g.Capability,
			"enforced.power.limit": fmt.Sprintf("%.2f", g.PowerLimit), "pci.bus_id": "0000" + strings.ToUpper(g.PCI), "driver_version": reply.Driver.Version,
			"mig.mode.current": map[bool]string{true: "Enabled", false: "Disabled"}[g.MIG],
		}
		for field, value := range want[i] {
			if value != got[field] && !strings.Contains(value, "N/A") {
				t.Errorf("GPU %d: %s is %q, nvidia-smi says %q", i, field, got[field], value)
			}
		}
		for field, missing := range map[string]bool{
			"brand": g.Brand == "", "architecture": g.Architecture == "", "cores": g.CUDACores == 0, "temperature limit": g.TempLimit == 0, "CUDA": reply.Driver.CUDA == "",
		} {
			if missing {
				t.Errorf("GPU %d: its %s is unknown", i, field)
			}
		}
		if !g.Healthy {
			t.Errorf("GPU %d is unhealthy: %s", i, g.HealthMessage)
		}
	}
}

// TestSamplesOfThisMachine compares with nvidia-smi and says how long one takes.
func TestSamplesOfThisMachine(t *testing.T) {
	d := machineDriver(t)
	var took []time.Duration
	var reply *wire.Reply
	for range 200 {
		began := time.Now()
		reply = d.answer(&wire.Request{Op: wire.OpSample})
		took = append(took, time.Since(began))
		if reply.Error != "" {
			t.Fatal(reply.Error)
		}
	}
	first := took[0]
	slices.Sort(took)
	t.Logf("200 samples of %d GPU(s): first %s, p50 %s, p99 %s, longest %s", len(reply.Samples), first, took[100], took[198], took[199])
	show(t, "last sample", reply.Samples)
	if took[100] > time.Second {
		t.Errorf("a sample takes %s: the agent takes one every 5 s", took[100])
	}
	for i, want := range smi(t, "uuid", "memory.used", "temperature.gpu", "power.draw.instant", "clocks.sm", "clocks.mem", "utilization.gpu", "fan.speed") {
		t.Logf("nvidia-smi: %v", want)
		s := reply.Samples[i]
		if s.Usage.UUID != want["uuid"] || !s.Usage.Healthy {
			t.Errorf("GPU %d: %+v", i, s)
		}
		for field, c := range map[string]struct{ got, within float64 }{
			"memory.used":     {float64(s.Usage.MemoryUsed >> 20), 16},
			"temperature.gpu": {float64(s.Usage.Temperature), 5}, "power.draw.instant": {float64(s.Usage.PowerWatts), 100},
			"clocks.mem": {float64(s.ClockMemory), 50},
		} {
			if said, err := strconv.ParseFloat(want[field], 64); err == nil && math.Abs(said-c.got) > c.within {
				t.Errorf("GPU %d: %s is %g, nvidia-smi says %g", i, field, c.got, said)
			}
		}
	}
}

// TestSpecificationOfThisMachine checks that what containers get exists.
func TestSpecificationOfThisMachine(t *testing.T) {
	d := machineDriver(t)
	inventory := d.answer(&wire.Request{Op: wire.OpInventory})
	file := filepath.Join(t.TempDir(), "real.json")
	began := time.Now()
	if reply := d.answer(&wire.Request{Op: wire.OpCDI, CDIFile: file, Hook: "/usr/local/lib/remotegpu/remotegpu-nvml"}); reply.Error != "" {
		t.Fatal(reply.Error)
	}
	t.Logf("it took %s", time.Since(began))
	body, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%s", body)
	var spec specs.Spec
	if err := json.Unmarshal(body, &spec); err != nil {
		t.Fatal(err)
	}
	checkMachineSpec(t, &spec, inventory.GPUs)
}

func checkMachineSpec(t *testing.T, spec *specs.Spec, gpus []protocol.GPU) {
	t.Helper()
	named, files := make(map[string]bool), make(map[string]bool)
	for _, device := range append(spec.Devices, specs.Device{ContainerEdits: spec.ContainerEdits}) {
		named[device.Name] = true
		for _, node := range device.ContainerEdits.DeviceNodes {
			path := node.HostPath
			if path == "" {
				path = node.Path
			}
			files[filepath.Base(path)] = true
			if info, err := os.Stat(path); err != nil || info.Mode()&os.ModeCharDevice == 0 {
				t.Errorf("%s is no device: %v", path, err)
			}
		}
		for _, mount := range device.ContainerEdits.Mounts {
			name, _, _ := strings.Cut(filepath.Base(mount.HostPath), ".so")
			files[name] = true
			if _, err := os.Stat(mount.HostPath); err != nil {
				t.Error(err)
			}
		}
	}
	for _, g := range gpus {
		if !named[g.UUID] {
			t.Errorf("%s is not in it", g.UUID)
		}
	}
	for _, name := range []string{"nvidiactl", "nvidia-uvm", "libcuda", "libnvidia-ml", "libnvidia-ptxjitcompiler", "nvidia-smi"} {
		if !files[name] {
			t.Errorf("containers do not get %s", name)
		}
	}
}
