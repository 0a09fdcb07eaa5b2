package relay_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/remotegpu/remotegpu/edge-agent/relay"
	"github.com/remotegpu/remotegpu/protocol"
)

// box is the helper as first process of a pid namespace, with busybox as the
// image, and a relay to it.
type box struct {
	dir   string
	relay *relay.Relay
	cmd   *exec.Cmd
	log   *bytes.Buffer
}

const workload = "env_test"

var helper string

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "rghelper")
	if err != nil {
		panic(err)
	}
	helper = filepath.Join(dir, "helper")
	build := exec.Command("go", "build", "-o", helper, "../helper")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		panic(string(out))
	}
	code := m.Run()
	os.RemoveAll(dir)
	os.Exit(code)
}

// newBox is a container-like place whose helper listens: the relay waits for it for
// 2 s, which is not much for all that is to be started here.
func newBox(t *testing.T, args ...string) *box {
	t.Helper()
	b := startBox(t, args...)
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if _, err := os.Stat(b.dir + "/w/" + workload + "/session.sock"); err == nil {
			return b
		}
		if time.Now().After(end) {
			t.Fatal("the helper does not listen")
		}
	}
}

// startBox starts a container-like place: a root with busybox, its own pid and
// mount namespaces, and the run folder mounted where containers have it.
func startBox(t *testing.T, args ...string) *box {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("namespaces need root")
	}
	dir, err := os.MkdirTemp("", "rgbox")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	root, run := dir+"/root", dir+"/w/"+workload
	for _, d := range []string{root + "/bin", root + "/etc", root + "/proc", root + "/dev/pts", root + "/root", root + "/home", root + "/tmp", root + "/.remotegpu/run", run} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	write(t, root+"/etc/passwd", "root:x:0:0:root:/root:/bin/sh\nann:x:1000:1000::/home:/bin/sh\n")
	write(t, root+"/etc/group", "root:x:0:\nann:x:1000:\nvideo:x:44:ann\n")
	script := `set -e
cp /bin/busybox ` + root + `/bin/busybox; for a in sh cat ls id tty sleep stty kill env head sha256sum true pwd yes ps; do ln -s busybox ` + root + `/bin/$a; done
mount --make-rprivate /; cp ` + helper + ` ` + root + `/.remotegpu/helper
mount --bind ` + run + ` ` + root + `/.remotegpu/run
mount -t proc proc ` + root + `/proc; mount -t devpts -o newinstance,ptmxmode=0666,mode=620 devpts ` + root + `/dev/pts
ln -s pts/ptmx ` + root + `/dev/ptmx; mknod -m 666 ` + root + `/dev/null c 1 3; mknod -m 666 ` + root + `/dev/tty c 5 0
exec /usr/sbin/chroot ` + root + ` /.remotegpu/helper init "$@"`
	b := &box{dir: dir, log: &bytes.Buffer{}, relay: relay.New(relay.Config{RunDir: dir, Log: slog.New(slog.DiscardHandler)})}
	b.cmd = exec.Command("unshare", append([]string{"--pid", "--mount", "--fork", "--kill-child", "sh", "-c", script, "sh"}, args...)...)
	b.cmd.Env = []string{"PATH=/bin", "FROM_IMAGE=yes"}
	b.cmd.Stdout, b.cmd.Stderr = b.log, b.log
	if err := b.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		b.cmd.Process.Kill()
		b.cmd.Wait()
		if t.Failed() {
			t.Logf("the box says:\n%s", b.log)
		}
	})
	return b
}

func write(t *testing.T, name, text string) {
	t.Helper()
	if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// stream makes a unix socket pair look like a tunnel's stream.
type stream struct{ *net.UnixConn }

func (s stream) CloseWithError(error)    { s.Close() }
func (s stream) Closed() <-chan struct{} { return nil }

// dial opens a session's stream through the relay and returns its client end.
func (b *box) dial(t *testing.T) (*net.UnixConn, string) {
	t.Helper()
	c, r := b.open(t, protocol.StreamSession, "", "")
	return c, r.Code + r.Message
}

// open opens a stream through the relay and returns its client end.
func (b *box) open(t *testing.T, kind, network, address string) (*net.UnixConn, protocol.StreamReply) {
	t.Helper()
	head := protocol.StreamHeader{Version: 1, Kind: kind, Workload: workload, User: "usr_x"}
	if network != "" {
		head.Target = &protocol.Target{Network: network, Address: address}
	}
	return b.begin(t, head)
}

// begin is open with a header of any kind.
func (b *box) begin(t *testing.T, head protocol.StreamHeader) (*net.UnixConn, protocol.StreamReply) {
	t.Helper()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(t.TempDir(), "s"), Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	client, err := net.DialUnix("unix", nil, l.Addr().(*net.UnixAddr))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close() })
	far, err := l.AcceptUnix()
	if err != nil {
		t.Fatal(err)
	}
	answer := make(chan protocol.StreamReply, 1)
	go b.relay.Serve(context.Background(), stream{far}, head, func(r protocol.StreamReply) error { answer <- r; return nil })
	select {
	case r := <-answer:
		return client, r
	case <-time.After(30 * time.Second):
		t.Fatal("no reply within 30 s")
		return nil, protocol.StreamReply{}
	}
}

