package ctr

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/contrib/seccomp"
	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/pkg/oci"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	"tags.cncf.io/container-device-interface/pkg/cdi"

	"github.com/remotegpu/remotegpu/edge-agent/reconcile"
	"github.com/remotegpu/remotegpu/protocol"
)

// What a workload gets that names no limit of its own.
const (
	defaultPids = 4096
	defaultShm  = 64 << 20
	defaultPath = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
	cpuPeriod   = 100_000 // µs
)

// spec makes the OCI spec of a workload. PID 1 is always our helper: it starts
// Command as the workload's user, or only waits for sessions if there is none;
// the image's own entrypoint is never run.
func (r *Runtime) spec(ctx context.Context, w protocol.Workload, rec containers.Container, image ocispec.ImageConfig, netns string) (*oci.Spec, error) {
	s, err := oci.GenerateSpec(ctx, r.client, &containers.Container{ID: rec.ID},
		oci.WithDefaultUnixDevices, oci.WithoutRunMount, oci.WithNewPrivileges)
	if err != nil {
		return nil, fmt.Errorf("make OCI spec: %w", err)
	}
	s.Hostname = w.Name
	s.Process.Args = helperArgs(w, image)
	s.Process.Env = environ(image.Env, w.Env)
	s.Process.Rlimits = openFiles()
	s.Linux.CgroupsPath = "/remotegpu/" + w.ID
	setNetwork(s, netns)
	if cgroups2() {
		s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: specs.CgroupNamespace})
	}
	limit(s, w.Limits)
	s.Mounts = append(s.Mounts, r.mounts(w)...)
	if err := seccomp.WithDefaultProfile()(ctx, r.client, &rec, s); err != nil {
		return nil, fmt.Errorf("set seccomp profile: %w", err)
	}
	// CDI comes last: its edits must not be overwritten.
	return s, r.addGPUs(s, w.GPUs)
}

func helperArgs(w protocol.Workload, image ocispec.ImageConfig) []string {
	args := []string{"/.remotegpu/helper", "init"}
	if user := orElse(w.User, image.User); user != "" {
		args = append(args, "--user", user)
	}
	if dir := orElse(w.Workdir, image.WorkingDir); dir != "" {
		args = append(args, "--workdir", dir)
	}
	return append(append(args, "--"), w.Command...)
}

func orElse(a, b string) string {
	if a != "" {
		return a
	}
	return b
}

// environ is the image's environment with the workload's over it.
func environ(image []string, own map[string]string) []string {
	env := []string{defaultPath}
	at := map[string]int{"PATH": 0} // an image may have hundreds of thousands
	set := func(pair string) {
		key, _, _ := strings.Cut(pair, "=")
		if i, there := at[key]; there {
			env[i] = pair
			return
		}
		at[key] = len(env)
		env = append(env, pair)
	}
	for _, pair := range image {
		set(pair)
	}
	for _, key := range slices.Sorted(maps.Keys(own)) {
		set(key + "=" + own[key])
	}
	return env
}

// openFiles gives containers as many open files as the agent may have itself.
func openFiles() []specs.POSIXRlimit {
	var l unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &l); err != nil {
		return nil
	}
	n := min(l.Max, 1<<20)
	return []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Hard: n, Soft: n}}
}

// setNetwork puts the container into a network namespace of its own, where it
// may then use every port and ping, as Docker's containers may.
func setNetwork(s *oci.Spec, netns string) {
	for i := range s.Linux.Namespaces {
		if s.Linux.Namespaces[i].Type == specs.NetworkNamespace {
			s.Linux.Namespaces[i].Path = netns
		}
	}
	s.Linux.Sysctl = map[string]string{
		"net.ipv4.ip_unprivileged_port_start": "0",
		"net.ipv4.ping_group_range":           "0 2147483647",
	}
}

func cgroups2() bool {
	var st unix.Statfs_t
	return unix.Statfs("/sys/fs/cgroup", &st) == nil && st.Type == unix.CGROUP2_SUPER_MAGIC
}

