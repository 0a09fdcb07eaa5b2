package relay_test

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/remotegpu/remotegpu/edge-agent/relay"
	"github.com/remotegpu/remotegpu/protocol"
)

// shop is a box that OpenSSH's programs reach as host "box", through the SSH
// end of the agent. The control plane's part, the certificate, is played.
type shop struct {
	*box
	t      *testing.T
	config string // for ssh -F
	home   string // of the client
}

func newShop(t *testing.T, args ...string) *shop {
	t.Helper()
	b := newBox(t, args...)
	key, ca := newKey(t), newKey(t)
	b.relay = relay.New(relay.Config{RunDir: b.dir, HostKey: key, Log: slog.New(slog.DiscardHandler)})
	signer, err := ssh.NewSignerFromKey(ca)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
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
			go b.bridge(c, signer)
		}
	}()
	s := &shop{box: b, t: t, home: t.TempDir()}
	if err := os.Chmod(s.root("/tmp"), 0o777|os.ModeSticky); err != nil {
		t.Fatal(err)
	}
	s.config = filepath.Join(s.home, "config")
	write(t, filepath.Join(s.home, "known"), "@cert-authority * "+string(ssh.MarshalAuthorizedKey(signer.PublicKey())))
	_, port, _ := net.SplitHostPort(l.Addr().String())
	write(t, s.config, fmt.Sprintf("Host *\n HostName 127.0.0.1\n HostKeyAlias box\n Port %s\n User any\n StrictHostKeyChecking yes\n UserKnownHostsFile %s/known\n GlobalKnownHostsFile none\n LogLevel ERROR\n ControlPath %s/mux\n IdentityAgent none\n", port, s.home, s.home))
	return s
}

func newKey(t *testing.T) ed25519.PrivateKey {
	t.Helper()
	_, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// bridge is what the control plane does with a connection to the SSH end.
func (b *box) bridge(c net.Conn, ca ssh.Signer) {
	defer c.Close()
	near, far, err := pair()
	if err != nil {
		return
	}
	defer near.Close()
	answer := make(chan protocol.StreamReply, 1)
	head := protocol.StreamHeader{Version: 1, Kind: protocol.StreamSSH, Workload: workload, User: "usr_x"}
	go b.relay.Serve(context.Background(), stream{far}, head, func(r protocol.StreamReply) error { answer <- r; return nil })
	key, err := ssh.ParsePublicKey((<-answer).Key)
	if err != nil {
		return
	}
	cert := &ssh.Certificate{Key: key, CertType: ssh.HostCert, ValidPrincipals: []string{"box"}, ValidBefore: ssh.CertTimeInfinity}
	if cert.SignCert(rand.Reader, ca) != nil || protocol.WriteFrame(near, protocol.FrameCertificate, cert.Marshal()) != nil {
		return
	}
	go func() {
		_, _ = io.Copy(near, c)
		_ = near.CloseWrite()
	}()
	_, _ = io.Copy(c, near)
}

func pair() (near, far *net.UnixConn, err error) {
	l, err := net.ListenUnix("unix", &net.UnixAddr{Net: "unix"}) // a name of its own in the abstract namespace
	if err != nil {
		return nil, nil, err
	}
	defer l.Close()
	if near, err = net.DialUnix("unix", nil, l.Addr().(*net.UnixAddr)); err == nil {
		far, err = l.AcceptUnix()
	}
	return near, far, err
}

func (s *shop) until(what string, ok func() bool) {
	s.t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !ok(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			s.t.Fatalf("%s: not within 30 s", what)
		}
	}
}

// command is one of OpenSSH's, with our configuration.
func (s *shop) command(name string, args ...string) *exec.Cmd {
	ctx, cancel := context.WithTimeout(s.t.Context(), time.Minute)
	s.t.Cleanup(cancel)
	cmd := exec.CommandContext(ctx, name, append([]string{"-F", s.config}, args...)...)
	cmd.Env = append(os.Environ(), "HOME="+s.home)
	cmd.WaitDelay = 5 * time.Second
	return cmd
}

