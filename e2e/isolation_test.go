package e2e

import (
	"bytes"
	"cmp"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"
	"golang.org/x/sys/unix"
)

// dial connects from the network of a role.
func (w *world) dial(role, address string) (conn net.Conn, err error) {
	inside := w.inside(role, func() { conn, err = net.DialTimeout("tcp", address, 10*time.Second) })
	return conn, cmp.Or(inside, err)
}

// inside does something in the network of a role. The thread goes there and
// comes back: its end would end the programs that it has started (Pdeathsig).
func (w *world) inside(role string, do func()) error {
	runtime.LockOSThread()
	home, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return err
	}
	defer home.Close()
	away, err := os.Open("/run/netns/" + w.ns(role))
	if err != nil {
		return err
	}
	defer away.Close()
	if err := unix.Setns(int(away.Fd()), unix.CLONE_NEWNET); err != nil {
		return err
	}
	do()
	if err := unix.Setns(int(home.Fd()), unix.CLONE_NEWNET); err != nil {
		panic(err) // nothing could be trusted any more
	}
	runtime.UnlockOSThread()
	return nil
}

// sshClient speaks SSH from the network of a role.
func (w *world) sshClient(role, address, user, key string) *ssh.Client {
	w.t.Helper()
	b, err := os.ReadFile(key)
	if err != nil {
		w.t.Fatal(err)
	}
	signer, err := ssh.ParsePrivateKey(b)
	if err != nil {
		w.t.Fatal(err)
	}
	conn, err := w.dial(role, address)
	if err != nil {
		w.t.Fatal(err)
	}
	sc, channels, requests, err := ssh.NewClientConn(conn, srvAddr, &ssh.ClientConfig{
		User: user, Auth: []ssh.AuthMethod{ssh.PublicKeys(signer)}, HostKeyCallback: ssh.InsecureIgnoreHostKey(),
	})
	if err != nil {
		w.t.Fatal(err)
	}
	c := ssh.NewClient(sc, channels, requests)
	w.t.Cleanup(func() { c.Close() })
	return c
}

