package access

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/remotegpu/remotegpu/control/auth"
	"github.com/remotegpu/remotegpu/protocol/sshd"
	"github.com/remotegpu/remotegpu/protocol/tunnel"
)

// openssh runs the ssh of the system.
func (w *world) openssh(stdin, key string, args ...string) (stdout, stderr string, code int) {
	w.t.Helper()
	host, port, err := net.SplitHostPort(w.addr)
	if err != nil {
		w.t.Fatal(err)
	}
	all := []string{"-F", "none", "-p", port, "-i", key, "-o", "IdentitiesOnly=yes", "-o", "StrictHostKeyChecking=no",
		"-o", "UserKnownHostsFile=/dev/null", "-o", "IdentityAgent=none"}
	for _, a := range args {
		all = append(all, strings.ReplaceAll(a, "GATEWAY", host))
	}
	return w.ssh(stdin, all...)
}

// ssh runs it with these arguments alone.
func (w *world) ssh(stdin string, args ...string) (stdout, stderr string, code int) {
	w.t.Helper()
	cmd := exec.CommandContext(w.t.Context(), "ssh", args...)
	cmd.Stdin = strings.NewReader(stdin)
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	if err := cmd.Run(); err != nil {
		if exit, ok := errors.AsType[*exec.ExitError](err); !ok {
			w.t.Fatalf("ssh: %v", err)
		} else {
			code = exit.ExitCode()
		}
	}
	return out.String(), errOut.String(), code
}

func TestOpenSSH(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	own, strange := keyFile(t, w.key), keyFile(t, newKey(t))
	for _, c := range []struct {
		name   string
		key    string
		stdin  string
		args   []string
		stdout string
		stderr string // part of it
		code   int
	}{
		{name: "env", args: []string{"-o", "SetEnv=A=b C='d e'", "box@GATEWAY", "env"}, stdout: "A=b\nC=d e\nterm= size=0x0\n"},
		{name: "pty", args: []string{"-tt", "-o", "SetEnv=TERM=xterm-256color", "box@GATEWAY", "env"}, stdout: "TERM=xterm-256color\nterm=xterm-256color size=0x0\n"}, // no terminal here
		{name: "exit code", args: []string{"box@GATEWAY", "exit 7"}, code: 7},
		{name: "standard error", args: []string{"box@GATEWAY", "err oops"}, stderr: "oops"},
		{name: "stdin and its end", stdin: "hello\n", args: []string{"box@GATEWAY", "cat"}, stdout: "ready\nhello\n"},
		{name: "shell", stdin: "hello\n", args: []string{"-T", "box@GATEWAY"}, stdout: "ready\nhello\n"},
		{name: "unknown environment", args: []string{"none@GATEWAY", "env"}, stderr: "There is no environment none that you may use", code: 255},
		{name: "stopped environment", args: []string{"stopped@GATEWAY", "env"}, stderr: "Start it: remotegpu env start stopped", code: 255},
		{name: "not a member", args: []string{"foreign@GATEWAY", "env"}, stderr: "not a member", code: 255},
		{name: "key not registered", key: strange, args: []string{"box@GATEWAY", "env"}, stderr: "add it with: remotegpu key add", code: 255},
		{name: "file transfer", args: []string{"-s", "box@GATEWAY", "sftp"}, stdout: "serving sftp\n"},
		{name: "another subsystem", args: []string{"-s", "box@GATEWAY", "netconf"}, stderr: "subsystem", code: 255},
		{name: "connection", stdin: "hello\n", args: []string{"-W", "127.0.0.1:80", "box@GATEWAY"}, stdout: "127.0.0.1:80: hello\n"},
		{name: "connection to nothing", args: []string{"-o", "LogLevel=VERBOSE", "-W", "127.0.0.1:1", "box@GATEWAY"}, stderr: "open failed: connect failed: Nothing listens on 127.0.0.1:1", code: 255},
		{name: "connection of a stranger", args: []string{"-o", "LogLevel=VERBOSE", "-W", "127.0.0.1:80", "foreign@GATEWAY"}, stderr: "not a member", code: 255},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			key := c.key
			if key == "" {
				key = own
			}
			stdout, stderr, code := w.openssh(c.stdin, key, c.args...)
			if !strings.HasPrefix(stdout, c.stdout) || !strings.Contains(stderr, c.stderr) || code != c.code {
				t.Errorf("exit %d, want %d; stdout %q, want %q; stderr %q, want %q", code, c.code, stdout, c.stdout, stderr, c.stderr)
			}
		})
	}
}