// result is what a session gave.
type result struct {
	out, err []byte
	exit     protocol.SessionExit
	end      error
}

// session runs what o says; talk gets the connection once it is open.
func (b *box) session(t *testing.T, o protocol.SessionOpen, talk func(c *net.UnixConn)) result {
	t.Helper()
	c, answer := b.dial(t)
	if answer != "" {
		t.Fatalf("refused: %s", answer)
	}
	o.Version = protocol.Version
	if err := protocol.WriteDocument(c, protocol.FrameOpen, o); err != nil {
		t.Fatal(err)
	}
	if talk != nil {
		go talk(c)
	}
	return read(c)
}

func read(c *net.UnixConn) (r result) {
	c.SetReadDeadline(time.Now().Add(time.Minute))
	frames := protocol.NewFrameReader(bufio.NewReader(c))
	for {
		kind, payload, err := frames.Next()
		if err != nil {
			r.end = err
			return r
		}
		switch kind {
		case protocol.FrameStdout:
			r.out = append(r.out, payload...)
		case protocol.FrameStderr:
			r.err = append(r.err, payload...)
		case protocol.FrameExit:
			r.end = protocol.Unmarshal(payload, &r.exit)
			c.Close()
			return r
		}
	}
}

func TestCommands(t *testing.T) {
	t.Parallel()
	b := newBox(t)
	for _, tt := range []struct {
		name     string
		open     protocol.SessionOpen
		out, err string
		code     int
	}{
		{"output and status", protocol.SessionOpen{Command: "echo out; echo err >&2; exit 7"}, "out\n", "err\n", 7},
		{"arguments as they are", protocol.SessionOpen{Args: []string{"sh", "-c", `printf '%s|' "$@"`, "x", "a b", "$HOME"}}, "a b|$HOME|", "", 0},
		{"environment", protocol.SessionOpen{Command: "echo $FROM_IMAGE $MINE $HOME $USER $PWD", Env: map[string]string{"MINE": "m"}}, "yes m /root root /root\n", "", 0},
		{"another user", protocol.SessionOpen{Command: "id -u; id -G; pwd", User: "ann"}, "1000\n1000 44\n/home\n", "", 0},
		{"user by number", protocol.SessionOpen{Command: "id -u; id -g", User: "12:34"}, "12\n34\n", "", 0},
		{"not found", protocol.SessionOpen{Args: []string{"no-such"}}, "", "", 127},
		{"unknown user", protocol.SessionOpen{Command: "id", User: "bob"}, "", "", 126},
		{"a child left behind does not hold the end", protocol.SessionOpen{Command: "sleep 60 & echo done"}, "done\n", "", 0},
		{"no first-process environment leaks", protocol.SessionOpen{Command: "ls /.remotegpu"}, "helper\nrun\n", "", 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := b.session(t, tt.open, nil)
			if string(r.out) != tt.out || string(r.err) != tt.err || r.exit.Code != tt.code || r.end != nil {
				t.Errorf("out %q err %q exit %+v end %v; want %q %q %d", r.out, r.err, r.exit, r.end, tt.out, tt.err, tt.code)
			}
			if tt.code > 100 && r.exit.Message == "" {
				t.Error("nothing says why")
			}
		})
	}
}

func TestBytesComeThroughUnchanged(t *testing.T) {
	t.Parallel()
	b := newBox(t)
	data := make([]byte, 5<<20)
	rand.Read(data)
	r := b.session(t, protocol.SessionOpen{Command: "cat"}, func(c *net.UnixConn) {
		for p := data; len(p) > 0; {
			n := min(len(p), protocol.MaxFrame)
			if protocol.WriteFrame(c, protocol.FrameStdin, p[:n]) != nil {
				return
			}
			p = p[n:]
		}
		protocol.WriteFrame(c, protocol.FrameEOF, nil)
	})
	if sha256.Sum256(r.out) != sha256.Sum256(data) || r.exit.Code != 0 || r.end != nil {
		t.Errorf("%d of %d bytes, exit %+v, %v", len(r.out), len(data), r.exit, r.end)
	}
}

