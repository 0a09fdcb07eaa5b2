//go:build linux && cgo

package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/NVIDIA/go-nvml/pkg/nvml"
	"github.com/NVIDIA/go-nvml/pkg/nvml/mock/gpus"
	"github.com/NVIDIA/go-nvml/pkg/nvml/mock/server"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
	"tags.cncf.io/container-device-interface/specs-go"

	"github.com/remotegpu/remotegpu/edge-agent/gpu/wire"
	"github.com/remotegpu/remotegpu/protocol"
)

func send(w io.Writer, op string) error { return wire.Write(w, &wire.Request{ID: 1, Op: op}) }

func ask(w io.Writer, r io.Reader, op string) error {
	if err := send(w, op); err != nil {
		return err
	}
	return wire.Read(r, new(wire.Reply))
}

// mockDriver is a driver with n H100s at one NVSwitch, in an own root.
func mockDriver(t *testing.T, n int) (*driver, []*server.Device) {
	t.Helper()
	all := make([]gpus.Config, n)
	for i := range all {
		all[i] = gpus.H100_SXM5_80GB
	}
	s, err := server.New(server.WithGPUs(all...), server.WithDriverVersion("570.124.06"), server.WithCUDADriverVersion(12080))
	if err != nil {
		t.Fatal(err)
	}
	root := t.TempDir()
	var devices []*server.Device
	for i, d := range s.Devices {
		device := d.(*server.Device)
		tell(device, i)
		dir := filepath.Join(root, "sys/bus/pci/devices", fmt.Sprintf("0000:%02x:00.0", 0x10+i))
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "numa_node"), fmt.Appendf(nil, "%d\n", i%2), 0o644); err != nil {
			t.Fatal(err)
		}
		devices = append(devices, device)
	}
	return newDriver(s, root), devices
}

// tell lets a mock device answer what the library's own mock does not.
func tell(d *server.Device, i int) {
	d.GetEnforcedPowerLimitFunc = func() (uint32, nvml.Return) { return 700_000, nvml.SUCCESS }
	d.GetTemperatureThresholdFunc = func(nvml.TemperatureThresholds) (uint32, nvml.Return) { return 87, nvml.SUCCESS }
	d.GetPciInfoFunc = func() (nvml.PciInfo, nvml.Return) { return pciInfo(i), nvml.SUCCESS }
	d.GetNumGpuCoresFunc = func() (int, nvml.Return) { return 16896, nvml.SUCCESS }
	d.GetRemappedRowsFunc = func() (int, int, bool, bool, nvml.Return) { return 0, 0, false, false, nvml.SUCCESS }
	d.GetNvLinkStateFunc = func(link int) (nvml.EnableState, nvml.Return) {
		if link >= 18 {
			return 0, nvml.ERROR_INVALID_ARGUMENT
		}
		return nvml.FEATURE_ENABLED, nvml.SUCCESS
	}
	d.GetNvLinkRemoteDeviceTypeFunc = func(int) (nvml.IntNvLinkDeviceType, nvml.Return) {
		return nvml.NVLINK_DEVICE_TYPE_SWITCH, nvml.SUCCESS
	}
	d.IsMigDeviceHandleFunc = func() (bool, nvml.Return) { return false, nvml.SUCCESS }
	d.GetMaxMigDeviceCountFunc = func() (int, nvml.Return) { return 0, nvml.SUCCESS }
}

func pciInfo(i int) nvml.PciInfo {
	info := nvml.PciInfo{Bus: uint32(0x10 + i)}
	for k, c := range fmt.Sprintf("00000000:%02X:00.0", 0x10+i) {
		info.BusId[k] = int8(c)
	}
	return info
}

func inventory(t *testing.T, d *driver) []protocol.GPU {
	t.Helper()
	reply := d.answer(&wire.Request{Op: wire.OpInventory})
	if reply.Error != "" {
		t.Fatal(reply.Error)
	}
	if err := reply.Validate(); err != nil {
		t.Fatal(err)
	}
	return reply.GPUs
}