// run starts command in a session and returns its output as it comes.
func run(t *testing.T, c *ssh.Client, command string) (*ssh.Session, io.WriteCloser, *bufio.Reader) {
	t.Helper()
	s, err := c.NewSession()
	if err != nil {
		t.Fatal(err)
	}
	stdin, err := s.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := s.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Start(command); err != nil {
		t.Fatal(err)
	}
	return s, stdin, bufio.NewReader(stdout)
}

func wantLine(t *testing.T, r *bufio.Reader, want string) {
	t.Helper()
	if line, err := r.ReadString('\n'); line != want+"\n" {
		t.Fatalf("read %q, %v, want %q", line, err, want)
	}
}

func TestResizeAndSignal(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	s, _, out := run(t, w.mustClient("box"), "cat")
	wantLine(t, out, "ready")
	if err := s.WindowChange(40, 132); err != nil {
		t.Fatal(err)
	}
	wantLine(t, out, "resized 132x40")
	if err := s.WindowChange(1<<20, 0); err != nil {
		t.Fatal(err)
	}
	wantLine(t, out, "resized 0x65535")
	if err := s.Signal(ssh.SIGINT); err != nil {
		t.Fatal(err)
	}
	exit, ok := errors.AsType[*ssh.ExitError](s.Wait())
	if !ok || exit.Signal() != "INT" {
		t.Errorf("ended with %v, want signal INT", exit)
	}
}

// TestManyChannels: one connection carries sshd.MaxChannels sessions that do not
// disturb each other; one more is refused, and one that ends makes room.
func TestManyChannels(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	c := w.mustClient("box")
	var ins []io.WriteCloser
	var outs []*bufio.Reader
	for range sshd.MaxChannels {
		_, in, out := run(t, c, "cat")
		ins, outs = append(ins, in), append(outs, out)
	}
	for i := range ins {
		wantLine(t, outs[i], "ready")
		fmt.Fprintf(ins[i], "hello %d\n", i)
	}
	for i := range outs {
		wantLine(t, outs[i], fmt.Sprintf("hello %d", i))
	}
	_, err := c.NewSession()
	if refused, ok := errors.AsType[*ssh.OpenChannelError](err); !ok || refused.Reason != ssh.ResourceShortage {
		t.Errorf("session %d: %v", sshd.MaxChannels+1, err)
	}
	ins[0].Close()
	if _, err := io.Copy(io.Discard, outs[0]); err != nil {
		t.Error(err)
	}
	for {
		s, err := c.NewSession() // there is room as soon as the gateway has seen the end
		if err == nil {
			s.Close()
			return
		}
		if t.Context().Err() != nil {
			t.Fatal(err)
		}
	}
}

// TestSlowReader: who does not read stops the program, and no memory fills.
func TestSlowReader(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	c := w.mustClient("box")
	run(t, c, "flood")
	last := int64(-1)
	for w.sent.Load() != last || last <= 0 {
		last = w.sent.Load()
		time.Sleep(300 * time.Millisecond) // nothing tells that nothing comes
	}
	if last > 64<<20 {
		t.Errorf("%d bytes are under way to a reader that does not read", last)
	}
	_, _, out := run(t, c, "cat")
	wantLine(t, out, "ready") // others are not held up
}

func TestOffline(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.leave()
	started := time.Now()
	_, stderr, code := w.openssh("", keyFile(t, w.key), "box@GATEWAY", "env")
	if code != 255 || !strings.Contains(stderr, "The host of environment box is offline") {
		t.Errorf("exit %d, %q", code, stderr)
	}
	if took := time.Since(started); took > 10*time.Second { // who asks the host waits for 15
		t.Errorf("said after %v", took)
	}
}