func limit(s *oci.Spec, l protocol.Limits) {
	res := s.Linux.Resources
	pids := int64(defaultPids)
	if l.Pids > 0 {
		pids = int64(l.Pids)
	}
	res.Pids = &specs.LinuxPids{Limit: &pids}
	if l.MilliCPU > 0 {
		period, quota := uint64(cpuPeriod), max(int64(l.MilliCPU)*cpuPeriod/1000, 1000)
		res.CPU = &specs.LinuxCPU{Period: &period, Quota: &quota}
	}
	if l.Memory > 0 {
		n := int64(l.Memory)
		res.Memory = &specs.LinuxMemory{Limit: &n}
		// Without swap the limit is one. Old kernels may not account for swap.
		if _, err := os.Stat("/sys/fs/cgroup/memory/memory.memsw.limit_in_bytes"); err == nil || cgroups2() {
			res.Memory.Swap = &n
		}
	}
	shm := l.Shm
	if shm == 0 {
		shm = defaultShm
	}
	for i := range s.Mounts {
		if s.Mounts[i].Destination == "/dev/shm" {
			s.Mounts[i].Options = []string{"nosuid", "noexec", "nodev", "mode=1777", fmt.Sprintf("size=%d", shm)}
		}
	}
}

// mounts are the workload's own, outer folders first, then what it cannot
// cover: the helper and the files of the network.
func (r *Runtime) mounts(w protocol.Workload) []specs.Mount {
	list := []specs.Mount{{
		Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup",
		Options: []string{"ro", "nosuid", "noexec", "nodev"},
	}}
	own := slices.Clone(w.Mounts)
	slices.SortFunc(own, func(a, b protocol.Mount) int { return strings.Compare(a.Target, b.Target) })
	for _, m := range own {
		source := m.HostPath
		if m.Volume != "" {
			source = r.volumesDir(w.ID) + "/" + m.Volume
		}
		list = append(list, bind(source, m.Target, m.ReadOnly, "nodev"))
	}
	etc := r.etcDir(w.ID)
	list = append(list, bind(etc+"/hosts", "/etc/hosts", true), bind(etc+"/hostname", "/etc/hostname", true))
	if file := r.cfg.Network.ResolvConf(); file != "" {
		list = append(list, bind(file, "/etc/resolv.conf", true))
	}
	return append(list,
		bind(r.cfg.Helper, "/.remotegpu/helper", true, "nosuid", "nodev"),
		bind(r.runDir(w.ID), "/.remotegpu/run", false, "nosuid", "nodev", "noexec"))
}

func bind(source, target string, readOnly bool, options ...string) specs.Mount {
	mode := "rw"
	if readOnly {
		mode = "ro"
	}
	return specs.Mount{Destination: target, Type: "bind", Source: source, Options: append([]string{"rbind", "rprivate", mode}, options...)}
}

const gpuKind = "nvidia.com/gpu"

// addGPUs adds GPUs by their CDI names, nvidia.com/gpu=UUID.
func (r *Runtime) addGPUs(s *oci.Spec, uuids []string) error {
	if len(uuids) == 0 {
		return nil
	}
	dirs := append([]string{"/etc/cdi", "/var/run/cdi"}, r.cfg.CDIDirs...)
	cache, err := cdi.NewCache(cdi.WithAutoRefresh(false), cdi.WithSpecDirs(dirs...))
	if err != nil {
		return fmt.Errorf("read CDI specs: %w", err)
	}
	names := make([]string, len(uuids))
	for i, id := range uuids {
		names[i] = gpuKind + "=" + id
	}
	missing, err := cache.InjectDevices(s, names...)
	if len(missing) > 0 {
		return missingGPU(strings.TrimPrefix(missing[0], gpuKind+"="), cache, dirs)
	}
	if err != nil {
		return fmt.Errorf("add GPUs: %w", err)
	}
	return nil
}

func missingGPU(uuid string, cache *cdi.Cache, dirs []string) error {
	for _, d := range cache.ListDevices() {
		if strings.HasPrefix(d, gpuKind+"=") {
			return reconcile.Finalf(nil, "GPU %s is not on this host, or its driver does not see it; choose another GPU or repair it", uuid)
		}
	}
	var errs []error
	for _, e := range cache.GetErrors() {
		errs = append(errs, e...)
	}
	return reconcile.Finalf(errors.Join(errs...),
		"GPU %s has no CDI description on this host; check that the NVIDIA driver is loaded (nvidia-smi) and that one lies in %s", uuid, strings.Join(dirs, ", "))
}
