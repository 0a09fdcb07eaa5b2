package ctr

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/remotegpu/remotegpu/edge-agent/ctr/logs"
	"github.com/remotegpu/remotegpu/edge-agent/reconcile"
	"github.com/remotegpu/remotegpu/protocol"
)

func fault(t *testing.T, err error) *reconcile.Fault {
	t.Helper()
	var f *reconcile.Fault
	if !errors.As(err, &f) {
		t.Fatalf("error %v, want one with a sentence for a person", err)
	}
	return f
}

// TestInside looks around from within a container.
func TestInside(t *testing.T) {
	h := newHost(t, shared)
	script := `
echo host=$(hostname) pwd=$(pwd) id=$(id -u):$(id -g) from=$FROM own=$OWN
cat /etc/hosts; cat /etc/hostname
echo shm=$(df -k /dev/shm | grep -c 131072) links=$(ip link | grep -c mtu)
echo nofile=$(ulimit -n) caps=$(grep CapEff /proc/self/status)
grep -E 'Seccomp:|NoNewPrivs:' /proc/self/status
touch /.remotegpu/helper && echo bad; touch /proc/sysrq-trigger && echo bad; touch /.remotegpu/run/x && echo bad
cat /proc/kcore && echo bad; mount -t tmpfs x /tmp && echo bad; mknod /tmp/sda b 8 0 && echo bad
cat /proc/self/cgroup
ls -a /vol /dev`
	w := shell(script, func(w *protocol.Workload) {
		w.Env = map[string]string{"OWN": "x y"}
		w.User, w.Workdir = "dev", "/tmp"
		w.Limits = protocol.Limits{MilliCPU: 500, Memory: 64 << 20, Pids: 50, Shm: 128 << 20}
		w.Mounts = []protocol.Mount{{Target: "/vol", Volume: "data"}}
	})
	h.up(w)
	if c := h.ended(); c.ExitCode == nil {
		t.Fatalf("container %+v", c)
	}
	out := h.output()
	for _, want := range []string{
		"host=box pwd=/tmp id=1000:1001 from=image own=x y", "10.9.8.7\tbox", "shm=1 links=1",
		"CapEff:\t0000000000000000", "/remotegpu/env_a", "Seccomp:\t2", "NoNewPrivs:\t0",
	} {
		if !strings.Contains(strings.ReplaceAll(out, "CapEff: ", "CapEff:\t"), want) {
			t.Errorf("output lacks %q", want)
		}
	}
	if strings.Contains(out, "bad") || t.Failed() {
		t.Errorf("output:\n%s", out)
	}
	var st unix.Stat_t
	if err := unix.Stat(filepath.Join(h.volumesDir("env_a"), "data"), &st); err != nil || st.Uid != 1000 || st.Gid != 1001 {
		t.Errorf("volume belongs to %d:%d (%v), want 1000:1001", st.Uid, st.Gid, err)
	}
}

func TestLimitsReachCgroup(t *testing.T) {
	h := newHost(t, shared)
	c := h.up(shell("sleep 1000", func(w *protocol.Workload) {
		w.Limits = protocol.Limits{MilliCPU: 1500, Memory: 64 << 20, Pids: 50}
	}))
	in := cgroups(t, c.Pid)
	for controller, limits := range map[string][2]string{ // of cgroups v1 and v2
		"memory": {"memory.limit_in_bytes=67108864", "memory.max=67108864"},
		"pids":   {"pids.max=50", "pids.max=50"},
		"cpu":    {"cpu.cfs_quota_us=150000", "cpu.max=150000 100000"},
	} {
		folder, limit := in[""], limits[1]
		if v1, ok := in[controller]; ok {
			folder, limit = filepath.Join(controller, v1), limits[0]
		}
		file, want, _ := strings.Cut(limit, "=")
		if !strings.HasSuffix(folder, "/remotegpu/env_a") {
			t.Errorf("its %s cgroup is %q", controller, folder)
		}
		got, err := os.ReadFile(filepath.Join("/sys/fs/cgroup", folder, file))
		if err != nil || strings.TrimSpace(string(got)) != want {
			t.Errorf("%s is %q (%v), want %s", file, got, err, want)
		}
	}
}

// cgroups returns the path of a process by controller, that of cgroups v2 as "".
func cgroups(t *testing.T, pid uint32) map[string]string {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil {
		t.Fatal(err)
	}
	in := map[string]string{}
	for line := range strings.Lines(string(text)) {
		fields := strings.SplitN(strings.TrimSpace(line), ":", 3)
		for _, controller := range strings.Split(fields[1], ",") {
			in[controller] = fields[2]
		}
	}
	return in
}