func TestAccessIsInTheAuditLog(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	s, err := w.mustClient("box").NewSession()
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Run("exit 0 --password=secret"); err != nil {
		t.Fatal(err)
	}
	var began, secrets, ended int
	for deadline := time.Now().Add(30 * time.Second); ended == 0 && time.Now().Before(deadline); {
		err = w.pool.QueryRow(t.Context(), `select count(*) filter (where detail ? 'via'), count(*) filter (where detail::text like '%secret%'),
				count(*) filter (where (detail->>'bytes_in')::int > 0 and (detail->>'bytes_out')::int > 0 and detail ? 'ended_after_s')
			from audit_entries where action = $1 and target = 'env_box' and actor = 'usr_a'`, string(auth.EnvironmentAccess)).Scan(&began, &secrets, &ended)
		if err != nil {
			t.Fatal(err)
		}
	}
	if began != 1 || secrets != 0 || ended != 1 {
		t.Errorf("%d entries of a begin, %d of an end, %d with what was typed", began, ended, secrets)
	}
}

// TestWebSocket: SSH through the HTTPS port, where the API token is enough.
func TestWebSocket(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	dial := func(token string) (*tunnel.Conn, error) {
		return tunnel.Dial(t.Context(), tunnel.DialConfig{URL: w.url + "/api/v1/ssh/connect", Header: http.Header{"Authorization": {"Bearer " + token}}})
	}
	for _, token := range []string{noToken, hostID} {
		if _, err := dial(token); err == nil {
			t.Errorf("%s is let in", token)
		}
	}
	conn, err := dial("user")
	if err != nil {
		t.Fatal(err)
	}
	sc, channels, requests, err := ssh.NewClientConn(conn, "gateway", &ssh.ClientConfig{User: "box", HostKeyCallback: ssh.FixedHostKey(w.hosts.PublicKey()), HostKeyAlgorithms: []string{ssh.KeyAlgoED25519}})
	if err != nil {
		t.Fatal(err)
	}
	c := ssh.NewClient(sc, channels, requests)
	defer c.Close()
	s, in, out := run(t, c, "cat")
	wantLine(t, out, "ready")
	fmt.Fprintln(in, "hello")
	wantLine(t, out, "hello")
	in.Close()
	if err := s.Wait(); err != nil {
		t.Error(err)
	}
}

// TestHostileClients: who shows no key holds a slot until the deadline and no
// longer, and nobody else waits for them.
func TestHostileClients(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(s *Service) { s.handshake = 5 * time.Second }) // enough for who is let in
	var all sync.WaitGroup
	defer all.Wait()
	for _, greeting := range []string{"", "SSH-2.0-x", "SSH-2.0-x\r\n\x00\x00\xff\xff\xff", "GET / HTTP/1.1\r\n\r\n", strings.Repeat("x", 1<<16), "SSH-1.5-old\r\n"} {
		conn, err := net.Dial("tcp", w.addr)
		if err != nil {
			t.Fatal(err)
		}
		all.Go(func() {
			defer conn.Close()
			_, _ = io.WriteString(conn, greeting) // it may be cut off before the end
			conn.SetReadDeadline(time.Now().Add(30 * time.Second))
			if _, err := io.Copy(io.Discard, conn); errors.Is(err, errTimeout(err)) {
				t.Errorf("%.20q is kept", greeting)
			}
		})
	}
	w.mustClient("box")
}

func errTimeout(err error) error {
	if e, ok := errors.AsType[net.Error](err); ok && e.Timeout() {
		return err
	}
	return errors.New("no timeout")
}

func TestChannelsOfOtherKinds(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	c := w.mustClient("box")
	for _, kind := range []string{"x11", "auth-agent@openssh.com", ""} {
		_, _, err := c.OpenChannel(kind, nil)
		if refused, ok := errors.AsType[*ssh.OpenChannelError](err); !ok || refused.Reason != ssh.UnknownChannelType {
			t.Errorf("channel %q: %v", kind, err)
		}
	}
	_, banner, err := w.client("box", newKey(t), w.key)
	if err != nil {
		t.Errorf("second key of two: %v (%s)", err, banner)
	}
}
