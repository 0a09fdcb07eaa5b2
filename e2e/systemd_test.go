package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

const unit = "remotegpu-agent"

// TestSystemd is the install line on a fresh Debian: systemd runs the agent, and
// an environment outlives the agent's restart and comes back after the machine's.
func TestSystemd(t *testing.T) {
	w := newWorld(t)
	p, m := w.newPlane(), w.debian()
	p.login()
	p.pushBusybox()
	if out := p.join(m, "--name box"); !strings.Contains(out, "started as systemd unit "+unit) {
		t.Errorf("the install line does not say that it started the unit:\n%s", out)
	}
	m.wantUnit(t)
	if out := w.in("client", "remotegpu host ls"); !strings.Contains(out, "online") {
		t.Fatalf("the host is not online: %s", out)
	}
	t.Logf("what the unit may do:\n%s", m.must("systemd-analyze security --no-pager "+unit))
	w.in("client", "remotegpu env create one --gpus 1 --image "+busyboxImage)
	shell := p.sshKey() + " one.default@" + srvAddr + " hostname"
	if out := w.in("client", shell); out != "one" {
		t.Errorf("ssh: %q", out)
	}

	t.Run("agent restarts", func(t *testing.T) {
		before, agent := p.life(m, "one"), m.property("MainPID")
		m.must("systemctl restart " + unit)
		eventually(t, 30*time.Second, "a shell after the restart", func() (string, bool) { return p.prints(shell, "one") })
		if now := p.life(m, "one"); now != before {
			t.Errorf("the container is another: %s, was %s", now, before)
		}
		if m.property("MainPID") == agent {
			t.Error("the agent was not restarted")
		}
		m.wantUnit(t)
	})
	t.Run("containerd restarts", func(t *testing.T) {
		before := p.life(m, "one")
		m.must("systemctl restart containerd")
		w.in("client", "remotegpu env create two --image "+busyboxImage)
		if now := p.life(m, "one"); now != before {
			t.Errorf("the container is another: %s, was %s", now, before)
		}
		w.in("client", "remotegpu env rm two")
	})
	t.Run("machine reboots", func(t *testing.T) {
		boot := m.must("cat /proc/sys/kernel/random/boot_id")
		m.reboot()
		if m.must("cat /proc/sys/kernel/random/boot_id") == boot {
			t.Error("the machine has not booted anew")
		}
		eventually(t, 60*time.Second, "a shell after the reboot", func() (string, bool) { return p.prints(shell, "one") })
		p.waitPhase("one", "running", 30*time.Second)
		if diff := m.differs(p.wanted()); diff != "" {
			t.Error(diff)
		}
		m.wantUnit(t)
	})
	t.Run("again and away", func(t *testing.T) {
		agent := m.property("MainPID")
		if out := p.join(m, "--name box"); !strings.Contains(out, "nothing was changed") || m.property("MainPID") != agent {
			t.Errorf("the second run restarts the agent:\n%s", out)
		}
		againAndAway(t, p, m)
		if out, err := m.sh("{ systemctl cat " + unit + "; ls /etc/systemd/system/*/" + unit + ".service; } 2>/dev/null | grep ."); err == nil {
			t.Errorf("uninstall leaves the unit: %s", out)
		}
		if out := m.must("systemctl --failed --no-legend"); out != "" {
			t.Errorf("uninstall leaves failed units: %s", out)
		}
	})
}

// prints runs a line at the client and reports whether it prints want and no more.
func (p *plane) prints(line, want string) (string, bool) {
	out, err := p.w.try("client", line)
	return fmt.Sprint(out, err), err == nil && out == want
}

// debian boots a fresh Debian with systemd in the host's network. Its first
// process is systemd; the rest is as with machine.
func (w *world) debian() *machine {
	w.t.Helper()
	w.oneAtATime()
	m := &machine{w: w, files: filepath.Join(w.dir, "debian")}
	tar := lastLine(w.must("./root.sh", "../run/machines"))
	w.must("mkdir", m.files)
	w.must("tar", "-C", m.files, "-xf", tar)
	w.t.Cleanup(m.unplug)
	m.bootSystemd()
	w.t.Cleanup(func() {
		if w.t.Failed() {
			log, _ := m.sh("journalctl --no-pager -n 80 -u " + unit + " -u containerd")
			w.t.Logf("journal of the host:\n%s", log)
		}
	})
	return m
}

// oneAtATime waits for other machines with systemd here: without a systemd
// outside, they would share cgroups.
func (w *world) oneAtATime() {
	w.t.Helper()
	lock, err := os.Create("/run/lock/remotegpu-e2e-systemd")
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { lock.Close() })
	eventually(w.t, 5*time.Minute, "no other machine with systemd", func() (string, bool) {
		err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		return fmt.Sprint(err), err == nil
	})
}

// bootSystemd lets systemd-nspawn stand in for firmware and kernel. The machine's
// network is the role host's, so the container itself is started beside it.
func (m *machine) bootSystemd() {
	m.w.t.Helper()
	m.init = m.w.start("wan", "host-init.log", "env", "SYSTEMD_NSPAWN_API_VFS_WRITABLE=1",
		"systemd-nspawn", "-D", m.files, "-b", "--machine="+m.w.ns("debian"), "--register=no", "--keep-unit",
		"--network-namespace-path=/run/netns/"+m.w.ns("host"), "--capability=all", "--system-call-filter=add_key keyctl bpf",
		"--console=pipe", "--link-journal=no", "--resolv-conf=off", "--timezone=off")
	eventually(m.w.t, 60*time.Second, "systemd is up", func() (string, bool) {
		out, _ := m.sh("systemctl is-system-running")
		jobs, _ := m.sh("systemctl list-jobs --no-legend")
		return out + ": " + jobs, out == "running" || out == "degraded"
	})
}

// reboot is systemctl reboot; nspawn ends where a machine would start anew.
func (m *machine) reboot() {
	m.w.t.Helper()
	m.sh("systemctl reboot") // which may end this shell too
	down := make(chan error, 1)
	go func() { down <- m.init.Wait() }()
	select {
	case <-down:
	case <-time.After(slower * 90 * time.Second):
		m.w.t.Fatal("the machine does not go down")
	}
	m.bootSystemd()
}

// wantUnit checks that the agent's unit runs now and will at boot.
func (m *machine) wantUnit(t *testing.T) {
	t.Helper()
	for property, want := range map[string]string{"ActiveState": "active", "SubState": "running", "UnitFileState": "enabled", "NRestarts": "0"} {
		if got := m.property(property); got != want {
			t.Errorf("%s of the unit is %q, want %q", property, got, want)
		}
	}
}

func (m *machine) property(name string) string {
	m.w.t.Helper()
	return m.must("systemctl show --value -p " + name + " " + unit)
}

func lastLine(text string) string {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	return lines[len(lines)-1]
}