func TestEndIsNoted(t *testing.T) {
	h := newHost(t, shared)
	w := shell("echo run; exit 7")
	h.up(w)
	c := h.ended()
	if !c.Unreaped || *c.ExitCode != 7 || c.ExitedAt.IsZero() {
		t.Fatalf("container %+v, want code 7", c)
	}
	h.do(h.Reap(t.Context(), c))
	h.do(h.Reap(t.Context(), c))
	c = h.find()
	if c.Unreaped || c.State != reconcile.Exited || *c.ExitCode != 7 || c.StartedAt.IsZero() {
		t.Fatalf("reaped container %+v", c)
	}
	h.do(h.Start(t.Context(), w, c))
	h.ended()
	if c := h.find(); c.Restarts != 1 {
		t.Errorf("container %+v, want one restart", c)
	}
	if out := h.output(); out != "run\nrun\n" {
		t.Errorf("log %q, want both runs", out)
	}
}

// TestWritableLayerOutlivesRestart: files of a container that ended are there
// in its next run; a new revision begins afresh, and volumes stay.
func TestWritableLayerOutlivesRestart(t *testing.T) {
	h := newHost(t, shared)
	w := shell("cat /layer /vol/kept; echo LAYER > /layer; echo VOLUME > /vol/kept", func(w *protocol.Workload) {
		w.Mounts = []protocol.Mount{{Target: "/vol", Volume: "v"}}
	})
	h.up(w)
	h.do(h.Reap(t.Context(), h.ended()))
	h.do(h.Start(t.Context(), w, h.find()))
	h.do(h.Reap(t.Context(), h.ended()))
	h.do(h.Remove(t.Context(), h.find()))
	w.Revision = 2
	h.up(w)
	h.ended()
	lines := h.output()
	if n := strings.Count(lines, "LAYER"); n != 1 {
		t.Errorf("%d runs saw the layer, want one:\n%s", n, lines)
	}
	if n := strings.Count(lines, "VOLUME"); n != 2 {
		t.Errorf("%d runs saw the volume, want two:\n%s", n, lines)
	}
	h.do(h.Remove(t.Context(), h.find()))
	h.do(h.Purge(t.Context(), "env_a"))
	have, err := h.Observe(t.Context())
	h.do(err)
	if len(have.Leftovers)+len(have.Containers) != 0 {
		t.Errorf("host still has %+v", have)
	}
}

func TestStop(t *testing.T) {
	for _, c := range []struct {
		name, script string
		grace        time.Duration
		code         int
	}{
		{"with grace", `trap 'exit 9' TERM; echo up; while :; do sleep 0.05; done`, time.Minute, 9},
		{"stubborn", `trap '' TERM; echo up; while :; do sleep 0.05; done`, 300 * time.Millisecond, 137},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := newHost(t, shared)
			box := h.up(shell(c.script))
			h.until("the trap is set", func() bool { return strings.Contains(h.output(), "up") })
			box.Grace = c.grace
			h.do(h.Stop(t.Context(), box))
			h.do(h.Stop(t.Context(), box))
			if got := h.find(); got.State != reconcile.Exited || *got.ExitCode != c.code {
				t.Errorf("container %+v with code %v, want %d", got, *got.ExitCode, c.code)
			}
		})
	}
}

func TestOnlyWaits(t *testing.T) {
	h := newHost(t, shared)
	c := h.up(shell(""))
	h.until("the helper listens", func() bool {
		_, err := os.Stat(filepath.Join(h.runDir("env_a"), "session.sock"))
		return err == nil
	})
	if c := h.find(); c.State != reconcile.Running {
		t.Errorf("container %+v, want it waiting", c)
	}
	c.Grace = 10 * time.Second
	h.do(h.Stop(t.Context(), c))
	if c := h.ended(); *c.ExitCode == 137 {
		t.Errorf("it ended with %d: SIGTERM was not heard", *c.ExitCode)
	}
}

