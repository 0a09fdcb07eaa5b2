package e2e

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/client"

	"github.com/remotegpu/remotegpu/e2e/chaos"
)

// What a run is made of, unless the environment says otherwise.
const (
	chaosMinutes = 5.0
	chaosHosts   = 2
	chaosAgents  = 50
	chaosSeed    = 1
)

// cloudName is how hosts call the server: they need DNS for it.
const cloudName = "cloud.test"

const (
	stormLasts = 30 * time.Second
	// restWithin is how long the system may take to come to rest: an agent's
	// longest pause between tries to connect is a minute.
	restWithin = 2 * time.Minute
	restAbout  = 4 * time.Second // to count rounds with
	// moreGoroutines is what one more or less of the pools of a program in the same
	// state has.
	moreGoroutines = 60
)

// TestChaos breaks everything by a plan, while environments come and go and
// people work in them, and checks the invariants of package chaos all the time.
// RG_CHAOS_SEED, _MINUTES, _HOSTS, _AGENTS, _SERVERS and _BROKERS choose another run: see make chaos.
func TestChaos(t *testing.T) {
	w := newWorld(t)
	seed, minutes, hosts := number(t, "RG_CHAOS_SEED", chaosSeed), number(t, "RG_CHAOS_MINUTES", chaosMinutes), int(number(t, "RG_CHAOS_HOSTS", chaosHosts))
	agents, servers := int(number(t, "RG_CHAOS_AGENTS", chaosAgents)), min(2, int(number(t, "RG_CHAOS_SERVERS", 1)))
	brokers := int(number(t, "RG_CHAOS_BROKERS", 0))
	if brokers > 0 {
		servers, agents, brokers = 2, 0, 1 // simulated hosts know no broker beside the server
	}
	y := w.newYard(hosts, agents, uint64(seed), func(y *yard) { y.newControl(servers, brokers) })
	run := &chaos.Run{
		System: chaos.System{Faults: y.faults(), Look: y.look, Rest: y.rest, Resume: y.resume, Clear: y.wisher.clear, Log: t.Logf},
		Seed:   uint64(seed), For: time.Duration(minutes * float64(time.Minute)), Calm: restWithin,
		Shape: chaos.Shape{
			Rounds: max(1, int(minutes*60/(stormLasts+restAbout).Seconds())), Storm: stormLasts, Pause: 2 * time.Second,
			Parts: map[string]int{partHost: hosts, partControl: 1, partClient: 1, partSim: agents, partReplica: servers, partBroker: brokers},
		},
		Replay: fmt.Sprintf("make chaos SEED=%v MINUTES=%v HOSTS=%d AGENTS=%d SERVERS=%d BROKERS=%d", seed, minutes, hosts, agents, servers, brokers),
	}
	before := y.goroutines()
	report := run.Do(t.Context())
	report.Notes = append(report.Notes, y.wisher.String())
	write(t, report) // what is looked at after it may end the test
	for _, work := range y.shells {
		if report.Broke == nil {
			work.finish()
		}
	}
	if report.Broke == nil {
		after := y.goroutines()
		for _, name := range slices.Sorted(maps.Keys(after)) {
			n := after[name]
			report.Notes = append(report.Notes, fmt.Sprintf("Goroutines of %s: %d at the start, %d at the end.", name, before[name], n))
			if n > before[name]+moreGoroutines+agents/10 {
				t.Errorf("%s has %d goroutines at the end, %d at the start", name, n, before[name])
			}
		}
	} else {
		t.Errorf("after %v: %s: %s\nagain: %s", report.Broke.At, report.Broke.Invariant, report.Broke.What, report.Replay)
	}
	if write(t, report); report.Broke != nil {
		w.keepLogs()
	}
	t.Logf("%s", report)
}

// write puts the report where RG_CHAOS_REPORT says.
func write(t *testing.T, report *chaos.Report) {
	t.Helper()
	if file := os.Getenv("RG_CHAOS_REPORT"); file != "" {
		if err := os.WriteFile(file, []byte(report.String()), 0o644); err != nil {
			t.Error(err)
		}
	}
}

