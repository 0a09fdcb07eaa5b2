package gpu

import (
	"context"
	"encoding/json"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	oci "github.com/opencontainers/runtime-spec/specs-go"
	"tags.cncf.io/container-device-interface/pkg/cdi"

	"github.com/remotegpu/remotegpu/protocol"
)

func openTest(t *testing.T, cfg Config) Source {
	t.Helper()
	if cfg.CDIDir == "" {
		cfg.CDIDir = t.TempDir()
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	s, err := Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func TestOpenRefusesWordsItDoesNotKnow(t *testing.T) {
	for spec, want := range map[string]string{
		"cuda":            `unknown GPU source "cuda"`,
		"sim:":            "as in sim:8xH100",
		"sim:8":           "as in sim:8xH100",
		"sim:0xH100":      "as in sim:8xH100",
		"sim:-1xH100":     "as in sim:8xH100",
		"sim:8xVoodoo":    "choose one of A100, B200, H100, H200, L40S, RTX4090, T4",
		"sim:60xT4,5xT4":  "at most 64",
		"sim:8xH100,,1x4": "as in sim:8xH100",
	} {
		_, err := Open(t.Context(), Config{Spec: spec, CDIDir: t.TempDir()})
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("Open(%q): %v, want %q", spec, err, want)
		}
	}
}

func TestNoneHasNoGPUs(t *testing.T) {
	s := openTest(t, Config{Spec: "none"})
	gpus, driver, err := s.Inventory(t.Context())
	if len(gpus) != 0 || driver != (Driver{}) || err != nil {
		t.Errorf("none has %v, %v, %v", gpus, driver, err)
	}
}

func TestAutoFindsTheDriver(t *testing.T) {
	root := t.TempDir()
	if driverPresent(root) {
		t.Error("an empty root has a driver")
	}
	lib := filepath.Join(root, "usr/lib/x86_64-linux-gnu")
	if err := os.MkdirAll(lib, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(lib, "libnvidia-ml.so.1"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if !driverPresent(root) {
		t.Error("the driver's library is not seen")
	}
}

func TestSimulatedInventory(t *testing.T) {
	s := openTest(t, Config{Spec: "sim:4xH100,2xA100,1xt4", Seed: "a"})
	gpus, driver, err := s.Inventory(t.Context())
	if err != nil || driver.Version == "" || driver.CUDA == "" {
		t.Fatalf("driver %v, err %v", driver, err)
	}
	inventory := protocol.Inventory{GPUs: gpus}
	if err := inventory.Validate(); err != nil {
		t.Fatal(err)
	}
	var names []string
	for i, g := range gpus {
		names = append(names, g.Name)
		if g.Index != uint32(i) || !g.Healthy || g.HealthMessage != "simulated" || g.Memory == 0 || g.Capability == "" {
			t.Errorf("GPU %d: %+v", i, g)
		}
	}
	want := []string{
		"NVIDIA H100 80GB HBM3", "NVIDIA H100 80GB HBM3", "NVIDIA H100 80GB HBM3", "NVIDIA H100 80GB HBM3",
		"NVIDIA A100-SXM4-80GB", "NVIDIA A100-SXM4-80GB", "Tesla T4",
	}
	if diff := cmp.Diff(want, names); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]uint32{18, 0, 18, 18, 0, 0, 0}, gpus[1].Links); diff != "" {
		t.Error("NVLink of an H100:", diff)
	}
	if gpus[6].Links != nil {
		t.Error("a T4 has NVLink")
	}
	if gpus[0].NUMANode != 0 || gpus[6].NUMANode != 1 {
		t.Errorf("NUMA nodes %d and %d", gpus[0].NUMANode, gpus[6].NUMANode)
	}
}

func TestSimulatedUUIDsGrowFromTheSeed(t *testing.T) {
	uuids := func(seed string) (list []string) {
		gpus, _, _ := openTest(t, Config{Spec: "sim:8xL40S", Seed: seed}).Inventory(t.Context())
		for _, g := range gpus {
			list = append(list, g.UUID)
		}
		return list
	}
	a, again, b := uuids("a"), uuids("a"), uuids("b")
	if diff := cmp.Diff(a, again); diff != "" {
		t.Error("one seed, two hosts:", diff)
	}
	seen := map[string]bool{}
	for _, uuid := range append(a, b...) {
		if seen[uuid] {
			t.Errorf("%s twice", uuid)
		}
		seen[uuid] = true
	}
}

func TestSimulatedSamplesMoveWithinLimits(t *testing.T) {
	s := openTest(t, Config{Spec: "sim:1xRTX4090,1xH100"}).(*simulation)
	at := time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC)
	s.now = func() time.Time { return at }
	loads := map[float32]bool{}
	for range 1000 {
		at = at.Add(time.Second)
		samples, err := s.Sample(t.Context())
		if err != nil || len(samples) != 2 {
			t.Fatal(samples, err)
		}
		for i, sample := range samples {
			g, u := s.gpus[i], sample.Usage
			if u.UUID != g.UUID || !u.Healthy || u.Utilisation < 0 || u.Utilisation > 100 || u.MemoryUsed > g.Memory ||
				u.PowerWatts > g.PowerLimit || u.Temperature < 20 || u.Temperature > g.TempLimit {
				t.Fatalf("sample out of limits: %+v", sample)
			}
			loads[u.Utilisation] = true
		}
	}
	if len(loads) < 20 {
		t.Errorf("only %d different loads in 1000 s", len(loads))
	}
}