// run runs it and returns stdout and stderr together.
func (s *shop) run(name string, args ...string) (string, error) {
	out, err := s.command(name, args...).CombinedOutput()
	return string(out), err
}

func (s *shop) must(name string, args ...string) string {
	s.t.Helper()
	out, err := s.run(name, args...)
	if err != nil {
		s.t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return out
}

// root is the box's root as this side sees it.
func (s *shop) root(path string) string { return s.dir + "/root" + path }

// start runs it until the test ends.
func (s *shop) start(name string, args ...string) *bytes.Buffer {
	s.t.Helper()
	var out bytes.Buffer
	cmd := s.command(name, args...)
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	return &out
}

var ports atomic.Int32

// freePort is one that nobody listens on, nor will: the system gives those from
// 32768 on to who wants any, and other processes of tests look elsewhere.
func freePort(t *testing.T) string {
	t.Helper()
	for range 1000 {
		port := strconv.Itoa(10_000 + os.Getpid()%1_000*20 + int(ports.Add(1))%20)
		if l, err := net.Listen("tcp", "127.0.0.1:"+port); err == nil {
			l.Close()
			return port
		}
	}
	t.Fatal("no port is free")
	return ""
}

// echo answers each connection with prefix and the line that came.
func echo(t *testing.T, network, address, prefix string) string {
	t.Helper()
	l, err := net.Listen(network, address)
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
			go func() {
				defer c.Close()
				b, _ := io.ReadAll(c)
				fmt.Fprintf(c, "%s %s", prefix, b)
			}()
		}
	}()
	return l.Addr().String()
}

// ask says hello to address and returns the answer; empty: nobody is there.
func ask(network, address string) string {
	c, err := net.Dial(network, address)
	if err != nil {
		return ""
	}
	defer c.Close()
	fmt.Fprint(c, "hello")
	c.(interface{ CloseWrite() error }).CloseWrite()
	c.SetReadDeadline(time.Now().Add(30 * time.Second))
	b, _ := io.ReadAll(c)
	return string(b)
}

func TestSSHRunsCommands(t *testing.T) {
	s := newShop(t, "--user", "ann")
	for _, c := range []struct {
		args []string
		out  string
		code int
	}{
		{args: []string{"box", "echo out; id -un; sleep 0.2; echo err >&2; exit 7"}, out: "out\nann\nerr\n", code: 7},
		{args: []string{"-o", "SetEnv=A=b C='d e'", "box", `echo "$A $C"`}, out: "b d e\n"},
		{args: []string{"-tt", "box", "tty"}, out: "/dev/pts/0\r\n"},
		{args: []string{"-s", "box", "netconf"}, out: "subsystem request failed on channel 0\r\n", code: 255},
		{args: []string{"-o", "HostKeyAlias=other", "box", "true"}, out: "Certificate invalid: name is not a listed principal\r\nNo ED25519 host key is known for other and you have requested strict checking.\r\nHost key verification failed.\r\n", code: 255},
	} {
		out, err := s.run("ssh", c.args...)
		code := 0
		if exit, ok := err.(*exec.ExitError); ok {
			code = exit.ExitCode()
		}
		if !strings.HasPrefix(out, c.out) || code != c.code {
			t.Errorf("ssh %q: exit %d, want %d; %q, want %q", c.args, code, c.code, out, c.out)
		}
	}
}

