// Package inventory finds out what this host is and has.
//
// It owns protocol.Inventory and protocol.Usage of the host itself; GPUs come
// from package gpu. Its invariant: what cannot be found out is left empty,
// and nothing here fails or waits longer than its context.
package inventory

import (
	"bufio"
	"context"
	"log/slog"
	"net"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/shirou/gopsutil/v4/cpu"
	"github.com/shirou/gopsutil/v4/disk"
	"github.com/shirou/gopsutil/v4/host"
	"github.com/shirou/gopsutil/v4/load"
	"github.com/shirou/gopsutil/v4/mem"

	"github.com/remotegpu/remotegpu/edge-agent/gpu"
	"github.com/remotegpu/remotegpu/protocol"
)

const maxAddresses = 64

// Config says where to look.
type Config struct {
	GPUs         gpu.Source        // required
	Containerd   string            // path of its socket; empty: not asked
	ImageDir     string            // on the file system that holds containers; required
	BridgePrefix string            // of interfaces that are ours, not the host's; required
	Trouble      func(text string) // a sentence about GPUs, when it changes; "" when it is over; nil: nobody
	Log          *slog.Logger
}

// Host collects what there is to know. Its methods are safe for concurrent use.
type Host struct {
	cfg Config

	mu      sync.Mutex // guards the fields below
	trouble string
	runtime string // the last known
}

// New returns a Host.
func New(cfg Config) *Host {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	return &Host{cfg: cfg}
}

// Inventory returns what the host is and has.
func (h *Host) Inventory(ctx context.Context) protocol.Inventory {
	inv := protocol.Inventory{
		OS: runtime.GOOS, OSVersion: osVersion("/etc/os-release"), Arch: runtime.GOARCH,
		Deployment: deployment(os.Getenv, kubelets), Addresses: h.addresses(), CPUs: uint32(runtime.NumCPU()),
		Runtime: h.runtimeVersion(ctx),
	}
	inv.Hostname, _ = os.Hostname()
	inv.Kernel, _ = host.KernelVersionWithContext(ctx)
	if list, err := cpu.InfoWithContext(ctx); err == nil && len(list) > 0 {
		inv.CPUModel = list[0].ModelName
	}
	if m, err := mem.VirtualMemoryWithContext(ctx); err == nil {
		inv.Memory = m.Total
	}
	if d, err := disk.UsageWithContext(ctx, h.cfg.ImageDir); err == nil {
		inv.Disk = d.Total
	}
	gpus, driver, err := h.cfg.GPUs.Inventory(ctx)
	inv.GPUs, inv.Driver, inv.CUDA = gpus, driver.Version, driver.CUDA
	h.tell(err)
	for _, s := range []*string{&inv.Hostname, &inv.OSVersion, &inv.Kernel, &inv.CPUModel, &inv.Runtime} {
		*s = label(*s)
	}
	return inv
}

// tell passes on what is wrong with the GPUs, if that is new.
func (h *Host) tell(err error) {
	text := ""
	if err != nil {
		text = err.Error()
	}
	h.mu.Lock()
	news := text != h.trouble
	h.trouble = text
	h.mu.Unlock()
	if news && h.cfg.Trouble != nil {
		h.cfg.Trouble(text)
	}
}

// Usage returns what is used now. CPUPercent is the mean since the last call.
func (h *Host) Usage(ctx context.Context) protocol.Usage {
	var u protocol.Usage
	if p, err := cpu.PercentWithContext(ctx, 0, false); err == nil && len(p) > 0 {
		u.CPUPercent = float32(p[0])
	}
	if m, err := mem.VirtualMemoryWithContext(ctx); err == nil {
		u.MemoryUsed = m.Total - m.Available
	}
	if d, err := disk.UsageWithContext(ctx, h.cfg.ImageDir); err == nil {
		u.DiskUsed = d.Total - d.Free
	}
	if l, err := load.AvgWithContext(ctx); err == nil {
		u.Load1 = float32(l.Load1)
	}
	if s, err := host.UptimeWithContext(ctx); err == nil {
		u.UptimeSecs = s
	}
	samples, err := h.cfg.GPUs.Sample(ctx)
	if err != nil {
		h.cfg.Log.Debug("GPUs gave no sample", "err", err)
	}
	for _, s := range samples {
		u.GPUUsed = append(u.GPUUsed, s.Usage)
	}
	return u
}

// runtimeVersion asks containerd; while it is away the last answer holds.
func (h *Host) runtimeVersion(ctx context.Context) string {
	version := askContainerd(ctx, h.cfg.Containerd)
	h.mu.Lock()
	defer h.mu.Unlock()
	if version != "" {
		h.runtime = "containerd " + version
	}
	return h.runtime
}

func askContainerd(ctx context.Context, socket string) string {
	if socket == "" {
		return ""
	}
	if _, err := os.Stat(socket); err != nil {
		return ""
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	client, err := containerd.New(socket, containerd.WithTimeout(2*time.Second))
	if err != nil {
		return ""
	}
	defer client.Close()
	v, err := client.Version(ctx)
	if err != nil {
		return ""
	}
	version, _, _ := strings.Cut(strings.TrimPrefix(v.Version, "v"), "~")
	return version
}

// addresses are those of the host's own interfaces: not loopback, not
// link-local, none of a container network.
func (h *Host) addresses() []string {
	interfaces, err := net.Interfaces()
	if err != nil {
		return nil
	}
	var list []string
	for _, i := range interfaces {
		if i.Flags&net.FlagUp == 0 || i.Flags&net.FlagLoopback != 0 || h.inner(i.Name) {
			continue
		}
		addresses, err := i.Addrs()
		if err != nil {
			continue
		}
		for _, a := range addresses {
			if n, ok := a.(*net.IPNet); ok && n.IP.IsGlobalUnicast() {
				list = append(list, n.IP.String())
			}
		}
	}
	slices.Sort(list)
	return list[:min(len(list), maxAddresses)]
}

// inner says whether an interface belongs to containers.
func (h *Host) inner(name string) bool {
	for _, prefix := range []string{h.cfg.BridgePrefix, "veth", "docker", "br-", "cni", "flannel", "cali", "virbr"} {
		if strings.HasPrefix(name, prefix) {
			return true
		}
	}
	return false
}

// kubelets are files of the kubelet of kubeadm, and of k3s and RKE2.
var kubelets = []string{"/var/lib/kubelet/config.yaml", "/etc/rancher"}

// deployment is "kubernetes" in a pod, and "hybrid" beside a kubelet: then the
// cluster runs workloads here too.
func deployment(env func(string) string, kubelets []string) string {
	if env("KUBERNETES_SERVICE_HOST") != "" {
		return "kubernetes"
	}
	for _, file := range kubelets {
		if _, err := os.Stat(file); err == nil {
			return "hybrid"
		}
	}
	return "traditional"
}

// osVersion is PRETTY_NAME of os-release(5).
func osVersion(path string) string {
	f, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if value, ok := strings.CutPrefix(lines.Text(), "PRETTY_NAME="); ok {
			return strings.Trim(value, `"'`)
		}
	}
	return ""
}

// BootID names the run of the kernel; it changes with every boot.
func BootID() string {
	raw, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(raw))
}

func label(s string) string {
	return strings.ToValidUTF8(s[:min(len(s), protocol.MaxLabel)], "")
}
