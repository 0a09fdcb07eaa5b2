package network

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netns"
)

// The tests run in a network namespace of their own, with a second one as the
// world beyond the host: TestMain runs this program again inside.
func TestMain(m *testing.M) {
	if os.Geteuid() != 0 || os.Getenv("RG_NETWORK_TEST") == "inside" {
		os.Exit(m.Run())
	}
	cmd := exec.Command("unshare", append([]string{"--net", "--mount", os.Args[0]}, os.Args[1:]...)...)
	cmd.Env = append(os.Environ(), "RG_NETWORK_TEST=inside")
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	if err := cmd.Run(); err != nil {
		os.Exit(1)
	}
}

const (
	hostAddr  = "198.51.100.1"
	worldAddr = "198.51.100.2"
	metaAddr  = "169.254.169.254"
	metaAddr2 = "100.100.100.200"
)

// worldOf is where the namespace beyond a test's host is.
func worldOf(*testing.T) string {
	return filepath.Join(os.TempDir(), fmt.Sprintf("rgworld%d", os.Getpid()))
}

func sh(t *testing.T, line string) string {
	t.Helper()
	out, err := exec.Command("sh", "-c", line).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", line, err, out)
	}
	return strings.TrimSpace(string(out))
}

// newHost makes the world around a Network: this namespace is the host, with
// a cable to a world that also answers at the metadata address.
func newHost(t *testing.T) (*Network, Config) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("network namespaces need root")
	}
	world := worldOf(t)
	if err := makeNamespace(world); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { removeNamespace(world) })
	sh(t, fmt.Sprintf(`set -e; ip link set lo up; ip link add cable type veth peer name cable0
		ip link set cable0 netns %[1]s; ip addr add %[2]s/24 dev cable; ip link set cable up; ip route add default via %[3]s
		nsenter --net=%[1]s sh -c 'ip link set lo up; ip addr add %[3]s/24 dev cable0; ip addr add %[4]s/32 dev lo; ip addr add %[5]s/32 dev lo; ip link set cable0 up'`,
		world, hostAddr, worldAddr, metaAddr, metaAddr2))
	sh(t, "nsenter --net="+world+" ip route add 10.213.0.0/16 via "+hostAddr)
	t.Cleanup(func() { exec.Command("ip", "link", "del", "cable").Run() })
	listen(t, world)
	listen(t, "/proc/thread-self/ns/net")
	cfg := Config{
		DataDir: t.TempDir(), RunDir: t.TempDir(), BinDirs: []string{"/opt/cni/bin", "/usr/lib/cni"},
		Subnet: netip.MustParsePrefix("10.213.0.0/16"), BridgePrefix: "rg-",
	}
	n, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := n.RemoveAll(context.Background()); err != nil {
			t.Errorf("RemoveAll: %v", err)
		}
	})
	return n, cfg
}

// inside runs fn on a thread in the network namespace at path.
func inside(path string, fn func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		ns, err := netns.GetFromPath(path)
		if err == nil {
			defer ns.Close()
			err = netns.Set(ns)
		}
		if err == nil {
			err = fn()
		}
		done <- err
	}()
	return <-done
}

// listen takes connections on port 80 of all addresses of a namespace.
func listen(t *testing.T, ns string) {
	t.Helper()
	var l net.Listener
	err := inside(ns, func() (err error) {
		l, err = net.Listen("tcp", ":80")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			c.Close()
		}
	}()
}

// What must be reached may lose a packet; what must not be is dropped, and would be
// there at once.
const patience, soon = 10 * time.Second, time.Second

// reaches reports whether a TCP connection from a namespace is taken in time.
func reaches(ns, addr string, within time.Duration) bool {
	return inside(ns, func() error {
		c, err := net.DialTimeout("tcp", addr+":80", within)
		if err == nil {
			c.Close()
		}
		return err
	}) == nil
}

