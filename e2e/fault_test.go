package e2e

import (
	"context"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

// TestHostFaults breaks what a host stands on: its token, its authority, its
// clock, its disk and its files. Each fault is one clear sentence where the
// person looks, and the environment that runs does not notice.
func TestHostFaults(t *testing.T) {
	w := newWorld(t)
	p, m := w.newPlane(), w.machine()
	t.Cleanup(func() { m.dump(t) })
	p.login()
	p.pushBusybox()
	// A tmpfs takes memory only as it is filled.
	m.must("mkdir /opt/data /opt/small && mount -t tmpfs -o size=1100m tmpfs /opt/data && mount -t tmpfs -o size=16m tmpfs /opt/small")
	refusedJoins(t, p, m)
	p.join(m, "--name box --data-dir /opt/data/rg")
	w.in("client", "remotegpu env create keep --gpus 1 --image "+busyboxImage)
	before := p.life(m, "keep")
	for _, fault := range []struct {
		name string
		run  func(*testing.T, *plane, *machine)
	}{
		{"disk full", diskFull},
		{"containerd stands still", runtimeStill},
		{"clock an hour ahead", clockAhead},
		{"damaged state", damagedState},
		{"damaged identity", damagedIdentity},
	} {
		t.Run(fault.name, func(t *testing.T) {
			fault.run(t, p, m)
			if now := p.life(m, "keep"); now != before {
				t.Errorf("the container is another: %s, was %s", now, before)
			}
			if out := w.in("client", "remotegpu ssh keep -- echo works"); out != "works" {
				t.Errorf("a shell: %q", out)
			}
			if n := len(strings.Split(w.in("client", "remotegpu host ls"), "\n")); n != 2 {
				t.Errorf("%d lines of hosts, one host is wanted", n)
			}
		})
	}
}

// refusedJoins tries to join in ways that cannot work.
func refusedJoins(t *testing.T, p *plane, m *machine) {
	line := strings.ReplaceAll(p.w.in("client", "remotegpu host join"), "| sudo sh", "| sh") + " --data-dir /opt/data/rg"
	p.sql("update join_tokens set expires_at = now() - interval '1 minute'")
	p.w.must("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "30",
		"-keyout", "/dev/null", "-out", filepath.Join(p.w.dir, "other.pem"), "-subj", "/CN=Somebody else")
	_, arguments, _ := strings.Cut(line, "| sh -s --")
	// The certificate in the script becomes another one; the rest is as served.
	wrongCA := "curl -fsSk " + p.url + "/install.sh | awk -v f=" + p.w.dir + "/other.pem '" +
		`/-----BEGIN CERTIFICATE/ { sub(/-----BEGIN.*/, ""); printf "%s", $0; while ((getline l < f) > 0) printf "%s%s", (n++ ? "\n" : ""), l; skip = 1 } ` +
		`!skip { print } /-----END CERTIFICATE/ { sub(/.*-----END CERTIFICATE-----/, ""); print; skip = 0 }' | sh -s -- ` + arguments
	for _, tt := range []struct{ name, line, want string }{
		{"expired token", line, "expired"},
		{"wrong authority", wrongCA, "does not show the certificate that this script was made for"},
		{"no room", strings.Replace(line, "/opt/data/rg", "/opt/small/rg", 1), "MiB of free space and has"},
	} {
		out, err := m.sh(tt.line + " --gpu-source none")
		last := out[strings.LastIndex(out, "\n")+1:]
		t.Logf("%s: %s", tt.name, last)
		if err == nil || !strings.Contains(last, tt.want) {
			t.Errorf("%s: err %v, the last line lacks %q:\n%s", tt.name, err, tt.want, out)
		}
	}
	if out, err := m.sh("ls -A /opt/data /opt/small /etc/remotegpu /usr/local/lib/remotegpu /usr/local/bin/remotegpu-agent 2>/dev/null | grep -v -e : -e '^$'"); err == nil {
		t.Errorf("refused joins leave something:\n%s", out)
	}
}

// diskFull takes all room from the agent's data folder, and gives it back.
func diskFull(t *testing.T, p *plane, m *machine) {
	m.must("mount -o remount,size=$(du -sk /opt/data | cut -f1)k /opt/data && (cat /dev/zero > /opt/data/filler || :) 2>/dev/null")
	p.w.in("client", "remotegpu env create later --wait=false --image "+busyboxImage)
	p.waitEvent("the disk that holds /opt/data/rg is full")
	m.must("mount -o remount,size=1100m /opt/data && rm /opt/data/filler")
	p.waitPhase("later", "running", 60*time.Second)
	p.w.in("client", "remotegpu env rm later")
}

// runtimeStill: the host says what is with it, and gets nothing new until it can
// start it.
func runtimeStill(t *testing.T, p *plane, m *machine) {
	pid := m.pidOf(t, "containerd --")
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	goOn := sync.OnceFunc(func() { _ = syscall.Kill(pid, syscall.SIGCONT) })
	defer goOn()
	eventually(t, time.Minute, "the host says that it can run nothing", func() (string, bool) {
		out := p.w.in("client", "remotegpu host ls; remotegpu host show box")
		return out, strings.Contains(out, " error ") && strings.Contains(out, "containerd does not answer")
	})
	p.w.in("client", "remotegpu env create waits --wait=false --image "+busyboxImage)
	eventually(t, 20*time.Second, "a new environment waits and says why", func() (string, bool) {
		out := p.w.in("client", "remotegpu env show waits")
		return out, strings.Contains(out, "unhealthy")
	})
	goOn()
	p.waitPhase("waits", "running", time.Minute)
	p.w.in("client", "remotegpu env rm waits")
}

func clockAhead(t *testing.T, p *plane, m *machine) {
	const program = "/usr/local/bin/remotegpu-agent"
	m.must("cp " + program + " " + program + ".right && cp " + p.w.skewed("../edge-agent") + " " + program + ".new && mv " + program + ".new " + program + " && echo 3600 >" + skewFile)
	m.kill(t, "remotegpu-agent run")
	p.waitEvent("This host's clock is (59m59|1h0m[01])s fast") // it is measured to about a second
	p.w.in("client", "remotegpu env create ahead --image "+busyboxImage)
	if out := p.w.in("client", "remotegpu ssh ahead -- echo works"); out != "works" {
		t.Errorf("a shell while the clock is wrong: %q", out)
	}
	m.must("echo -1800 >" + skewFile) // while it is connected
	time.Sleep(time.Second)
	for range 5 { // more than there are connections from before
		if out := p.w.in("client", "timeout 20 remotegpu ssh ahead -- echo works"); out != "works" {
			t.Errorf("a shell after the clock was set: %q", out)
		}
	}
	p.waitEvent("This host's clock is (29m59|30m[01])s slow")
	p.w.in("client", "remotegpu env rm ahead")
	m.must("mv " + program + ".right " + program + " && rm " + skewFile)
	m.kill(t, "remotegpu-agent run")
	p.waitOnline()
}

func damagedState(t *testing.T, p *plane, m *machine) {
	m.must("cd /opt/data/rg && for f in state.json desired.cose; do head -c 300 /dev/urandom > $f; done")
	m.kill(t, "remotegpu-agent run")
	p.waitEvent("The file desired.cose was damaged")
	p.waitEvent("The file state.json was damaged")
	m.must("ls /opt/data/rg/state.json.corrupt* /opt/data/rg/desired.cose.corrupt*")
	p.waitOnline()
	p.waitPhase("keep", "running", 30*time.Second)
}

// damagedIdentity takes the host's identity away: the install line with a new
// token makes it the same host again.
func damagedIdentity(t *testing.T, p *plane, m *machine) {
	was := p.env("keep").Host
	m.must("echo '{' > /opt/data/rg/agent.json")
	m.kill(t, "remotegpu-agent run")
	eventually(t, 20*time.Second, "status says what to do", func() (string, bool) {
		out, err := m.sh("REMOTEGPU_DATA_DIR=/opt/data/rg remotegpu-agent status")
		return out, err != nil && strings.Contains(out, "not enrolled")
	})
	p.join(m, "--data-dir /opt/data/rg")
	p.waitEvent("The file agent.json was damaged")
	p.waitOnline()
	p.waitPhase("keep", "running", 30*time.Second)
	if now := p.env("keep").Host; now != was {
		t.Errorf("it is another host: %s, was %s", now, was)
	}
}

// waitEvent waits until an event of the host box says something.
func (p *plane) waitEvent(says string) {
	p.w.t.Helper()
	eventually(p.w.t, 60*time.Second, "the host's events say "+says, func() (string, bool) {
		out := p.w.in("client", "remotegpu host events box")
		return out, regexp.MustCompile(says).MatchString(out)
	})
}

// waitOnline waits until the host box has a fresh link.
func (p *plane) waitOnline() {
	p.w.t.Helper()
	eventually(p.w.t, 60*time.Second, "the host is online and answers", func() (string, bool) {
		out, _ := p.w.try("client", "remotegpu ssh keep -- echo works")
		return out, out == "works"
	})
}

// sql changes the control plane's database as nobody else may.
func (p *plane) sql(statement string) {
	p.w.t.Helper()
	conn, err := pgx.Connect(context.Background(), "host="+filepath.Join(p.w.dir, "srv/postgres")+" port=5432 user=remotegpu dbname=remotegpu")
	if err != nil {
		p.w.t.Fatal(err)
	}
	defer conn.Close(context.Background())
	if _, err := conn.Exec(context.Background(), statement); err != nil {
		p.w.t.Fatal(err)
	}
}
