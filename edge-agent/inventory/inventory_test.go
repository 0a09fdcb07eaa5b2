package inventory

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/remotegpu/remotegpu/edge-agent/gpu"
	"github.com/remotegpu/remotegpu/protocol"
)

func TestInventoryOfThisMachine(t *testing.T) {
	source, err := gpu.Open(t.Context(), gpu.Config{Spec: "sim:2xH100", CDIDir: t.TempDir(), Seed: "test"})
	if err != nil {
		t.Fatal(err)
	}
	defer source.Close()
	h := New(Config{GPUs: source, ImageDir: t.TempDir(), BridgePrefix: "rg-"})
	inv := h.Inventory(t.Context())
	if err := inv.Validate(); err != nil {
		t.Error(err)
	}
	if inv.Hostname == "" || inv.OS != "linux" || inv.OSVersion == "" || inv.Kernel == "" || inv.CPUs == 0 ||
		inv.Memory == 0 || inv.Disk == 0 || inv.Deployment != "traditional" || len(inv.GPUs) != 2 {
		t.Errorf("something is missing: %+v", inv)
	}
	for _, a := range inv.Addresses {
		if strings.HasPrefix(a, "127.") || a == "::1" {
			t.Errorf("address %s is loopback", a)
		}
	}
	u := h.Usage(t.Context())
	if u.MemoryUsed == 0 || u.MemoryUsed > inv.Memory || u.DiskUsed > inv.Disk || u.UptimeSecs == 0 || len(u.GPUUsed) != 2 {
		t.Errorf("usage %+v", u)
	}
	if BootID() == "" {
		t.Error("no boot id")
	}
}

func TestOSVersion(t *testing.T) {
	path := filepath.Join(t.TempDir(), "os-release")
	if err := os.WriteFile(path, []byte("ID=x\nPRETTY_NAME=\"Some Linux 1\"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := osVersion(path); got != "Some Linux 1" {
		t.Errorf("got %q", got)
	}
	if got := osVersion(path + "x"); got != "" {
		t.Errorf("got %q without a file", got)
	}
}

// moody is a GPU source with an error that comes and goes.
type moody struct {
	gpu.Source
	err error
}

func (m *moody) Inventory(context.Context) ([]protocol.GPU, gpu.Driver, error) {
	return nil, gpu.Driver{}, m.err
}

func TestTroubleIsToldOnce(t *testing.T) {
	var told []string
	source := &moody{err: errors.New("the driver is gone")}
	h := New(Config{GPUs: source, ImageDir: "/", BridgePrefix: "rg-", Trouble: func(s string) { told = append(told, s) }})
	h.Inventory(t.Context())
	h.Inventory(t.Context())
	source.err = nil
	h.Inventory(t.Context())
	if diff := cmp.Diff([]string{"the driver is gone", ""}, told); diff != "" {
		t.Error(diff)
	}
}

func TestDeployment(t *testing.T) {
	in := map[string]string{"KUBERNETES_SERVICE_HOST": "10.96.0.1"}
	here, nowhere := []string{t.TempDir()}, []string{"/nowhere"}
	for _, c := range []struct {
		env      map[string]string
		kubelets []string
		want     string
	}{{nil, nowhere, "traditional"}, {nil, here, "hybrid"}, {in, here, "kubernetes"}, {in, nowhere, "kubernetes"}} {
		if got := deployment(func(name string) string { return c.env[name] }, c.kubelets); got != c.want {
			t.Errorf("%v, %v: %s, want %s", c.env, c.kubelets, got, c.want)
		}
	}
}