func TestTheLastBytesComeBeforeTheEnd(t *testing.T) {
	t.Parallel()
	b := newBox(t)
	for range 20 {
		r := b.session(t, protocol.SessionOpen{Command: "yes | head -c 300000; exit 3"}, nil)
		if r.end != nil || len(r.out) != 300000 || r.exit.Code != 3 {
			t.Fatalf("%d bytes, exit %+v, %v", len(r.out), r.exit, r.end)
		}
	}
}

func TestTerminal(t *testing.T) {
	t.Parallel()
	b := newBox(t)
	c, answer := b.dial(t)
	if answer != "" {
		t.Fatal(answer)
	}
	open := protocol.SessionOpen{Version: 1, Term: "xterm", Size: protocol.WindowSize{Cols: 80, Rows: 24}}
	if err := protocol.WriteDocument(c, protocol.FrameOpen, open); err != nil {
		t.Fatal(err)
	}
	frames := protocol.NewFrameReader(bufio.NewReader(c))
	var seen strings.Builder
	c.SetReadDeadline(time.Now().Add(time.Minute))
	until := func(want string) {
		t.Helper()
		for !strings.Contains(seen.String(), want) {
			kind, payload, err := frames.Next()
			if err != nil || kind == protocol.FrameExit {
				t.Fatalf("waiting for %q: frame %d, %v; seen:\n%s", want, kind, err, seen.String())
			}
			seen.Write(payload)
		}
		_, rest, _ := strings.Cut(seen.String(), want)
		seen.Reset()
		seen.WriteString(rest) // one frame may hold what is waited for next
	}
	typed := func(s string) { protocol.WriteFrame(c, protocol.FrameStdin, []byte(s)) }
	typed("stty size; echo term=$TERM\n")
	until("24 80")
	until("term=xterm")
	protocol.WriteDocument(c, protocol.FrameResize, protocol.WindowSize{Cols: 133, Rows: 50})
	typed("stty size\n")
	until("50 133")
	typed("sleep 4243\n")
	b.runs(t, "sleep 4243", true)
	typed("\x03")
	typed("echo interrupted $?\n")
	until("interrupted 130")
	typed("sleep 4244; echo signalled $?\n")
	b.runs(t, "sleep 4244", true)
	protocol.WriteFrame(c, protocol.FrameSignal, []byte("TERM"))
	until("signalled 143")
	typed("exit 5\n")
	for {
		kind, payload, err := frames.Next()
		if err != nil {
			t.Fatal(err)
		}
		if kind == protocol.FrameExit {
			var e protocol.SessionExit
			if err := protocol.Unmarshal(payload, &e); err != nil || e.Code != 5 {
				t.Errorf("exit %+v, %v", e, err)
			}
			return
		}
	}
}

func TestSignalsWithoutTerminal(t *testing.T) {
	t.Parallel()
	b := newBox(t)
	r := b.session(t, protocol.SessionOpen{Args: []string{"sleep", "100"}}, func(c *net.UnixConn) {
		protocol.WriteFrame(c, protocol.FrameSignal, []byte("TERM"))
	})
	if r.exit.Signal != "TERM" || r.exit.Code != 143 {
		t.Errorf("exit %+v, %v", r.exit, r.end)
	}
}

func TestAClientThatLeavesEndsItsProgram(t *testing.T) {
	t.Parallel()
	b := newBox(t)
	c, _ := b.dial(t)
	open := protocol.SessionOpen{Version: 1, Args: []string{"sleep", "4242"}}
	if err := protocol.WriteDocument(c, protocol.FrameOpen, open); err != nil {
		t.Fatal(err)
	}
	b.runs(t, "sleep 4242", true)
	c.Close()
	b.runs(t, "sleep 4242", false)
}

// runs waits until a program of the box runs, or does no more.
func (b *box) runs(t *testing.T, program string, want bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); ; {
		out := string(b.session(t, protocol.SessionOpen{Command: "ps -o args"}, nil).out)
		if strings.Contains(out, "\n"+program+"\n") == want {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("%s runs: %v; what runs:\n%s", program, !want, out)
		}
	}
}