func TestInventory(t *testing.T) {
	d, devices := mockDriver(t, 4)
	got := inventory(t, d)
	want := protocol.GPU{
		Index: 3, UUID: devices[3].UUID, Name: "NVIDIA H100 80GB HBM3", Brand: "NVIDIA", Architecture: "Hopper", Memory: 80 * 1024 << 20, CUDACores: 16896,
		Capability: "9.0", PowerLimit: 700, TempLimit: 87, NUMANode: 1, PCI: "0000:13:00.0", Links: []uint32{18, 18, 18, 0}, Healthy: true,
	}
	if diff := cmp.Diff(want, got[3]); diff != "" {
		t.Error(diff)
	}
}

func TestGPUsJoinedInPairs(t *testing.T) {
	d, devices := mockDriver(t, 4)
	for i, device := range devices {
		device.GetNvLinkStateFunc = func(link int) (nvml.EnableState, nvml.Return) {
			if link >= 4 {
				return 0, nvml.ERROR_NOT_SUPPORTED
			}
			if link == 1 {
				return nvml.FEATURE_DISABLED, nvml.SUCCESS
			}
			return nvml.FEATURE_ENABLED, nvml.SUCCESS
		}
		device.GetNvLinkRemoteDeviceTypeFunc = func(int) (nvml.IntNvLinkDeviceType, nvml.Return) { return nvml.NVLINK_DEVICE_TYPE_GPU, nvml.SUCCESS }
		device.GetNvLinkRemotePciInfoFunc = func(int) (nvml.PciInfo, nvml.Return) { return pciInfo(i ^ 1), nvml.SUCCESS }
	}
	var links [][]uint32
	for _, g := range inventory(t, d) {
		links = append(links, g.Links)
	}
	if diff := cmp.Diff([][]uint32{{0, 3, 0, 0}, {3, 0, 0, 0}, {0, 0, 0, 3}, {0, 0, 3, 0}}, links); diff != "" {
		t.Error(diff)
	}
}

func TestOneLostGPUDoesNotHideTheOthers(t *testing.T) {
	d, devices := mockDriver(t, 3)
	devices[1].GetUUIDFunc = func() (string, nvml.Return) { return "", nvml.ERROR_GPU_IS_LOST }
	got := inventory(t, d)
	if len(got) != 2 || got[1].Index != 2 || !got[1].Healthy || !slices.Equal(got[1].Links, []uint32{18, 0, 0}) {
		t.Errorf("%+v", got)
	}
}

func TestHealth(t *testing.T) {
	for name, c := range map[string]struct {
		change  func(*server.Device)
		healthy bool
		message string
	}{
		"MIG":     {func(d *server.Device) { d.MigMode = nvml.DEVICE_MIG_ENABLE }, false, "nvidia-smi -i 0 -mig 0"},
		"failed":  {rows(false, true), false, "have the GPU repaired"},
		"pending": {rows(true, false), true, "reboot the host"},
	} {
		t.Run(name, func(t *testing.T) {
			d, devices := mockDriver(t, 1)
			c.change(devices[0])
			got := inventory(t, d)[0]
			if got.Healthy != c.healthy || !strings.Contains(got.HealthMessage, c.message) {
				t.Errorf("%v, %q", got.Healthy, got.HealthMessage)
			}
		})
	}
}

func rows(pending, failed bool) func(*server.Device) {
	return func(d *server.Device) {
		d.GetRemappedRowsFunc = func() (int, int, bool, bool, nvml.Return) { return 1, 1, pending, failed, nvml.SUCCESS }
	}
}

func TestWhyNVMLDoesNotStart(t *testing.T) {
	for ret, want := range map[nvml.Return]string{
		nvml.ERROR_LIBRARY_NOT_FOUND:       "not installed",
		nvml.ERROR_DRIVER_NOT_LOADED:       "not loaded",
		nvml.ERROR_LIB_RM_VERSION_MISMATCH: "reboot the host",
		nvml.ERROR_NO_PERMISSION:           "as root",
		nvml.ERROR_UNKNOWN:                 "run nvidia-smi",
	} {
		d, _ := mockDriver(t, 1)
		d.lib.(*server.Server).InitFunc = func() nvml.Return { return ret }
		if got := d.answer(&wire.Request{Op: wire.OpInventory}).Error; !strings.Contains(got, want) {
			t.Errorf("%d: %q, want %q", ret, got, want)
		}
	}
	d, _ := mockDriver(t, 1)
	if got := d.answer(&wire.Request{Op: "dance"}).Error; !strings.Contains(got, `unknown operation "dance"`) {
		t.Error(got)
	}
}