func TestStartFaults(t *testing.T) {
	for _, c := range []struct {
		name string
		edit func(*protocol.Workload)
		want string
	}{
		{"user", func(w *protocol.Workload) { w.User = "nobody-here" }, `user "nobody-here" is not in the image`},
		{"gpu", func(w *protocol.Workload) { w.GPUs = []string{"GPU-none"} }, "GPU GPU-none has no CDI description"},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := newHost(t, shared)
			h.ready()
			w := shell("", c.edit)
			h.do(h.Pull(t.Context(), w, func(_, _ uint64) {}))
			h.do(h.Create(t.Context(), w))
			f := fault(t, h.Start(t.Context(), w, h.find()))
			if !f.Final || !strings.Contains(f.Message, c.want) {
				t.Errorf("fault %+v, want %q", f, c.want)
			}
			if c := h.find(); c.State != reconcile.Created {
				t.Errorf("container %+v, want it as created", c)
			}
		})
	}
}

// TestOddUserFiles: where an image has a pipe, a device or a link to one instead of
// a list of users, nobody on the host opens it: a pipe would never be done with, and
// to open a device can be a command to the host, as with a watchdog.
func TestOddUserFiles(t *testing.T) {
	program, err := os.ReadFile("/bin/busybox")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name string
		file file
	}{
		{"pipe", file{name: "etc/passwd", kind: tar.TypeFifo}},
		{"device", file{name: "etc/passwd", kind: tar.TypeChar}},
		{"link to a pipe", file{name: "etc/passwd", link: "/pipe"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := newHost(t, shared)
			h.ready()
			tag := strings.ReplaceAll(c.name, " ", "-")
			hub.push("test/odd", tag, ocispec.ImageConfig{}, archive(file{name: "bin/", mode: 0o755}, file{name: "bin/busybox", data: program, mode: 0o755},
				file{name: "pipe", kind: tar.TypeFifo}, file{name: "etc/", mode: 0o755}, c.file))
			w := shell("true", func(w *protocol.Workload) { w.Image, w.User = "{control}/test/odd:"+tag, "dev" })
			h.do(h.Pull(t.Context(), w, func(_, _ uint64) {}))
			h.do(h.Create(t.Context(), w))
			tried := make(chan error, 1)
			go func() { tried <- h.Start(t.Context(), w, h.find()) }()
			select {
			case err := <-tried:
				if f := fault(t, err); !f.Final || !strings.Contains(f.Message, "no plain file") {
					t.Errorf("final %v, message %q (cause %v)", f.Final, f.Message, f.Err)
				}
			case <-time.After(10 * time.Second):
				t.Error("it waits for somebody to write into the image's list of users")
			}
		})
	}
}

// TestDeepFolders: a volume with more folders in each other than a program has files
// is deleted, and takes no file from others meanwhile.
func TestDeepFolders(t *testing.T) {
	h := newHost(t, shared)
	h.ready()
	dir := filepath.Join(h.volumesDir("env_deep"), "code")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	deeper, err := unix.Open(dir, unix.O_DIRECTORY, 0)
	if err != nil {
		t.Fatal(err)
	}
	for range 25000 {
		err = unix.Mkdirat(deeper, "d", 0o755)
		next := -1
		if err == nil {
			next, err = unix.Openat(deeper, "d", unix.O_DIRECTORY, 0)
		}
		unix.Close(deeper)
		if deeper = next; err != nil {
			t.Fatal(err)
		}
	}
	unix.Close(deeper)
	var before unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &before); err != nil {
		t.Fatal(err)
	}
	few := before
	few.Cur = 4096
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &few); err != nil {
		t.Fatal(err)
	}
	defer unix.Setrlimit(unix.RLIMIT_NOFILE, &before)
	h.do(h.Purge(t.Context(), "env_deep"))
	if _, err := os.Stat(h.volumesDir("env_deep")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("it is still there: %v", err)
	}
}

func TestForbiddenMounts(t *testing.T) {
	h := newHost(t, shared)
	for _, m := range []protocol.Mount{
		{Target: "/proc", Volume: "x"}, {Target: "/sys/fs", Volume: "x"}, {Target: "/.remotegpu/run", Volume: "x"},
		{Target: "/x", HostPath: h.cfg.DataDir}, {Target: "/x", HostPath: "/"}, {Target: "/x", HostPath: "/no/such/folder"},
	} {
		f := fault(t, h.checkMounts(protocol.Workload{Mounts: []protocol.Mount{m}}))
		if !f.Final {
			t.Errorf("mount %+v: %v, want it final", m, f)
		}
	}
	h.do(h.checkMounts(protocol.Workload{Mounts: []protocol.Mount{{Target: "/dev/shm/x", HostPath: "/usr"}}}))
}

