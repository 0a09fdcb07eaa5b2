package e2e

import (
	"cmp"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// plane is a control plane in the namespace srv, with the command line logged
// in as its admin and a small image in its registry.
type plane struct {
	w    *world
	url  string
	args []string
	cmd  *exec.Cmd
}

const busyboxImage = srvAddr + ":8443/default/busybox:1"

// newPlane starts a control plane; more are flags of the server.
func (w *world) newPlane(more ...string) *plane {
	w.t.Helper()
	p := &plane{w: w, url: "https://" + srvAddr + ":8443"}
	p.args = append([]string{
		"server", "--data-dir", filepath.Join(w.dir, "srv"), "--downloads", w.downloads(),
		"--url", p.url, "--listen", srvAddr + ":8443", "--ssh-listen", srvAddr + ":2222",
	}, more...)
	if w.external {
		db := w.database(filepath.Join(w.dir, "srv/postgres"))
		p.args = append(p.args, append(w.mosquitto(db, ""), "--database-url", db)...)
	}
	p.start()
	return p
}

// downloads is what make dl made.
func (w *world) downloads() string {
	w.t.Helper()
	run := cmp.Or(os.Getenv("RG_RUN"), "run")
	if !filepath.IsAbs(run) {
		run = filepath.Join("..", run)
	}
	dl, err := filepath.Abs(filepath.Join(run, "dl"))
	if err == nil {
		_, err = os.Stat(dl)
	}
	if err != nil {
		w.t.Fatalf("%v: make dl makes it", err)
	}
	return dl
}

func (p *plane) start() {
	p.w.t.Helper()
	p.cmd = p.w.start("srv", "server.log", filepath.Join(p.w.bin, "remotegpu"), p.args...)
	eventually(p.w.t, 60*time.Second, "control plane is ready", func() (string, bool) {
		out, err := p.w.try("srv", "curl -fsSk -m 2 "+p.url+"/readyz")
		return out, err == nil
	})
}

// kill ends the control plane as a crash would.
func (p *plane) kill() {
	p.cmd.Process.Signal(syscall.SIGKILL)
	p.cmd.Wait()
}

// stop ends the server as its unit does.
func (p *plane) stop() {
	p.cmd.Process.Signal(syscall.SIGTERM)
	late := time.AfterFunc(time.Minute, func() { p.cmd.Process.Kill() })
	defer late.Stop()
	p.cmd.Wait()
}

// login logs the command line in as the first admin.
func (p *plane) login() {
	p.w.t.Helper()
	b, err := os.ReadFile(filepath.Join(p.w.dir, "srv/first-login.json"))
	if err != nil {
		p.w.t.Fatal(err)
	}
	var first struct{ Email, Password string }
	if err := json.Unmarshal(b, &first); err != nil {
		p.w.t.Fatal(err)
	}
	pin := p.w.in("client", "openssl s_client -connect "+srvAddr+":8443 </dev/null 2>/dev/null | openssl x509 -pubkey -noout | openssl pkey -pubin -outform der | openssl dgst -sha256 -binary | base64")
	p.w.in("client", "echo '"+first.Password+"' | remotegpu login "+p.url+" --email "+first.Email+" --password-stdin --pin sha256//"+pin)
}

// pushBusybox puts an image with nothing but busybox into the registry.
func (p *plane) pushBusybox() {
	p.w.t.Helper()
	root := filepath.Join(p.w.dir, "busybox")
	p.w.must("sh", "-c", "mkdir -p "+root+"/bin "+root+"/tmp "+root+"/etc && cp /bin/busybox "+root+"/bin/ && "+
		"for a in sh cat ls id sleep stty kill env head sha256sum true hostname ip wc ps nc echo date; do ln -sf busybox "+root+"/bin/$a; done && "+
		"echo root:x:0:0:root:/:/bin/sh > "+root+"/etc/passwd && tar -C "+root+" -cf "+root+".tar .")
	p.w.must("sh", "-c", "go run ../deploy/images/oci -dir "+root+".oci -tag 1 <"+root+".tar")
	token := p.w.in("client", "remotegpu token create push")
	p.w.in("client", "skopeo copy -q --dest-tls-verify=false --dest-creds token:"+token+" oci:"+root+".oci:1 docker://"+busyboxImage)
}

// join runs the real install line on the machine.
func (p *plane) join(m *machine, options string) string {
	p.w.t.Helper()
	line := strings.ReplaceAll(p.w.in("client", "remotegpu host join"), "| sudo sh", "| sh")
	out := m.must(line + " --gpu-source sim:2xH100 " + options)
	if p.w.external {
		p.w.atMosquitto(m)
	}
	return out
}

// env returns an environment as the API has it.
func (p *plane) env(name string) (e struct {
	Phase, Message, Host string
	Pid                  int
	StartedAt            string `json:"started_at"`
	GPUs                 []string
}) {
	p.w.t.Helper()
	if err := json.Unmarshal([]byte(p.w.in("client", "remotegpu env show "+name)), &e); err != nil {
		p.w.t.Fatal(err)
	}
	return e
}

// waitPhase waits until an environment is in a phase.
func (p *plane) waitPhase(name, phase string, within time.Duration) {
	p.w.t.Helper()
	eventually(p.w.t, within, name+" is "+phase, func() (string, bool) {
		e := p.env(name)
		return e.Phase + ": " + e.Message, e.Phase == phase
	})
}

// sshKey makes and registers a key and returns how ssh is called with it.
func (p *plane) sshKey() string {
	p.w.t.Helper()
	key := filepath.Join(p.w.dir, "id")
	p.w.in("client", "ssh-keygen -q -t ed25519 -N '' -f "+key+" && remotegpu key add "+key+".pub")
	return "ssh -F none -i " + key + " -p 2222 -o IdentitiesOnly=yes -o BatchMode=yes -o StrictHostKeyChecking=accept-new -o UserKnownHostsFile=" +
		p.w.dir + "/known_hosts -o LogLevel=ERROR -o ConnectTimeout=10"
}

// pidOf returns the pid, as seen from here, of the only process below the
// machine whose command line has all of words. It waits for one that is just
// being started again: the supervisor takes its time after a few ends in a row.
func (m *machine) pidOf(t *testing.T, words ...string) int {
	t.Helper()
	var found []int
	eventually(t, 45*time.Second, fmt.Sprintf("one process of the machine is %q", words), func() (string, bool) {
		found = m.running(words)
		return fmt.Sprintf("they are %d: %v", len(found), found), len(found) == 1
	})
	return found[0]
}

// running returns the machine's processes whose command line has all of words.
func (m *machine) running(words []string) (found []int) {
	for _, pid := range m.processes() {
		b, _ := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/cmdline")
		line := strings.ReplaceAll(string(b), "\x00", " ")
		if !slices.ContainsFunc(words, func(w string) bool { return !strings.Contains(line, w) }) {
			found = append(found, pid)
		}
	}
	return found
}

// processes lists the machine's processes: those in its pid namespace.
func (m *machine) processes() (pids []int) {
	ns, err := os.Readlink("/proc/" + strconv.Itoa(m.first()) + "/ns/pid")
	if err != nil {
		return nil
	}
	all, _ := filepath.Glob("/proc/[0-9]*/ns/pid")
	for _, link := range all {
		if got, err := os.Readlink(link); err == nil && got == ns {
			pid, _ := strconv.Atoi(strings.Split(link, "/")[2])
			pids = append(pids, pid)
		}
	}
	return pids
}