func TestServeStopsAtGarbage(t *testing.T) {
	answer := func(*wire.Request) *wire.Reply { return new(wire.Reply) }
	err := serve(strings.NewReader("GET / HTTP/1.1\r\n\r\n"), io.Discard, answer, func(int) { t.Error("exit") })
	if err == nil || !strings.Contains(err.Error(), "read request") {
		t.Error(err)
	}
	code := -1
	if err := serve(new(bytes.Buffer), io.Discard, answer, func(c int) { code = c }); err != nil || code != 0 {
		t.Errorf("at the end of input: %v, exit %d", err, code)
	}
}

// TestCDI makes device nodes as the driver does; only root may.
func TestCDI(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root makes device nodes")
	}
	d, devices := mockDriver(t, 2)
	for path, minor := range map[string]uint32{"dev/nvidia0": 0, "dev/nvidia1": 1, "dev/nvidiactl": 255, "dev/nvidia-uvm": 0} {
		path = filepath.Join(d.root, path)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := unix.Mknod(path, unix.S_IFCHR|0o666, int(unix.Mkdev(195, minor))); err != nil {
			t.Fatal(err)
		}
	}
	libs := filepath.Join(d.root, "usr/lib/x86_64-linux-gnu")
	if err := os.MkdirAll(libs, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, lib := range []string{"libcuda.so.570.124.06", "libnvidia-ml.so.570.124.06"} {
		if err := os.WriteFile(filepath.Join(libs, lib), []byte("\x7fELF"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	file := filepath.Join(t.TempDir(), "cdi", "remotegpu-nvidia.json")
	reply := d.answer(&wire.Request{Op: wire.OpCDI, CDIFile: file, Hook: "/usr/local/lib/remotegpu/remotegpu-nvml"})
	if reply.Error != "" {
		t.Fatal(reply.Error)
	}
	body, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var spec specs.Spec
	if err := json.Unmarshal(body, &spec); err != nil {
		t.Fatal(err)
	}
	checkSpec(t, &spec, devices)
}

// TestUVMIsLoaded by the driver's program, and what is said when it is not.
func TestUVMIsLoaded(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("PATH", dir+":/usr/bin:/bin")
	device := filepath.Join(dir, "nvidia-uvm")
	if err := loadUVM(device); err == nil || !strings.Contains(err.Error(), "nvidia-modprobe -c 0 -u") {
		t.Errorf("without the program: %v", err)
	}
	program := "#!/bin/sh\n[ \"$*\" = '-c 0 -u' ] && touch " + device + "\n"
	if err := os.WriteFile(filepath.Join(dir, "nvidia-modprobe"), []byte(program), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := loadUVM(device); err != nil {
		t.Error(err)
	}
}

func checkSpec(t *testing.T, spec *specs.Spec, devices []*server.Device) {
	t.Helper()
	if spec.Kind != "nvidia.com/gpu" || len(spec.Devices) != 2 {
		t.Fatalf("%s with %d devices", spec.Kind, len(spec.Devices))
	}
	nodes := make(map[string]string)
	for _, device := range spec.Devices {
		nodes[device.Name] = device.ContainerEdits.DeviceNodes[0].Path
		if hooks := device.ContainerEdits.Hooks; len(hooks) > 0 {
			t.Errorf("%s has a hook: %v", device.Name, hooks[0].Args)
		}
	}
	if diff := cmp.Diff(map[string]string{devices[0].UUID: "/dev/nvidia0", devices[1].UUID: "/dev/nvidia1"}, nodes); diff != "" {
		t.Error(diff)
	}
	var mounts []string
	for _, m := range spec.ContainerEdits.Mounts {
		mounts = append(mounts, filepath.Base(m.ContainerPath))
	}
	if !slices.Contains(mounts, "libcuda.so.570.124.06") {
		t.Errorf("libcuda is not mounted: %v", mounts)
	}
	var hooks []string
	for _, h := range spec.ContainerEdits.Hooks {
		if h.Path != "/usr/local/lib/remotegpu/remotegpu-nvml" || h.Args[0] != "remotegpu-nvml" {
			t.Errorf("hook %s %v is not this program's", h.Path, h.Args)
		}
		hooks = append(hooks, h.Args[1])
	}
	if !slices.Contains(hooks, "update-ldcache") || !slices.Contains(hooks, "create-symlinks") {
		t.Errorf("hooks %v", hooks)
	}
}