func TestSSHMovesFiles(t *testing.T) {
	for _, image := range []string{"busybox", "nothing"} {
		t.Run(image, func(t *testing.T) {
			s := newShop(t, "--user", "ann")
			if image == "nothing" {
				if err := os.RemoveAll(s.root("/bin")); err != nil {
					t.Fatal(err)
				}
			}
			if err := os.Chown(s.root("/home"), 1000, 1000); err != nil {
				t.Fatal(err)
			}
			tree := s.tree()
			for name, args := range map[string][]string{
				"scp": {"-r", "-p"}, "scp -O": {"-O", "-r", "-p"},
			} {
				t.Run(name, func(t *testing.T) {
					s.must("scp", append(args, tree, "box:there")...)
					s.same(tree, s.root("/home/there"))
					s.must("scp", append(args, "box:there", s.home+"/back")...)
					s.same(tree, s.home+"/back")
					for _, dir := range []string{s.root("/home/there"), s.home + "/back"} {
						if err := os.RemoveAll(dir); err != nil {
							t.Fatal(err)
						}
					}
					if out, err := s.run("scp", append(args, tree+"/small", "box:/root/x")...); err == nil || !strings.Contains(out, "ermission denied") {
						t.Errorf("into a folder of root's: %v %s", err, out)
					}
					if out, err := s.run("scp", append(args, "box:none", s.home)...); err == nil || !strings.Contains(out, "o such file") {
						t.Errorf("of a file that is not there: %v %s", err, out)
					}
				})
			}
			t.Run("sftp", func(t *testing.T) {
				batch := filepath.Join(s.home, "batch")
				write(t, batch, "put -R "+tree+" up\nls -l up\nrename up/small up/tiny\nsymlink tiny up/link\nget up/link "+s.home+"/link\nchmod 600 up/tiny\nmkdir up/d\nrmdir up/d\ndf up\n")
				out := s.must("sftp", "-b", batch, "box")
				got, err := os.ReadFile(s.home + "/link")
				if err != nil || string(got) != "small\n" || !strings.Contains(out, "big") {
					t.Errorf("%q %v; %s", got, err, out)
				}
				if st, err := os.Stat(s.root("/home/up/tiny")); err != nil || st.Mode().Perm() != 0o600 {
					t.Errorf("%v %v", st, err)
				}
			})
			if out, err := s.run("ssh", "box", "rsync --server -e.LsfxCIvu . /home"); err == nil || !strings.Contains(out, "no rsync") || err.(*exec.ExitError).ExitCode() != 127 {
				t.Errorf("rsync: %v %q", err, out)
			}
		})
	}
}

// tree makes a folder with what is hard to copy.
func (s *shop) tree() string {
	dir := filepath.Join(s.home, "tree")
	if err := os.MkdirAll(dir+"/with space/deep", 0o755); err != nil {
		s.t.Fatal(err)
	}
	big := make([]byte, 5<<20+123)
	rand.Read(big)
	for name, b := range map[string][]byte{"small": []byte("small\n"), "empty": {}, "big": big, "with space/ü 'q\"": []byte("x"), "with space/deep/$f": []byte("y")} {
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o640); err != nil {
			s.t.Fatal(err)
		}
	}
	if err := os.Chtimes(dir+"/big", time.Unix(1e9, 0), time.Unix(1.1e9, 0)); err != nil {
		s.t.Fatal(err)
	}
	return dir
}

func (s *shop) same(a, b string) {
	s.t.Helper()
	list := `cd "$1" && find . | sort && find . -type f -exec stat -c '%n %a %Y' {} + | sort && find . -type f -exec sha256sum {} + | sort`
	var got [2]string
	for i, dir := range []string{a, b} {
		out, err := exec.Command("sh", "-c", list, "sh", dir).CombinedOutput()
		if err != nil {
			s.t.Errorf("%s: %v %s", dir, err, out)
		}
		got[i] = string(out)
	}
	if got[0] != got[1] {
		s.t.Errorf("%s\n---\n%s", got[0], got[1])
	}
}