// keepLogs puts what all programs wrote beside the report.
func (w *world) keepLogs() {
	if dir := filepath.Dir(os.Getenv("RG_CHAOS_REPORT")); dir != "." {
		w.must("sh", "-c", "cp "+w.dir+"/*.log "+dir+"/ && for l in "+w.dir+"/host*/var/log/remotegpu/agent.log; do cp $l "+dir+"/$(echo ${l#"+w.dir+"/} | tr / -); done")
	}
}

func number(t *testing.T, name string, otherwise float64) float64 {
	t.Helper()
	text := os.Getenv(name)
	if text == "" {
		return otherwise
	}
	n, err := strconv.ParseFloat(text, 64)
	if err != nil || n < 0 {
		t.Fatalf("%s=%q is no number from 0", name, text)
	}
	return n
}

// yard is a control plane with hosts, each behind a line that can be bad, and
// with people who work there.
type yard struct {
	t        *testing.T
	w        *world
	p        *plane
	seed     uint64
	boxes    []*box
	servers  []*server
	disk     string // where the control plane keeps what it has
	data     string // where PostgreSQL does
	database string // how PostgreSQL is reached
	fleet    *fleet // nil: none
	shells   []*work
	wisher   *wisher
	api      *http.Client // of the API, in the client's network
	token    string
	ssh      string // how OpenSSH is called
	agent    string // the program with a clock that can jump

	read map[string]int64 // how far each log has been looked through

	mu     sync.Mutex // guards what follows
	said   []string
	rested []int // lines that each shell had when the calm began; nil: it has not
}

// box is one of the hosts.
type box struct {
	*machine
	name string
	id   string
	line *chaos.Line
	dns  *chaos.Names
	dir  string // the agent's data folder, on the machine

	mu    sync.Mutex // guards what follows, and the machine's going off and on
	boots int
	ctr   *client.Client // nil: it has to be made
}

// newYard starts everything: an environment per host that is asked nothing, and
// somebody who works in it.
func (w *world) newYard(hosts, agents int, seed uint64, control func(*yard)) *yard {
	w.t.Helper()
	y := &yard{t: w.t, w: w, seed: seed, read: map[string]int64{}}
	control(y)
	y.api = &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{
		DialContext:     func(_ context.Context, _, address string) (net.Conn, error) { return w.dial("client", address) },
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, DisableKeepAlives: true,
	}}
	y.p.login()
	y.p.pushBusybox()
	y.token = w.in("client", "remotegpu token create chaos")
	y.ssh = y.p.sshKey()
	y.agent = w.skewed("../edge-agent")
	for i := range hosts {
		y.boxes = append(y.boxes, y.newBox(i))
	}
	if agents > 0 {
		y.fleet = y.newFleet(agents)
	}
	y.wisher = newWisher(y)
	for i, b := range y.boxes {
		y.wisher.keep(b)
		if i == y.spared() {
			break // its power goes, and with it all that runs there
		}
		y.shells = append(y.shells, w.newWork(w.t, b.kept(), seed+uint64(i), 100*time.Millisecond))
	}
	for _, k := range y.shells {
		k.until(1, time.Minute)
	}
	y.wisher.run(w.t.Context())
	return y
}

// hosts is how many there are, real and simulated.
func (y *yard) hosts() int {
	if y.fleet == nil {
		return len(y.boxes)
	}
	return len(y.boxes) + y.fleet.agents
}

// spared is the number of hosts whose power never goes: all but one, or the only one.
func (y *yard) spared() int { return max(1, len(y.boxes)-1) }

// small makes a folder a disk of its own, which can be full. A tmpfs takes
// memory only as it is filled.
func (w *world) small(dir string) {
	w.t.Helper()
	w.must("sh", "-c", "mkdir -p "+dir+" && mount -t tmpfs -o mode=755,size="+diskSize+" tmpfs "+dir)
	w.t.Cleanup(func() { exec.Command("umount", "-l", dir).Run() })
}

// kept is the name of the box's environment of which nothing is asked.
func (b *box) kept() string { return "keep-" + b.name }

