package e2e

import (
	"bufio"
	"crypto/rand"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// ideGateway is JetBrains Gateway's side of remote development:
// testdata/jetbrains/gateway.py, with AsyncSSH instead of sshj.
type ideGateway struct {
	t      *testing.T
	w      *world
	config string
	host   string
	dir    string // what it copies: a worker and a backend that nobody else has
	window string // the file of what its window has sent
}

// ideRun is one run of it.
type ideRun struct {
	t     *testing.T
	cmd   *exec.Cmd
	stdin io.WriteCloser
	lines *bufio.Scanner
	said  map[string]string // before it was ready
}

// jetbrains deploys as Gateway does for the first time, works while the host's
// line is silent, dies, and finds the same backend again.
func (s *tools) jetbrains(way string) {
	s.step("JetBrains' bootstrap", "usual", way, func(t *testing.T) {
		w := s.p.w
		g := &ideGateway{t: t, w: w, config: s.config, host: at("tools", way), dir: filepath.Join(w.dir, strings.ToLower(rand.Text()))}
		g.pack()
		first := g.begin()
		if first.said["deployed"] != "True True" || !strings.HasPrefix(first.said["link"], "tcp://127.0.0.1:") {
			t.Fatalf("the first time: %v", first.said)
		}
		first.does("talk", "terminal")
		w.in("nat1", "nft add table inet hush && nft 'add chain inet hush f { type filter hook forward priority -10; policy drop; }'")
		io.WriteString(first.stdin, "talk\n")
		time.Sleep(8 * time.Second) // the outage itself
		w.in("nat1", "nft delete table inet hush")
		first.answers("talk")
		first.does("talk", "terminal")
		if way == "gateway" { // which holds what was started, though not connections to ports
			w.reset("host")
			first.does("terminal", "reopen", "talk")
		}
		first.cmd.Process.Signal(syscall.SIGKILL) // the laptop's lid
		first.cmd.Wait()

		second := g.begin()
		if second.said["deployed"] != "False False" || second.said["link"] != first.said["link"] {
			t.Errorf("the second time: %v, the first: %v", second.said, first.said)
		}
		second.does("talk", "terminal", "reopen")
		second.stdin.Close()
		if err := second.cmd.Wait(); err != nil {
			t.Errorf("it ends with %v", err)
		}
		w.in("client", "ssh -F "+s.config+" "+g.host+" 'kill $(cat ~/.cache/JetBrains/RemoteDev/dist/"+filepath.Base(g.dir)+"/status-* | grep -v tcp)'")
	})
}

// pack makes what is copied: the worker, of its real size, and the archive of the
// IDE with its certificate, of a fiftieth.
func (g *ideGateway) pack() {
	g.t.Helper()
	src, err := filepath.Abs("testdata/jetbrains")
	if err != nil {
		g.t.Fatal(err)
	}
	g.window = g.dir + "/window"
	g.w.must("sh", "-c", "set -e; mkdir -p "+g.dir+"/ide/bin; cd "+g.dir+"; cp "+src+"/backend.py "+src+"/remote-dev-server.sh ide/bin/; chmod 755 ide/bin/remote-dev-server.sh; "+
		"openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 30 -keyout ide/key.pem -out ide/cert.pem -subj /CN=ide 2>/dev/null; "+
		"head -c 20000000 /dev/urandom >ide/lib; tar -czf "+filepath.Base(g.dir)+" ide; head -c 6000000 /dev/urandom | cat "+src+"/worker.sh - >worker")
}

// begin starts it and reads what it says until it is ready.
func (g *ideGateway) begin() *ideRun {
	g.t.Helper()
	r := &ideRun{t: g.t, said: map[string]string{}}
	// Debian's own python3 has AsyncSSH; a PATH may have others.
	r.cmd = exec.Command("nsenter", "--net=/run/netns/"+g.w.ns("client"), "/usr/bin/python3", "testdata/jetbrains/gateway.py",
		g.config, g.host, g.dir+"/worker", g.dir+"/"+filepath.Base(g.dir), g.window)
	r.cmd.Env = append(os.Environ(), "PATH="+g.w.bin+":"+os.Getenv("PATH"), "REMOTEGPU_CONFIG="+filepath.Join(g.w.dir, "cli.json"), "HOME="+g.w.dir)
	r.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	var err error
	if r.stdin, err = r.cmd.StdinPipe(); err != nil {
		g.t.Fatal(err)
	}
	stdout, err := r.cmd.StdoutPipe()
	if err != nil {
		g.t.Fatal(err)
	}
	r.cmd.Stderr = r.cmd.Stdout
	if err := r.cmd.Start(); err != nil {
		g.t.Fatal(err)
	}
	g.t.Cleanup(func() { g.w.end(r.cmd, syscall.SIGTERM) })
	stuck := time.AfterFunc(slower*3*time.Minute, func() { r.cmd.Process.Kill() })
	g.t.Cleanup(func() { stuck.Stop() })
	r.lines = bufio.NewScanner(stdout)
	r.answers("ready")
	return r
}

// answers reads until it says word, and keeps what it said before.
func (r *ideRun) answers(word string) {
	r.t.Helper()
	var all []string
	for r.lines.Scan() {
		if r.lines.Text() == word {
			return
		}
		all = append(all, r.lines.Text())
		if name, value, ok := strings.Cut(r.lines.Text(), " "); ok {
			r.said[name] = value
		}
	}
	r.t.Fatalf("it does not say %s: %v\n%s", word, r.lines.Err(), strings.Join(all, "\n"))
}

// does has it do something.
func (r *ideRun) does(words ...string) {
	r.t.Helper()
	for _, word := range words {
		fmt.Fprintln(r.stdin, word)
		r.answers(word)
	}
}