func TestSSHForwards(t *testing.T) {
	s := newShop(t, "--user", "ann")
	inside := echo(t, "tcp", "127.0.0.1:0", "inside") // the box has the network of the test
	echo(t, "unix", s.root("/tmp/inside.sock"), "socket")
	if err := os.Chmod(s.root("/tmp/inside.sock"), 0o777); err != nil {
		t.Fatal(err)
	}
	outside := echo(t, "tcp", "127.0.0.1:0", "outside")
	echo(t, "unix", s.home+"/outside.sock", "outside socket")
	l, d, r, u := freePort(t), freePort(t), freePort(t), freePort(t)
	s.start("ssh", "-M", "-N", "-o", "ExitOnForwardFailure=yes", "-L", l+":"+inside, "-L", u+":/tmp/inside.sock", "-D", d,
		"-R", r+":"+outside, "-R", "/tmp/back.sock:"+s.home+"/outside.sock", "box")
	s.until("-L listens", func() bool { return ask("tcp", "127.0.0.1:"+l) != "" })
	s.until("-R listens", func() bool { return ask("tcp", "127.0.0.1:"+r) != "" && ask("unix", s.root("/tmp/back.sock")) != "" })
	for what, c := range map[string]struct{ network, address, want string }{
		"-L":             {"tcp", "127.0.0.1:" + l, "inside hello"},
		"-L of a socket": {"tcp", "127.0.0.1:" + u, "socket hello"},
		"-R":             {"tcp", "127.0.0.1:" + r, "outside hello"},
		"-R of a socket": {"unix", s.root("/tmp/back.sock"), "outside socket hello"},
	} {
		if got := ask(c.network, c.address); got != c.want {
			t.Errorf("%s: %q, want %q", what, got, c.want)
		}
	}
	if got := socks4(t, "127.0.0.1:"+d, inside); got != "inside hello" {
		t.Errorf("-D: %q", got)
	}
	port := strings.TrimSpace(s.must("ssh", "-O", "forward", "-R", "0:"+outside, "box"))
	if got := ask("tcp", "127.0.0.1:"+port); got != "outside hello" {
		t.Errorf("-R 0 at port %q: %q", port, got)
	}
	s.must("ssh", "-O", "cancel", "-R", r+":"+outside, "box")
	s.until("-R is cancelled", func() bool { return ask("tcp", "127.0.0.1:"+r) == "" })
	for what, c := range map[string]struct{ to, says string }{
		"port": {"127.0.0.1:" + freePort(t), "Nothing listens on 127.0.0.1:"},
		"name": {"none.invalid:80", "does not know the name"},
	} {
		out, err := s.run("ssh", "-v", "-o", "ControlPath=none", "-W", c.to, "box")
		if err == nil || !strings.Contains(out, c.says) {
			t.Errorf("nothing there (%s): %v %q", what, err, out)
		}
	}
	if out, err := s.run("ssh", "-o", "ControlPath=none", "-o", "ExitOnForwardFailure=yes", "-N", "-R", strings.TrimPrefix(inside, "127.0.0.1:")+":x:1", "box"); err == nil {
		t.Errorf("-R of a port that is taken: %s", out)
	}
}

// socks4 asks the proxy of -D, as a browser would.
func socks4(t *testing.T, proxy, to string) string {
	t.Helper()
	c, err := net.Dial("tcp", proxy)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	at, _ := net.ResolveTCPAddr("tcp", to)
	c.Write(append([]byte{4, 1, byte(at.Port >> 8), byte(at.Port)}, append([]byte(at.IP.To4()), 0)...))
	var head [8]byte
	if _, err := io.ReadFull(c, head[:]); err != nil || head[1] != 90 {
		t.Fatalf("SOCKS says %v, %v", head, err)
	}
	fmt.Fprint(c, "hello")
	c.(*net.TCPConn).CloseWrite()
	b, _ := io.ReadAll(c)
	return string(b)
}