// run starts a command and returns its ends.
func run(t *testing.T, c *ssh.Client, command string, terminal bool) (io.Writer, io.Reader) {
	t.Helper()
	s, err := c.NewSession()
	if err != nil {
		t.Fatal(err)
	}
	in, err := s.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := s.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if terminal {
		if err := s.RequestPty("xterm", 24, 80, ssh.TerminalModes{}); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Start(command); err != nil {
		t.Fatal(err)
	}
	return in, out
}

const strokes = 400

// most is what somebody's streams may add to a key of somebody else's at p99. The
// aim is twice the quiet machine's millisecond, and runs on quiet machines give 1.2
// to 3.4 times; a stream that holds up another costs far more. What the machine
// itself costs shows at OpenSSH's own server, and comes on top.
const most = 25 * time.Millisecond

// typist is somebody at a terminal whose keys come back.
type typist struct {
	t   *testing.T
	in  io.Writer
	out io.Reader
}

// pace returns the median and the 99th percentile from a key to its echo.
func (y typist) pace() (p50, p99 time.Duration) {
	y.t.Helper()
	took := make([]time.Duration, strokes)
	echo := make([]byte, 1)
	for i := range took {
		time.Sleep(2 * time.Millisecond) // faster than any hand
		began := time.Now()
		if _, err := y.in.Write([]byte{'x'}); err != nil {
			y.t.Fatal(err)
		}
		if _, err := io.ReadFull(y.out, echo); err != nil {
			y.t.Fatal(err)
		}
		took[i] = time.Since(began)
	}
	slices.Sort(took)
	return took[strokes/2], took[strokes*99/100]
}

// best returns the round of least p99: what else this machine does only adds.
func (y typist) best(rounds int) (p50, p99 time.Duration) {
	y.t.Helper()
	for range rounds {
		if m, worst := y.pace(); p99 == 0 || worst < p99 {
			p50, p99 = m, worst
		}
	}
	return p50, p99
}

// crowd is two users with an environment each on one host, and a terminal of
// OpenSSH's own server beside, which shares nothing with them but the machine.
type crowd struct {
	w            *world
	p            *plane
	keys         map[string]string
	ours, direct typist
}

func newCrowd(t *testing.T, w *world, more ...string) *crowd {
	p, m := w.newPlane(append(more, "--mqtt-listen", srvAddr+":8883")...), w.machine()
	t.Cleanup(func() { m.dump(t) })
	p.login()
	p.pushBusybox()
	p.join(m, "--name box")
	c := &crowd{w: w, p: p, keys: map[string]string{}}
	for _, name := range []string{"typist", "greedy"} {
		key := filepath.Join(w.dir, name)
		c.keys[name] = key
		w.in("client", "echo 'long enough word' | remotegpu user create "+name+"@example.org && remotegpu workspace add "+name+"@example.org")
		w.in("client", "export REMOTEGPU_CONFIG="+key+".json; pin=$(sed -n 's/.*\"pin\": *\"\\([^\"]*\\)\".*/\\1/p' "+w.dir+"/cli.json); "+
			"echo 'long enough word' | remotegpu login "+p.url+" --email "+name+"@example.org --password-stdin --pin $pin && "+
			"ssh-keygen -q -t ed25519 -N '' -f "+key+" && remotegpu key add "+key+".pub && remotegpu -w default env create "+name+" --image "+busyboxImage)
	}
	c.ours.t, c.direct.t = t, t
	c.ours.in, c.ours.out = run(t, w.sshClient("client", srvAddr+":2222", "typist.default", c.keys["typist"]), "cat", true)
	w.in("srv", "mkdir -p /run/sshd && ssh-keygen -q -t ed25519 -N '' -f "+w.dir+"/hostkey && cp "+c.keys["typist"]+".pub "+w.dir+"/authorized && chmod 600 "+w.dir+"/authorized")
	w.start("srv", "sshd.log", "/usr/sbin/sshd", "-D", "-e", "-f", "/dev/null", "-p", "2022", "-h", w.dir+"/hostkey",
		"-o", "AuthorizedKeysFile="+w.dir+"/authorized", "-o", "StrictModes=no", "-o", "UsePAM=no", "-o", "PermitRootLogin=yes")
	eventually(t, 10*time.Second, "sshd listens", func() (string, bool) {
		conn, err := w.dial("client", srvAddr+":2022")
		if err != nil {
			return err.Error(), false
		}
		conn.Close()
		return "", true
	})
	c.direct.in, c.direct.out = run(t, w.sshClient("client", srvAddr+":2022", "root", c.keys["typist"]), "cat", true)
	c.ours.pace() // all is warm then
	c.direct.pace()
	return c
}

// sit opens a reader that stands still and 200 sessions more.
func (c *crowd) sit(t *testing.T) {
	greedy := c.w.sshClient("proxy", srvAddr+":2222", "greedy.default", c.keys["greedy"])
	run(t, greedy, "cat /dev/zero", false) // and nobody reads
	for i := range 200 {
		if i%50 == 0 {
			greedy = c.w.sshClient("proxy", srvAddr+":2222", "greedy.default", c.keys["greedy"])
		}
		_, out := run(t, greedy, "echo here; sleep 600", false)
		if _, err := io.ReadFull(out, make([]byte, 4)); err != nil {
			t.Fatal(err)
		}
	}
}

// neck is where a line is limited, with a queue of 100 ms; the zero value:
// nowhere.
type neck struct{ role, dev, rate string }

const draws, gives = "'cat /dev/zero' >/dev/null", "'cat >/dev/null' </dev/zero"

// flood draws or gives a stream as fast as it goes.
func (c *crowd) flood(t *testing.T, at neck, what string) (stop func()) {
	if at.role != "" {
		c.w.in(at.role, "tc qdisc add dev "+at.dev+" root tbf rate "+at.rate+" burst 64kb latency 100ms")
	}
	cmd := c.w.start("proxy", "flood.log", "sh", "-c", "exec ssh -F none -i "+c.keys["greedy"]+" -p 2222 -o BatchMode=yes -o StrictHostKeyChecking=no "+
		"-o UserKnownHostsFile=/dev/null -o LogLevel=ERROR greedy.default@"+srvAddr+" "+what)
	t.Cleanup(func() { c.w.end(cmd, unix.SIGKILL) }) // should the test end before
	time.Sleep(time.Second)                          // until the line is full
	return func() {
		c.w.end(cmd, unix.SIGKILL)
		if at.role != "" {
			c.w.in(at.role, "tc qdisc del dev "+at.dev+" root")
		}
	}
}

// short is what the queue of a full line may add for half of what is small.
func short() time.Duration {
	if can, err := os.ReadFile("/proc/sys/net/ipv4/tcp_available_congestion_control"); err != nil || !bytes.Contains(can, []byte("bbr")) {
		return 200 * time.Millisecond // longer than the queue
	}
	return 40 * time.Millisecond // the kernel keeps it short
}

// TestIsolation: one user lets a reader stand still, has 200 more sessions open
// and draws a stream at full speed. Somebody else types on the same host.
func TestIsolation(t *testing.T) {
	w := newWorld(t)
	c := newCrowd(t, w)
	quiet50, quiet := c.ours.best(3)
	direct50, direct := c.direct.best(3)
	t.Logf("key to echo, p50 / p99: quiet %v / %v; OpenSSH's own server %v / %v", quiet50, quiet, direct50, direct)
	c.sit(t)
	for _, tt := range []struct {
		name         string
		at           neck
		most50, most time.Duration // zero: what two full cores do is told, not judged
	}{
		{"her line is full", neck{"wan", "to-proxy", "100mbit"}, most, most},
		{"the host's line is full", neck{"nat1", "wan", "50mbit"}, short(), 0},
		{"the cores are full", neck{}, 0, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			stop := c.flood(t, tt.at, draws)
			defer stop()
			slow := ""
			for range 3 { // what else this machine does only adds
				p50, p99 := c.ours.best(3)
				beside50, beside := c.direct.best(1)
				t.Logf("key to echo, p50 / p99: %v / %v (%.1f times the quiet one); OpenSSH's own server, of which nothing is asked: %v / %v (%.1f times)",
					p50, p99, float64(p99)/float64(quiet), beside50, beside, float64(beside)/float64(direct))
				switch {
				case tt.most50 > 0 && p50 > tt.most50+beside50:
					slow = fmt.Sprintf("half of the keys take over %v, want %v at most", p50, tt.most50+beside50)
				case tt.most > 0 && p99 > tt.most+beside:
					slow = fmt.Sprintf("beside somebody else's streams one key in a hundred takes over %v, want %v at most", p99, tt.most+beside)
				default:
					return
				}
			}
			t.Error(slow)
		})
	}
}