func attach(t *testing.T, n *Network, workload string) Endpoint {
	t.Helper()
	e, err := n.Attach(t.Context(), workload)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func TestWhoReachesWhom(t *testing.T) {
	n, _ := newHost(t)
	world := worldOf(t)
	a, b := attach(t, n, "env_a"), attach(t, n, "env_b")
	listen(t, b.NetNS)
	gateway := netip.MustParseAddr(a.Address).Prev().String()
	check := func(when string) {
		t.Helper()
		for what, tt := range map[string]struct {
			from, to string
			want     bool
		}{
			"the world":                    {a.NetNS, worldAddr, true},
			"another workload":             {a.NetNS, b.Address, false},
			"the host by its gateway":      {a.NetNS, gateway, false},
			"the host by its own address":  {a.NetNS, hostAddr, false},
			"the metadata address":         {a.NetNS, metaAddr, false},
			"Alibaba's metadata address":   {a.NetNS, metaAddr2, false},
			"the workload from the world":  {world, b.Address, false},
			"itself, so that there is one": {b.NetNS, b.Address, true},
		} {
			within := soon
			if tt.want {
				within = patience
			}
			if got := reaches(tt.from, tt.to, within); got != tt.want {
				t.Errorf("%s: reaches %s: %v, want %v", when, what, got, tt.want)
			}
		}
	}
	check("at first")
	sh(t, "nft flush ruleset")
	if err := n.Ensure(); err != nil {
		t.Fatal(err)
	}
	check("after nft flush ruleset")
	sh(t, "nft delete rule inet remotegpu input handle $(nft -a list chain inet remotegpu input | sed -n 's/.*drop # handle //p')")
	if err := n.Ensure(); err != nil {
		t.Fatal(err)
	}
	check("after a rule was deleted")
}

func TestWhereForwardingIsDropped(t *testing.T) {
	n, _ := newHost(t)
	sh(t, "iptables -P FORWARD DROP") // as Docker does
	defer sh(t, "iptables -P FORWARD ACCEPT")
	if a := attach(t, n, "env_a"); !reaches(a.NetNS, worldAddr, patience) {
		t.Error("the world is not reached")
	}
}

func TestAttachAndDetachAreIdempotent(t *testing.T) {
	n, cfg := newHost(t)
	first := attach(t, n, "env_a")
	if again := attach(t, n, "env_a"); again != first {
		t.Errorf("attached again: %+v, was %+v", again, first)
	}
	fresh, err := New(cfg) // an agent that was killed and started
	if err != nil {
		t.Fatal(err)
	}
	if again := attach(t, fresh, "env_a"); again != first {
		t.Errorf("after a restart: %+v, was %+v", again, first)
	}
	attach(t, fresh, "env_b")
	for range 2 {
		if err := fresh.Detach(t.Context(), "env_a"); err != nil {
			t.Fatal(err)
		}
	}
	if all, _ := fresh.List(); !slices.Equal(all, []string{"env_b"}) {
		t.Errorf("List = %v", all)
	}
	if err := fresh.RemoveAll(t.Context()); err != nil {
		t.Fatal(err)
	}
	for what, line := range map[string]string{
		"a bridge": "ip -o link | grep rg-", "a cable": "ip -o link | grep veth", "the table": "nft list table inet remotegpu",
		"a namespace": "ls " + cfg.RunDir + "/netns | grep .",
	} {
		if out, err := exec.Command("sh", "-c", line).Output(); err == nil {
			t.Errorf("%s is left: %s", what, out)
		}
	}
}

func TestAKillInBetweenLeavesNothing(t *testing.T) {
	n, cfg := newHost(t)
	first := attach(t, n, "env_a")
	if err := os.Remove(first.NetNS + ".address"); err != nil { // killed before the last step
		t.Fatal(err)
	}
	if again := attach(t, n, "env_a"); !reaches(again.NetNS, worldAddr, patience) {
		t.Error("the world is not reached")
	}
	if out := sh(t, "ip -o link 2>/dev/null | grep -c veth"); out != "1" {
		t.Errorf("%s cables, want 1", out)
	}
	_ = cfg
}

func TestAReboot(t *testing.T) {
	n, cfg := newHost(t)
	attach(t, n, "env_a")
	b := attach(t, n, "env_b")
	for _, w := range []string{"env_a", "env_b"} { // what a reboot takes along
		if err := removeNamespace(n.nsPath(w)); err != nil {
			t.Fatal(err)
		}
	}
	sh(t, "for l in $(ip -o link | grep -o 'rg-[0-9]*:' | tr -d :); do ip link del $l; done; nft flush ruleset")
	cfg.RunDir = t.TempDir()
	after, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	again := attach(t, after, "env_b")
	if again.Address != b.Address || !reaches(again.NetNS, worldAddr, patience) {
		t.Errorf("after the reboot %+v, before %+v; an address is for life", again, b)
	}
	if err := after.RemoveAll(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestResolvConf(t *testing.T) {
	dir := t.TempDir()
	stub, real := dir+"/stub", dir+"/real"
	write := func(name, text string) {
		if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write(stub, "# by a stub\nnameserver 127.0.0.53\noptions edns0\n")
	write(real, "nameserver 192.0.2.53\nsearch lab\n")
	saved := resolvers
	defer func() { resolvers = saved }()
	resolvers = []string{stub, real}
	n := &Network{cfg: Config{RunDir: dir}}
	got, err := os.ReadFile(n.ResolvConf())
	if err != nil || string(got) != "nameserver 192.0.2.53\nsearch lab\n" {
		t.Errorf("got %q, %v", got, err)
	}
}