func TestSSHLendsTheAgent(t *testing.T) {
	s := newShop(t, "--user", "ann")
	agent := filepath.Join(s.home, "agent.sock")
	cmd := exec.Command("ssh-agent", "-D", "-a", agent)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	key := filepath.Join(s.home, "id")
	if out, err := exec.Command("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "mine", "-f", key).CombinedOutput(); err != nil {
		t.Fatalf("%v %s", err, out)
	}
	s.until("the agent answers", func() bool {
		return exec.Command("sh", "-c", "SSH_AUTH_SOCK="+agent+" ssh-add -q "+key).Run() == nil
	})
	ssh := s.command("ssh", "-A", "-o", "IdentityAgent=SSH_AUTH_SOCK", "box", "echo $SSH_AUTH_SOCK; ls -ln $SSH_AUTH_SOCK; cat")
	ssh.Env = append(ssh.Env, "SSH_AUTH_SOCK="+agent)
	in, _ := ssh.StdinPipe()
	out, _ := ssh.StdoutPipe()
	if err := ssh.Start(); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 4096)
	n, _ := io.ReadAtLeast(out, buf, 60)
	path, rest, _ := strings.Cut(string(buf[:n]), "\n")
	if !strings.Contains(rest, "1000") {
		t.Errorf("the socket is not the user's: %q", rest)
	}
	got, err := exec.Command("sh", "-c", "SSH_AUTH_SOCK="+s.root(path)+" ssh-add -l").CombinedOutput()
	if err != nil || !strings.Contains(string(got), "mine (ED25519)") {
		t.Errorf("%v %s", err, got)
	}
	in.Close()
	ssh.Wait()
	s.until("the socket is gone", func() bool { _, err := os.Stat(filepath.Dir(s.root(path))); return os.IsNotExist(err) })
}

// TestSSHToTheHostItself: a helper of its own, that only root may ask.
func TestSSHToTheHostItself(t *testing.T) {
	dir := t.TempDir()
	serve := func(cfg relay.Config) (*net.UnixConn, protocol.StreamReply) {
		t.Helper()
		cfg.RunDir, cfg.Log = dir, slog.New(slog.DiscardHandler)
		near, far, err := pair()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { near.Close() })
		answer := make(chan protocol.StreamReply, 1)
		head := protocol.StreamHeader{Version: 1, Kind: protocol.StreamSession, User: "usr_x"}
		go relay.New(cfg).Serve(context.Background(), stream{far}, head, func(r protocol.StreamReply) error { answer <- r; return nil })
		return near, <-answer
	}
	if _, r := serve(relay.Config{}); r.Code != protocol.ReplyUnsupported || !strings.Contains(r.Message, "--no-host-shell") {
		t.Errorf("switched off: %+v", r)
	}
	var pids []string
	for range 2 { // the second agent finds the helper of the first
		c, r := serve(relay.Config{HostHelper: helper})
		if r.Code != "" {
			t.Fatal(r.Message)
		}
		open := protocol.SessionOpen{Version: 1, Command: "id -u; echo $PPID"}
		if err := protocol.WriteDocument(c, protocol.FrameOpen, open); err != nil {
			t.Fatal(err)
		}
		var out strings.Builder
		frames := protocol.NewFrameReader(c)
		for {
			kind, payload, err := frames.Next()
			if err != nil {
				t.Fatal(err)
			}
			if kind == protocol.FrameExit {
				break
			}
			out.Write(payload)
		}
		uid, pid, _ := strings.Cut(strings.TrimSpace(out.String()), "\n")
		if uid != "0" {
			t.Errorf("runs as %q", uid)
		}
		pids = append(pids, pid)
	}
	t.Cleanup(func() { exec.Command("kill", pids[0]).Run() })
	if pids[0] != pids[1] {
		t.Errorf("two helpers: %v", pids)
	}
	sockets, err := filepath.Glob(dir + "/host/*.sock")
	if err != nil || len(sockets) != 1 {
		t.Fatalf("%v %v", sockets, err)
	}
	st, err := os.Stat(sockets[0])
	if err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("%v %v", st.Mode(), err)
	}
}