// TestControlBesideBulk: while somebody's stream fills the line of a host, one
// way or the other, what the control plane and a host there say to each other
// over MQTT still gets through, and so do requests and logins from there.
func TestControlBesideBulk(t *testing.T) {
	w := newWorld(t)
	c := newCrowd(t, w)
	w.in("client", "remotegpu env create mine --image "+busyboxImage)
	c.p.newPeer()
	for _, tt := range []struct {
		name, what string
		at         neck
	}{
		{"the line from the host is full", draws, neck{"nat1", "wan", "50mbit"}},
		{"the line to the host is full", gives, neck{"wan", "to-nat1", "50mbit"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			late := ""
			for range 3 { // what else this machine does only adds
				if late = c.lateBeside(t, tt.at, tt.what); late == "" {
					return
				}
			}
			t.Error(late)
		})
	}
}

// lateBeside says what takes longer for a host beside a stream than the line's
// queue, kept short, explains: there and back, half of it once more.
func (c *crowd) lateBeside(t *testing.T, at neck, stream string) (late string) {
	t.Helper()
	quiet, err := c.w.behave("host", 3*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	stop := c.flood(t, at, stream)
	beside, err := c.w.behave("host", 6*time.Second)
	stop()
	if err != nil {
		t.Fatal(err)
	}
	for what, judged := range map[string]bool{"heartbeat": true, "request": true, "login": false, "keystroke": false} {
		got, least := median(beside[what]), median(quiet[what])
		t.Logf("%-9s %6.1f /%6.1f → %6.1f /%6.1f ms, median / p95, of %d", what, least, p95(quiet[what]), got, p95(beside[what]), len(beside[what]))
		if most := least + 1.5*short().Seconds()*1000; judged && got > most {
			late += fmt.Sprintf("a %s takes %.1f ms, want %.1f at most; ", what, got, most)
		}
	}
	return late
}

// TestSessionRate: with --session-rate each way to move bytes is at it by itself,
// whatever else its user moves, and keys of the same user pass.
func TestSessionRate(t *testing.T) {
	w := newWorld(t)
	c := newCrowd(t, w, "--session-rate", "2MiB", "--user-rate", "64MiB")
	greedy := "export REMOTEGPU_CONFIG=" + c.keys["greedy"] + ".json; "
	const size = 8 << 20
	w.in("client", greedy+"remotegpu ssh greedy -- 'head -c 8388608 /dev/zero >/tmp/big'")
	keys := typist{t: t}
	keys.in, keys.out = run(t, w.sshClient("client", srvAddr+":2222", "greedy.default", c.keys["greedy"]), "cat", true)
	least := time.Second * (size - 512<<10) / (2 << 20) // less the burst
	var all sync.WaitGroup
	for name, line := range map[string]string{
		"ssh": "ssh -F none -i " + c.keys["greedy"] + " -p 2222 -o BatchMode=yes -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR greedy.default@" +
			srvAddr + " cat /tmp/big | wc -c",
		"remotegpu ssh":     "remotegpu ssh greedy -- cat /tmp/big | wc -c",
		"remotegpu ssh, up": "head -c 8388608 /dev/zero | remotegpu ssh greedy -- wc -c",
		"remotegpu cp":      "remotegpu cp greedy:/tmp/big - | wc -c",
	} {
		all.Go(func() {
			began := time.Now()
			out, err := w.try("client", greedy+line)
			took := time.Since(began)
			t.Logf("%-24s %d bytes in %v", name, size, took)
			if n, _ := strconv.Atoi(lastLine(out)); err != nil || n != size || took < least*9/10 || took > 3*least { // if they shared one rate, it would be four times
				t.Errorf("%s: %d bytes came in %v, want %v: %v %s", name, n, took, least, err, out)
			}
		})
	}
	p50, p99 := keys.pace()
	beside50, _ := c.direct.pace()
	t.Logf("key to echo beside them, p50 / p99: %v / %v; OpenSSH's own server: %v", p50, p99, beside50)
	if p50 > most+beside50 {
		t.Errorf("half of the user's keys take over %v beside sessions at their caps", p50)
	}
	all.Wait()
}
