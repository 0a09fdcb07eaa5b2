package e2e

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestAutonomy takes parts away, one after the other, while an environment
// runs: its container must not notice, what was asked for meanwhile must be so
// soon after, and nothing that nobody wants may be left.
func TestAutonomy(t *testing.T) { eachBroker(t, autonomy) }

func autonomy(t *testing.T, w *world) {
	p, m := w.newPlane(), w.machine()
	t.Cleanup(func() { m.dump(t) })
	p.login()
	p.pushBusybox()
	p.join(m, "")
	w.in("client", "remotegpu env create keep --gpus 1 --image "+busyboxImage)
	before := p.life(m, "keep")

	type fault struct {
		name  string
		fault func()
		back  func() // nil: it comes back by itself
		early bool   // what is asked for is asked before the fault: nobody would take it later
	}
	faults := []fault{
		{"agent killed", func() { m.kill(t, "remotegpu-agent run") }, nil, false},
		{"containerd killed", func() { m.kill(t, "containerd --") }, nil, false},
		{"database killed", func() { w.killDatabase() }, nil, false},
		{"server killed", p.kill, func() { time.Sleep(3 * time.Second); p.start() }, true},
		{"link cut", func() { w.in("nat1", "ip link set wan down"); time.Sleep(5 * time.Second) },
			func() { time.Sleep(15 * time.Second); w.in("nat1", "ip link set wan up") }, false},
	}
	if w.external {
		faults = append(faults, fault{"mosquitto killed", w.killMosquitto, func() { time.Sleep(3 * time.Second); w.startMosquitto() }, false})
	}
	for i, f := range faults {
		t.Run(f.name, func(t *testing.T) {
			comes, goes := fmt.Sprint("comes", i), fmt.Sprint("goes", i)
			w.in("client", "remotegpu env create "+goes+" --image "+busyboxImage)
			if f.early {
				p.ask(t, comes, goes)
			}
			f.fault()
			over := time.Now()
			if !f.early {
				p.ask(t, comes, goes)
			}
			if f.back != nil {
				f.back()
				over = time.Now()
			}
			p.waitPhase(comes, "running", 30*time.Second)
			eventually(t, 30*time.Second, goes+" is gone", func() (string, bool) {
				wanted := p.wanted()
				_, there := wanted[goes]
				diff := m.differs(wanted)
				return fmt.Sprintf("there: %v; %s", there, diff), !there && diff == ""
			})
			d := time.Since(over)
			t.Logf("what was asked for meanwhile was so %.1f s after the fault was over", d.Seconds())
			if d > soonAfter {
				t.Errorf("that is more than %v", soonAfter)
			}
			if now := p.life(m, "keep"); now != before {
				t.Errorf("the container is another: %s, was %s", now, before)
			}
			w.in("client", "remotegpu env rm "+comes)
			if diff := m.differs(p.wanted()); diff != "" {
				t.Error(diff)
			}
		})
	}
	if out := w.in("client", p.sshKey()+" keep.default@"+srvAddr+" echo still here"); out != "still here" {
		t.Errorf("ssh: %q", out)
	}
	t.Run("reboot without a control plane", func(t *testing.T) {
		wanted := p.wanted()
		p.kill()
		m.unplug()
		m.boot()
		m.must(atBoot)
		eventually(t, 60*time.Second, "the container is back by itself", func() (string, bool) {
			diff := m.differs(wanted)
			return diff, diff == ""
		})
		p.start()
		p.waitPhase("keep", "running", 30*time.Second)
		eventually(t, 30*time.Second, "a shell after the reboot", func() (string, bool) {
			out, _ := w.try("client", "remotegpu ssh keep -- echo back")
			return out, out == "back"
		})
	})
}

// soonAfter is how soon what was asked for meanwhile is to be so: what a host or
// TCP waits for until it tries again (8 and 13 s), and what the work itself takes
// three times over (4 s). Who waits for a keep-alive or a resync needs more.
const soonAfter = 25 * time.Second

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

// ask wishes that one environment comes and another goes, and waits for neither.
func (p *plane) ask(t *testing.T, comes, goes string) {
	t.Helper()
	for line, done := range map[string]string{
		"create " + comes + " --wait=false --image " + busyboxImage: "already",
		"rm " + goes + " --wait=false":                              "There is no environment",
	} {
		eventually(t, 20*time.Second, "the wish is taken: "+line, func() (string, bool) {
			out, err := p.w.try("client", "remotegpu env "+line)
			return out, err == nil || strings.Contains(out, done)
		})
	}
}

// wanted returns the ids of all environments by name. All run, but for those that
// are wanted no more and are not gone yet.
func (p *plane) wanted() map[string]string {
	p.w.t.Helper()
	var list struct{ Items []struct{ ID, Name string } }
	if err := json.Unmarshal([]byte(p.w.in("client", "remotegpu env ls -o json")), &list); err != nil {
		p.w.t.Fatal(err)
	}
	ids := map[string]string{}
	for _, e := range list.Items {
		ids[e.Name] = e.ID
	}
	return ids
}

// differs says how what containerd has is not what is wanted; empty: it is. Ids
// there end in a revision: two of one environment are one too many.
func (m *machine) differs(wanted map[string]string) string {
	want := strings.Join(slices.Sorted(maps.Values(wanted)), "\n")
	for what, line := range map[string]string{
		"containers":      "containers ls -q",
		"tasks":           "tasks ls | awk '$3 == \"RUNNING\" { print $1 }'",
		"writable layers": "snapshots ls | awk '$NF == \"Active\" { print $1 }'",
	} {
		if out, err := m.sh("ctr -n remotegpu " + line + " | sed 's/-[0-9]*$//' | LC_ALL=C sort"); err != nil || out != want {
			return fmt.Sprintf("%s on the host: %q (%v), wanted are %q", what, out, err, want)
		}
	}
	return ""
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