func TestASlowReaderStopsTheProgramAndNotTheBox(t *testing.T) {
	t.Parallel()
	b := newBox(t)
	c, _ := b.dial(t)
	open := protocol.SessionOpen{Version: 1, Args: []string{"yes"}}
	if err := protocol.WriteDocument(c, protocol.FrameOpen, open); err != nil {
		t.Fatal(err)
	}
	for range 5 { // while yes would fill any memory in these seconds
		if r := b.session(t, protocol.SessionOpen{Command: "sleep 0.2; echo fine"}, nil); string(r.out) != "fine\n" {
			t.Fatalf("%+v", r)
		}
	}
	rss := string(b.session(t, protocol.SessionOpen{Command: "cat /proc/1/status"}, nil).out)
	for line := range strings.Lines(rss) {
		if strings.HasPrefix(line, "VmRSS:") && len(strings.Fields(line)[1]) > 5 {
			t.Errorf("the helper uses %s", line)
		}
	}
}

func TestTheContainerLivesAsLongAsItsCommand(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name string
		args []string
		kill bool
		want int
	}{
		{"its status", []string{"--", "sh", "-c", "exit 9"}, false, 9},
		{"not found", []string{"--", "no-such-command"}, false, 127},
		{"as a user", []string{"--user", "ann", "--", "sh", "-c", "exit $(id -u | head -c 2)"}, false, 10},
		{"in a folder", []string{"--workdir", "/home", "--", "sh", "-c", "test $PWD = /home"}, false, 0},
		{"orphans are no matter", []string{"--", "sh", "-c", "(sleep 0.1 &) ; sleep 0.3; exit 4"}, false, 4},
		{"unknown user", []string{"--user", "bob", "--", "true"}, false, 126},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			b := startBox(t, tt.args...)
			b.cmd.Wait()
			if got := b.cmd.ProcessState.ExitCode(); got != tt.want {
				t.Errorf("exit status %d, want %d; log: %s", got, tt.want, b.log)
			}
		})
	}
}

func TestRefusals(t *testing.T) {
	t.Parallel()
	b := newBox(t)
	if r := b.session(t, protocol.SessionOpen{Command: "true"}, nil); r.end != nil {
		t.Fatal(r.end)
	}
	sock := b.dir + "/w/" + workload + "/session.sock"
	l, err := net.Listen("unix", b.dir+"/host.sock") // something of the host's
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if err := os.Remove(sock); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("../../host.sock", sock); err != nil {
		t.Fatal(err)
	}
	if _, answer := b.dial(t); !strings.HasPrefix(answer, protocol.ReplyInternal) {
		t.Errorf("through a link that the container made: %q", answer)
	}
	if err := os.Remove(sock); err != nil {
		t.Fatal(err)
	}
	if _, answer := b.dial(t); !strings.HasPrefix(answer, protocol.ReplyNotRunning) {
		t.Errorf("without a helper: %q", answer)
	}
	if err := os.RemoveAll(b.dir + "/w"); err != nil {
		t.Fatal(err)
	}
	if _, answer := b.dial(t); !strings.HasPrefix(answer, protocol.ReplyNotFound) {
		t.Errorf("without a workload: %q", answer)
	}
}

// A process of the container must get no session: it might be less than root
// there.
func TestTheContainerItselfGetsNoSession(t *testing.T) {
	t.Parallel()
	b := newBox(t)
	r := b.session(t, protocol.SessionOpen{Command: "ls /.remotegpu/run/session.sock"}, nil)
	if r.exit.Code != 0 {
		t.Fatalf("%+v", r)
	}
	first := firstChild(t, b.cmd.Process.Pid)
	ask := exec.Command("nsenter", "-t", first, "-p", "socat", "-t", "30", "-", "UNIX-CONNECT:"+b.dir+"/w/"+workload+"/session.sock")
	ask.Stdin = strings.NewReader("")
	if out, err := ask.CombinedOutput(); len(out) != 0 {
		t.Errorf("it is told %q, %v", out, err)
	}
	b.cmd.Process.Kill()
	b.cmd.Wait() // and with it the log
	if !strings.Contains(b.log.String(), "inside the container asked for a session") {
		t.Error("the log says nothing of it")
	}
}

func firstChild(t *testing.T, pid int) string {
	t.Helper()
	out, err := exec.Command("pgrep", "-P", strconv.Itoa(pid)).Output()
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(out))
}