// newBox joins a host whose connections to the server go through a line, and
// whose DNS is ours.
func (y *yard) newBox(i int) *box {
	y.t.Helper()
	b := &box{name: fmt.Sprint("box", i), dir: "/opt/data/rg"}
	role, dev, router := "host", "lan", fmt.Sprintf("192.168.%d.1", 77+i)
	if i > 0 {
		role, dev = y.w.hostBehind(i)
	}
	disk := filepath.Join(y.w.dir, role+"-data")
	y.w.small(disk)
	b.machine = y.w.machineIn(role, bind{disk, "/opt/data"})
	y.t.Cleanup(func() { b.dump(y.t) })
	b.cwd = y.w.dir // where the authority's certificate may lie
	y.bad(b, dev, router)
	b.must("rm -f /etc/resolv.conf && echo nameserver " + router + " >/etc/resolv.conf")
	y.p.join(b.machine, "--name "+b.name+" --data-dir "+b.dir)
	const program = "/usr/local/bin/remotegpu-agent" // whose clock can jump
	b.must("cp " + y.agent + " " + program + ".new && mv " + program + ".new " + program)
	b.kill(y.t, "remotegpu-agent run")
	return b
}

// bad makes what of the host's network can be bad: it stands on the router, at
// the device that leads to the host.
func (y *yard) bad(b *box, dev, router string) {
	y.t.Helper()
	var dns net.PacketConn
	var err error
	if inside := y.w.inside("nat2", func() { dns, err = net.ListenPacket("udp4", router+":53") }); errors.Join(inside, err) != nil {
		y.t.Fatal(inside, err)
	}
	y.t.Cleanup(func() { dns.Close() })
	b.dns, b.line = chaos.NewNames(dns, net.ParseIP(srvAddr)), chaos.NewLine()
	y.w.in("nat2", "nft add table ip line && nft 'add chain ip line pre { type nat hook prerouting priority -100; }'")
	for _, port := range []string{":8443", ":8883"} { // the server, and an MQTT broker beside it
		var l net.Listener
		if inside := y.w.inside("nat2", func() { l, err = net.Listen("tcp4", router+port) }); errors.Join(inside, err) != nil {
			y.t.Fatal(inside, err)
		}
		y.t.Cleanup(func() { l.Close() })
		go b.line.Serve(l, func() (net.Conn, error) { return y.w.dial("nat2", srvAddr+port) })
		y.w.in("nat2", "nft add rule ip line pre iifname "+dev+" tcp dport "+port[1:]+" redirect")
	}
}

// path is where a file of the machine lies on this one.
func (b *box) path(name string) string {
	return filepath.Join("/proc", strconv.Itoa(b.first()), "root", name)
}

// goroutines ends server and agents as SIGQUIT does, which makes them tell
// their goroutines, and returns how many each had.
func (y *yard) goroutines() map[string]int {
	y.t.Helper()
	time.Sleep(5 * time.Second) // for what ends just then
	n := map[string]int{}
	for _, b := range y.boxes {
		n["the agent of "+b.name] = told(y.t, filepath.Join(b.files, "var/log/remotegpu/agent.log"), func() {
			if err := syscall.Kill(b.pidOf(y.t, "remotegpu-agent run"), syscall.SIGQUIT); err != nil {
				y.t.Fatal(err)
			}
		})
	}
	for _, s := range y.servers {
		if !s.runs() {
			y.w.keepLogs()
			y.t.Fatalf("%s is not there: %v", s.name, s.cmd.ProcessState)
		}
		n[s.name] = told(y.t, filepath.Join(y.w.dir, s.log), func() { y.w.end(s.cmd, syscall.SIGQUIT) })
		if err := y.begin(y.t.Context(), s); err != nil {
			y.t.Fatal(err)
		}
	}
	return n
}

// told counts the goroutines in what a program adds to its log when it is quit.
func told(t *testing.T, log string, quit func()) (n int) {
	t.Helper()
	before, err := os.Stat(log)
	if err != nil {
		t.Fatal(err)
	}
	quit()
	last := 0
	eventually(t, 20*time.Second, "its goroutines are in "+log, func() (string, bool) {
		last = n
		n = occurrences(log, before.Size(), "\ngoroutine ")
		return fmt.Sprint(n, " so far"), n != 0 && n == last
	})
	return n
}
