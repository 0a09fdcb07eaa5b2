package e2e

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

const (
	srvAddr   = "203.0.113.10"
	proxyAddr = "203.0.113.40"
)

var worlds atomic.Int32

// world is a set of network namespaces with the names of their roles.
type world struct {
	t      *testing.T
	prefix string
	dir    string // for everything that the test writes
	bin    string // the programs under test

	external bool      // hosts are at a mosquitto beside the server's own broker
	broker   *exec.Cmd // that mosquitto
}

func newWorld(t *testing.T) *world {
	t.Helper()
	if os.Getenv("RG_E2E") == "" {
		t.Skip("end-to-end tests run by make test (RG_E2E=1)")
	}
	bin, err := filepath.Abs("../bin")
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "rge2e") // short: unix sockets live below it
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o755); err != nil { // PostgreSQL's user passes through
		t.Fatal(err)
	}
	w := &world{t: t, prefix: fmt.Sprintf("rg%d-%d-", os.Getpid()%10000, worlds.Add(1)), dir: dir, bin: bin}
	t.Cleanup(func() { os.RemoveAll(dir) })
	w.build()
	return w
}

func (w *world) ns(role string) string { return w.prefix + role }

// build lays the cables of the picture in the package's comment.
func (w *world) build() {
	for _, role := range []string{"wan", "srv", "nat1", "nat2", "host", "client", "proxy"} {
		w.must("ip", "netns", "add", w.ns(role))
		w.t.Cleanup(func() { exec.Command("ip", "netns", "del", w.ns(role)).Run() })
		w.in(role, "ip link set lo up")
	}
	w.in("wan", "ip link add br0 type bridge && ip link set br0 up")
	for role, addr := range map[string]string{"srv": srvAddr, "nat1": "203.0.113.20", "client": "203.0.113.30", "proxy": proxyAddr} {
		w.cable("wan", "to-"+role, role, "wan")
		w.in("wan", "ip link set to-"+role+" master br0")
		w.in(role, "ip addr add "+addr+"/24 dev wan")
	}
	w.cable("nat1", "lan", "nat2", "wan")
	w.in("nat1", "ip addr add 10.77.1.1/24 dev lan")
	w.in("nat2", "ip addr add 10.77.1.2/24 dev wan && ip route add default via 10.77.1.1")
	w.cable("nat2", "lan", "host", "eth0")
	w.in("nat2", "ip addr add 192.168.77.1/24 dev lan")
	w.in("host", "ip addr add 192.168.77.2/24 dev eth0 && ip route add default via 192.168.77.1")
	for _, role := range []string{"nat1", "nat2"} {
		w.in(role, "sysctl -qw net.ipv4.ip_forward=1")
		w.masquerade(role)
	}
}

// hostBehind adds the network of one more host behind the second router, and
// returns its role and the router's device that leads there.
func (w *world) hostBehind(i int) (role, dev string) {
	role, dev = fmt.Sprint("host", i), fmt.Sprint("lan", i)
	w.must("ip", "netns", "add", w.ns(role))
	w.t.Cleanup(func() { exec.Command("ip", "netns", "del", w.ns(role)).Run() })
	w.in(role, "ip link set lo up")
	w.cable("nat2", dev, role, "eth0")
	net := fmt.Sprint("192.168.", 77+i)
	w.in("nat2", "ip addr add "+net+".1/24 dev "+dev)
	w.in(role, "ip addr add "+net+".2/24 dev eth0 && ip route add default via "+net+".1")
	return role, dev
}

func (w *world) masquerade(role string) {
	w.in(role, `nft -f - <<'X'
table ip nat {
  chain post {
    type nat hook postrouting priority 100;
    oifname "wan" masquerade
  }
}
table ip guard {
  chain incoming {
    type filter hook input priority 0; policy accept;
    iifname "wan" ct state new drop
  }
  chain through {
    type filter hook forward priority 0; policy drop;
    iifname "lan*" accept
    ct state established,related accept
  }
}
X`)
}

func (w *world) cable(roleA, devA, roleB, devB string) {
	w.must("ip", "-n", w.ns(roleA), "link", "add", devA, "type", "veth", "peer", "name", devB, "netns", w.ns(roleB))
	w.in(roleA, "ip link set "+devA+" up")
	w.in(roleB, "ip link set "+devB+" up")
}

func (w *world) must(name string, args ...string) string {
	w.t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		w.t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// in runs a shell line in a role's network and returns what it printed.
func (w *world) in(role, line string) string {
	w.t.Helper()
	out, err := w.try(role, line)
	if err != nil {
		w.t.Fatalf("in %s: %s: %v\n%s", role, line, err, out)
	}
	return out
}

func (w *world) try(role, line string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "nsenter", "--net=/run/netns/"+w.ns(role), "sh", "-c", line)
	cmd.Env = append(os.Environ(), "PATH="+w.bin+":"+os.Getenv("PATH"), "REMOTEGPU_CONFIG="+filepath.Join(w.dir, "cli.json"), "HOME="+w.dir)
	out, err := cmd.CombinedOutput()
	return string(bytes.TrimSpace(out)), err
}

// start runs a program of a role in the background until the test ends.
func (w *world) start(role, logName, name string, args ...string) *exec.Cmd {
	w.t.Helper()
	log, err := os.OpenFile(filepath.Join(w.dir, logName), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		w.t.Fatal(err)
	}
	defer log.Close()
	cmd := exec.Command("nsenter", append([]string{"--net=/run/netns/" + w.ns(role), name}, args...)...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
	if err := cmd.Start(); err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { w.end(cmd, syscall.SIGTERM) })
	w.t.Cleanup(func() {
		if w.t.Failed() {
			w.t.Logf("end of %s:\n%s", logName, tail(filepath.Join(w.dir, logName)))
		}
	})
	return cmd
}

// end signals a program and waits for it; one that stays is killed.
func (w *world) end(cmd *exec.Cmd, sig syscall.Signal) {
	if cmd.ProcessState != nil {
		return
	}
	cmd.Process.Signal(sig)
	stuck := time.AfterFunc(20*time.Second, func() { cmd.Process.Kill() })
	cmd.Wait()
	stuck.Stop()
}

func tail(file string) string {
	b, _ := os.ReadFile(file)
	if len(b) > 6000 {
		b = b[len(b)-6000:]
	}
	return string(b)
}

// slower is how many times as long everything may take on a machine that is slow,
// or that others compute on.
const slower = 3

// eventually tries until check is satisfied and fails with what it saw last. It
// takes at most within on a machine of our own.
func eventually(t *testing.T, within time.Duration, what string, check func() (seen string, ok bool)) {
	t.Helper()
	within *= slower
	deadline := time.Now().Add(within)
	for {
		last, ok := check()
		if ok {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within %v; last: %s", what, within, last)
		}
		time.Sleep(100 * time.Millisecond)
	}
}
