package e2e

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// machine is a GPU host: its own network, processes and files, with the
// system's programs read from below. Ending its first process ends everything
// on it, as pulling the plug does.
type machine struct {
	w     *world
	role  string // whose network it has
	init  *exec.Cmd
	files string // what lives on its disk
	binds []bind // plain folders of it
	env   []string
	cwd   string // where sh starts; empty: /
}

// bind is a folder of a machine that lies as it is on this one.
type bind struct{ here, there string }

// disk are the folders of which a machine has its own, copied on write from
// this one's; they outlive a reboot. containerd's is a plain folder: its
// overlays must not lie on one.
var disk = []string{"/etc", "/usr/local", "/var/lib", "/var/log", "/opt"}

const (
	containerd = "/var/lib/containerd"
	driver     = "/usr/local/nvidia"
)

// images is where that folder lies on this machine.
func (m *machine) images() string { return m.files + "/containerd" }

func (w *world) machine() *machine { return w.machineIn("host") }

// machineIn returns a machine in the network of a role, with more plain folders.
func (w *world) machineIn(role string, binds ...bind) *machine {
	w.t.Helper()
	m := &machine{w: w, role: role, files: filepath.Join(w.dir, role)}
	m.binds = append(binds, bind{m.images(), containerd})
	for _, d := range disk {
		w.must("mkdir", "-p", m.files+d, m.files+d+".work")
	}
	w.must("mkdir", "-p", m.images())
	m.boot()
	// What this machine itself has of ours, as after make up, is not the other's.
	m.must("rm -rf /etc/remotegpu /var/lib/remotegpu /var/log/remotegpu /usr/local/bin/remotegpu* /usr/local/lib/remotegpu")
	w.t.Cleanup(m.unplug)
	return m
}

// boot starts the machine's first process with an empty /run.
func (m *machine) boot() {
	m.w.t.Helper()
	script := "set -e; mount --make-rprivate /; hostname " + m.role + "; " +
		`sed -n 's|^[^ ]* \(/run/[^ ]*\) .*|\1|p' /proc/mounts | sort -r | xargs -r umount -l; mount -t tmpfs tmpfs /run; `
	// A driver that is mounted below one of the folders stays.
	script += "mkdir /run/driver; ! mountpoint -q " + driver + " || mount --rbind " + driver + " /run/driver; "
	for _, d := range disk {
		script += "mkdir -p " + d + "; mount -t overlay -o lowerdir=" + d + ",upperdir=" + m.files + d + ",workdir=" + m.files + d + ".work overlay " + d + "; "
	}
	script += "! mountpoint -q /run/driver || mount --move /run/driver " + driver + "; "
	for _, b := range m.binds {
		script += "mkdir -p " + b.there + "; mount --bind " + b.here + " " + b.there + "; "
	}
	script += "echo up > " + m.files + "/up; exec sleep infinity"
	os.Remove(m.files + "/up")
	m.init = m.w.start(m.role, m.role+"-init.log", "setpriv", "--pdeathsig", "KILL", "unshare", "--mount", "--pid", "--ipc", "--uts", "--fork", "--mount-proc", "--kill-child", "sh", "-c", script)
	eventually(m.w.t, 30*time.Second, m.role+" boots", func() (string, bool) {
		_, err := os.Stat(m.files + "/up")
		return m.files + "/up is not there", err == nil
	})
}

// unplug ends all processes of the machine at once and lets go of what a power
// cut would let go of.
func (m *machine) unplug() {
	if m.init == nil || m.init.ProcessState != nil {
		return
	}
	if pid := m.first(); pid != 0 {
		syscall.Kill(pid, syscall.SIGKILL)
	}
	m.init.Wait()
}

// first returns the pid of the machine's first process as seen from outside.
func (m *machine) first() int {
	out, _ := os.ReadFile("/proc/" + strconv.Itoa(m.init.Process.Pid) + "/task/" + strconv.Itoa(m.init.Process.Pid) + "/children")
	pid, _ := strconv.Atoi(strings.TrimSpace(string(out)))
	return pid
}

// sh runs a shell line on the machine.
func (m *machine) sh(line string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	args := []string{"-t", strconv.Itoa(m.first()), "--mount", "--pid", "--ipc", "--uts", "--net"}
	if m.cwd != "" {
		args = append(args, "--wd="+m.cwd)
	}
	cmd := exec.CommandContext(ctx, "nsenter", append(args, "sh", "-c", line)...)
	cmd.Env = append(os.Environ(), m.env...)
	out, err := cmd.CombinedOutput()
	return strings.TrimSpace(string(out)), err
}

func (m *machine) must(line string) string {
	m.w.t.Helper()
	out, err := m.sh(line)
	if err != nil {
		m.w.t.Fatalf("on %s: %s: %v\n%s", m.role, line, err, out)
	}
	return out
}

// dump shows what the host wrote when the test failed.
func (m *machine) dump(t *testing.T) {
	if !t.Failed() {
		return
	}
	logs, _ := filepath.Glob(m.files + "/var/log/remotegpu/*.log")
	for _, l := range logs {
		t.Logf("end of %s's %s:\n%s", m.role, filepath.Base(l), tail(l))
	}
}