func TestGPU(t *testing.T) {
	dir := t.TempDir()
	spec := `{"cdiVersion":"0.6.0","kind":"nvidia.com/gpu","devices":[{"name":"GPU-1","containerEdits":{
		"env":["SEEN=GPU-1"],"deviceNodes":[{"path":"/dev/nvidia0","hostPath":"/dev/null"}]}}]}`
	if err := os.WriteFile(filepath.Join(dir, "nvidia.json"), []byte(spec), 0o600); err != nil {
		t.Fatal(err)
	}
	h := newHost(t, shared, func(c *Config) { c.CDIDirs = []string{dir} })
	w := shell("ls -l /dev/nvidia0 && echo hi > /dev/nvidia0 && echo seen $SEEN", func(w *protocol.Workload) { w.GPUs = []string{"GPU-1"} })
	c := h.up(w)
	if len(c.GPUs) != 1 || c.GPUs[0] != "GPU-1" {
		t.Errorf("container %+v, want its GPU", c)
	}
	if c := h.ended(); *c.ExitCode != 0 || !strings.Contains(h.output(), "seen GPU-1") {
		t.Errorf("code %d, output %s", *c.ExitCode, h.output())
	}
	w.GPUs = []string{"GPU-2"}
	h.do(h.Reap(t.Context(), h.find()))
	if f := fault(t, h.Start(t.Context(), w, h.find())); !f.Final || !strings.Contains(f.Message, "GPU GPU-2 is not on this host") {
		t.Errorf("fault %v", f)
	}
}

func TestDiskIsMeasured(t *testing.T) {
	h := newHost(t, shared)
	h.up(shell("dd if=/dev/zero of=/full bs=1M count=8", func(w *protocol.Workload) { w.Limits.Disk = 1 << 20 }))
	h.ended()
	h.mu.Lock()
	h.Runtime.mu.Lock()
	clear(h.disk) // as after a restart of the agent
	h.Runtime.mu.Unlock()
	h.mu.Unlock()
	if c := h.find(); c.Disk < 8<<20 {
		t.Errorf("container %+v, want 8 MiB used", c)
	}
}

func TestOutOfMemoryIsTold(t *testing.T) {
	h := newHost(t, shared)
	h.ready()
	ctx, cancel := context.WithCancel(t.Context())
	notices := make(chan reconcile.Notice, 100)
	ended := make(chan error)
	go func() { ended <- h.Watch(ctx, func(n reconcile.Notice) { notices <- n }) }()
	h.up(shell("dd if=/dev/zero of=/dev/null bs=512M count=1; exit 3", func(w *protocol.Workload) { w.Limits.Memory = 32 << 20 }))
	oom, exit := false, false
	for !oom || !exit {
		select {
		case n := <-notices:
			oom, exit = oom || n.OutOfMemory, exit || !n.OutOfMemory
		case <-time.After(30 * time.Second):
			t.Fatalf("out of memory %v, exit %v", oom, exit)
		}
	}
	cancel()
	<-ended
}

func TestSweep(t *testing.T) {
	h := newHost(t, shared, func(c *Config) { c.DiskHigh = 101 })
	w := shell("true")
	h.up(w)
	h.ended()
	count := func() int {
		list, err := h.client.ListImages(h.ctx(t.Context()))
		h.do(err)
		return len(list)
	}
	h.cfg.ImageTTL = time.Nanosecond
	h.do(h.Sweep(t.Context(), nil))
	if count() != 1 {
		t.Fatal("image of a container is gone")
	}
	h.do(h.Remove(t.Context(), h.find()))
	h.do(h.Sweep(t.Context(), []protocol.Workload{w}))
	if count() != 1 {
		t.Fatal("wanted image is gone")
	}
	h.cfg.ImageTTL = time.Hour
	h.do(h.Sweep(t.Context(), nil))
	if count() != 1 {
		t.Fatal("image is gone before its time")
	}
	h.cfg.DiskHigh = 0
	h.do(h.Sweep(t.Context(), nil))
	if count() != 0 {
		t.Fatal("unused image stays on a full disk")
	}
}

func TestFollowLog(t *testing.T) {
	h := newHost(t, shared)
	h.up(shell("while :; do echo tick; sleep 0.1; done"))
	n, enough := 0, errors.New("enough")
	err := h.ReadLog(t.Context(), "env_a", 0, true, func(l logs.Line) error {
		if n++; n == 5 {
			return enough
		}
		return nil
	})
	if !errors.Is(err, enough) {
		t.Fatal(err)
	}
}