func TestSimulatedGPUsReachAContainer(t *testing.T) {
	dir := t.TempDir()
	var uuids []string
	for _, seed := range []string{"a", "b"} { // two hosts on one machine
		gpus, _, _ := openTest(t, Config{Spec: "sim:2xH100", Seed: seed, CDIDir: dir}).Inventory(t.Context())
		uuids = append(uuids, gpus[1].UUID)
	}
	cache, err := cdi.NewCache(cdi.WithSpecDirs(dir))
	if err != nil {
		t.Fatal(err)
	}
	for _, uuid := range uuids {
		spec := &oci.Spec{}
		if missing, err := cache.InjectDevices(spec, CDIName(uuid)); err != nil {
			t.Fatal(missing, err, cache.GetErrors())
		}
		device := spec.Linux.Devices[0]
		if device.Path != "/dev/nvidia1" || device.Major != 1 || device.Minor != 3 {
			t.Errorf("device %+v is not /dev/null under another name", device)
		}
	}
	if err := RemoveCDI(dir); err != nil {
		t.Fatal(err)
	}
	if left, _ := os.ReadDir(dir); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
	if err := RemoveCDI(filepath.Join(dir, "missing")); err != nil {
		t.Error(err)
	}
}

func TestCDIFileIsLeftAloneWhenItSaysTheSame(t *testing.T) {
	dir := t.TempDir()
	openTest(t, Config{Spec: "sim:1xT4", Seed: "a", CDIDir: dir})
	files, _ := filepath.Glob(dir + "/*.json")
	before, err := os.Stat(files[0])
	if err != nil {
		t.Fatal(err)
	}
	openTest(t, Config{Spec: "sim:1xT4", Seed: "a", CDIDir: dir})
	after, _ := os.Stat(files[0])
	if !os.SameFile(before, after) {
		t.Error("the file was written again")
	}
	body, _ := os.ReadFile(files[0])
	if !json.Valid(body) {
		t.Errorf("not JSON: %s", body)
	}
}

func TestInventoryIsACopy(t *testing.T) {
	s := openTest(t, Config{Spec: "sim:2xH100"})
	first, _, _ := s.Inventory(context.Background())
	first[0].Name, first[0].Links[1] = "mine", 99
	second, _, _ := s.Inventory(context.Background())
	if second[0].Name == "mine" || second[0].Links[1] == 99 {
		t.Error("a caller changed the source's own inventory")
	}
}
