package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestAutonomy takes parts away, one after the other, while an environment
// runs: its container must not notice, and what was asked for meanwhile must
// be there soon after.
func TestAutonomy(t *testing.T) {
	w := newWorld(t)
	p, m := w.newPlane(), w.machine()
	t.Cleanup(func() { m.dump(t) })
	p.login()
	p.pushBusybox()
	p.join(m, "")
	w.in("client", "remotegpu env create keep --gpus 1 --image "+busyboxImage)
	before := p.life(m, "keep")

	faults := []struct {
		name  string
		fault func()
		back  func() // nil: it comes back by itself
	}{
		{"agent killed", func() { m.kill(t, "remotegpu-agent run") }, nil},
		{"containerd killed", func() { m.kill(t, "containerd --") }, nil},
		{"database killed", func() { w.killDatabase() }, nil},
		{"server killed", p.kill, p.start},
		{"link cut", func() { w.in("nat1", "ip link set wan down"); time.Sleep(20 * time.Second) },
			func() { w.in("nat1", "ip link set wan up") }},
	}
	for i, f := range faults {
		t.Run(f.name, func(t *testing.T) {
			f.fault()
			if f.back != nil {
				f.back()
			}
			over := time.Now()
			name := fmt.Sprintf("asked%d", i)
			eventually(t, 20*time.Second, "the wish is taken", func() string {
				out, err := w.try("client", "remotegpu env create "+name+" --wait=false --image "+busyboxImage)
				if err != nil && !strings.Contains(out, "already") {
					return out
				}
				return ""
			})
			p.waitPhase(name, "running", 30*time.Second)
			t.Logf("what was asked for ran %.1f s after the fault was over", time.Since(over).Seconds())
			if d := time.Since(over); d > 10*time.Second {
				t.Errorf("that is more than 10 s")
			}
			if now := p.life(m, "keep"); now != before {
				t.Errorf("the container is another: %s, was %s", now, before)
			}
			w.in("client", "remotegpu env rm "+name)
			if n := m.containers(); n != 1 {
				t.Errorf("%d containers on the host, 1 is wanted", n)
			}
		})
	}
	if out := w.in("client", p.sshKey()+" keep.default@"+srvAddr+" echo still here"); out != "still here" {
		t.Errorf("ssh: %q", out)
	}
	t.Run("reboot without a control plane", func(t *testing.T) {
		p.kill()
		m.unplug()
		m.boot()
		m.must(atBoot)
		eventually(t, 60*time.Second, "the container is back by itself", func() string {
			if n := m.containers(); n != 1 {
				return fmt.Sprintf("%d containers", n)
			}
			return ""
		})
		p.start()
		p.waitPhase("keep", "running", 30*time.Second)
		eventually(t, 30*time.Second, "a shell after the reboot", func() string {
			if out, _ := w.try("client", "remotegpu ssh keep -- echo back"); out != "back" {
				return out
			}
			return ""
		})
	})
}

// atBoot is what starts the agent where there is no systemd.
const atBoot = `sh -c 'set -a; . /etc/remotegpu/agent.env; setsid /usr/local/bin/remotegpu-agent supervise >/dev/null 2>&1 </dev/null &'`

// life returns pid and start time of an environment's container, as the kernel
// has them.
func (p *plane) life(m *machine, name string) string {
	p.w.t.Helper()
	pid := p.env(name).Pid
	stat, err := m.sh("cut -d' ' -f1,22 /proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil || pid == 0 {
		p.w.t.Fatalf("container of %s (pid %d): %v %s", name, pid, err, stat)
	}
	return stat
}

// containers counts what runs in our namespace of containerd.
func (m *machine) containers() int {
	out, err := m.sh("ctr -n remotegpu task ls -q | wc -l")
	n, convErr := strconv.Atoi(out)
	if err != nil || convErr != nil {
		return -1
	}
	return n
}

// kill ends a program of the machine as a crash would.
func (m *machine) kill(t *testing.T, words ...string) {
	t.Helper()
	if err := syscall.Kill(m.pidOf(t, words...), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
}

// killDatabase ends PostgreSQL's first process.
func (w *world) killDatabase() {
	w.t.Helper()
	pid, err := w.postmaster()
	if err == nil {
		err = syscall.Kill(pid, syscall.SIGKILL)
	}
	if err != nil {
		w.t.Fatal(err)
	}
}

// postmaster returns the pid of PostgreSQL's first process.
func (w *world) postmaster() (int, error) {
	b, err := os.ReadFile(filepath.Join(w.dir, "srv/postgres/data/postmaster.pid"))
	if err != nil {
		return 0, err
	}
	line, _, _ := strings.Cut(string(b), "\n")
	return strconv.Atoi(line)
}
