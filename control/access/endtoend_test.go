package access

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/remotegpu/remotegpu/control/auth"
	"github.com/remotegpu/remotegpu/control/errs"
	"github.com/remotegpu/remotegpu/control/host"
	"github.com/remotegpu/remotegpu/control/sshconfig"
	"github.com/remotegpu/remotegpu/protocol"
	"github.com/remotegpu/remotegpu/protocol/tunnel"
)

// serveEnd plays the SSH end of an agent: every command prints where it ran.
func (w *world) serveEnd(c *tunnel.Conn, h protocol.StreamHeader) {
	key, err := ssh.NewSignerFromKey(w.key) // any will do
	if err != nil || tunnel.Reply(c, protocol.StreamReply{Key: key.PublicKey().Marshal()}) != nil {
		return
	}
	kind, payload, err := protocol.NewFrameReader(c).Next()
	if err != nil || kind != protocol.FrameCertificate {
		return
	}
	public, err := ssh.ParsePublicKey(payload)
	if err != nil {
		return
	}
	cfg := &ssh.ServerConfig{NoClientAuth: true}
	certified, err := ssh.NewCertSigner(public.(*ssh.Certificate), key)
	if err != nil {
		return
	}
	cfg.AddHostKey(certified)
	_, channels, requests, err := ssh.NewServerConn(c, cfg)
	if err != nil {
		return
	}
	go ssh.DiscardRequests(requests)
	for nc := range channels {
		ch, requests, err := nc.Accept()
		if err != nil {
			return
		}
		for r := range requests {
			_ = r.Reply(r.Type == "exec", nil)
			if r.Type == "exec" {
				fmt.Fprintf(ch, "end of %q\n", h.Workload)
				_, _ = ch.SendRequest("exit-status", false, make([]byte, 4))
				ch.Close()
			}
		}
	}
}

// caFile is what a client trusts: the CA alone.
func (w *world) authority() *ssh.CertChecker {
	return &ssh.CertChecker{IsHostAuthority: func(key ssh.PublicKey, _ string) bool {
		return bytes.Equal(key.Marshal(), w.ca.PublicKey().Marshal())
	}}
}

// dialEnd connects as remotegpu ssh-proxy does and expects the host's name as.
func (w *world) dialEnd(query, as string) (*ssh.Client, error) {
	conn, err := tunnel.Dial(w.t.Context(), tunnel.DialConfig{URL: w.url + "/api/v1/ssh/connect?" + query, Header: http.Header{"Authorization": {"Bearer user"}}})
	if err != nil {
		return nil, err
	}
	check := w.authority().CheckHostKey
	sc, channels, requests, err := ssh.NewClientConn(conn, as+":22", &ssh.ClientConfig{
		User: "whoever", HostKeyCallback: func(_ string, a net.Addr, key ssh.PublicKey) error { return check(as+":22", a, key) },
		HostKeyAlgorithms: []string{ssh.CertAlgoED25519v01}, Timeout: 20 * time.Second,
	})
	if err != nil {
		conn.Close()
		return nil, err
	}
	c := ssh.NewClient(sc, channels, requests)
	w.t.Cleanup(func() { c.Close() })
	return c, nil
}

func (w *world) output(c *ssh.Client, command string) string {
	w.t.Helper()
	s, err := c.NewSession()
	if err != nil {
		w.t.Fatal(err)
	}
	out, err := s.CombinedOutput(command)
	return fmt.Sprint(string(out), err)
}

func TestEndToEnd(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.cfg.Host = func(_ context.Context, _ auth.Caller, name string) (host.Host, error) {
		if name != "lab" {
			return host.Host{}, errs.E(errs.NotFound, "There is no host "+name+".")
		}
		return host.Host{Machine: host.Machine{ID: hostID, Name: name}}, nil
	}
	for _, as := range []string{"box.lab", "box.lab.rg", "box.rg.lab.rg", "env_box.rg"} {
		c, err := w.dialEnd("to=box.lab", as)
		if err != nil {
			t.Fatal(err)
		}
		if got := w.output(c, "x"); got != "end of \"env_box\"\n<nil>" {
			t.Errorf("as %s: %q", as, got)
		}
	}
	for _, as := range []string{"other.rg", "box", "box.rg", "box.other.rg", "box.rg.other.rg"} {
		if _, err := w.dialEnd("mode=end-to-end&to=box.lab", as); err == nil || !strings.Contains(err.Error(), "not in the set of valid principals") {
			t.Errorf("as %s, which may be another workspace's: %v", as, err)
		}
	}
	for name, says := range map[string]string{"none": "There is no environment none", "foreign": "not a member", "stopped": "Start it", "host:lab": "Only a platform admin"} {
		c, err := w.dialEnd("to="+url.QueryEscape(name), strings.Replace(name, "host:lab", "lab.rghost", 1))
		if err != nil {
			t.Errorf("%s: %v", name, err)
		} else if got := w.output(c, "x"); !strings.Contains(got, says) {
			t.Errorf("%s says %q", name, got)
		}
		if _, err := w.dialEnd("mode=end-to-end&to="+url.QueryEscape(name), name); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%s, end to end or not at all: %v", name, err)
		}
	}
	w.user.Admin = true
	c, err := w.dialEnd("to=lab.rghost", "lab.rghost")
	if err != nil {
		t.Fatal(err)
	}
	if got := w.output(c, "x"); got != "end of \"\"\n<nil>" {
		t.Errorf("the host itself: %q", got)
	}
	if got := w.output(w.mustClient("host:lab"), "env"); !strings.Contains(got, "term=") {
		t.Errorf("the host itself through the gateway: %q", got)
	}
	var n int
	if err := w.pool.QueryRow(t.Context(), "select count(*) from audit_entries where action = $1 and target = $2 and detail->>'kind' = 'ssh' and detail->>'via' = 'ssh'", string(auth.HostAccess), hostID).Scan(&n); err != nil || n != 1 {
		t.Errorf("%d entries of the host, %v", n, err)
	}
}

// TestRecordedIsBridged: where policy wants recordings nothing is hidden from
// the gateway.
func TestRecordedIsBridged(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.cfg.Records = func(_ context.Context, _ string, terminal bool) (bool, error) { return !terminal, nil }
	c, err := w.dialEnd("to=box", "box.rg")
	if err != nil {
		t.Fatal(err)
	}
	if got := w.output(c, "env"); !strings.Contains(got, "term=") {
		t.Errorf("%q", got)
	}
	if _, err := w.dialEnd("mode=end-to-end&to=box", "box"); err == nil || !strings.Contains(err.Error(), "records sessions") {
		t.Errorf("%v", err)
	}
}

// TestJump is ssh -J GATEWAY ENV: the gateway's user is whoever types it.
func TestJump(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	key := keyFile(t, w.key)
	_, port, _ := net.SplitHostPort(w.addr)
	for _, c := range []struct {
		user, host, out, says string
	}{
		{"jump", "box", "end of \"env_box\"\n", ""},
		{"ann", "box.rg", "end of \"env_box\"\n", ""},
		{"jump", "stopped", "", "Start it"},
		{"jump", "foreign", "", "not a member"},
		{"box", "box", "box:22: ", ""}, // through an environment: in its own network
	} {
		args := []string{"-F", "none", "-v", "-p", port, "-i", key, "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "IdentityAgent=none"}
		jump := "ssh " + strings.Join(args, " ") + " -W %h:22 " + c.user + "@127.0.0.1"
		args = append(slices.Clone(args), "-o", "ProxyCommand="+jump, "-o", "ConnectTimeout=10", c.host, "x")
		if c.user == "box" {
			args = append(slices.Clone(args[:len(args)-6]), "-W", "box:22", "box@127.0.0.1")
		}
		out, stderr, _ := w.ssh("", args...)
		if out != c.out || !strings.Contains(stderr, c.says) {
			t.Errorf("%s to %s: %q %s", c.user, c.host, out, stderr)
		}
	}
}

// TestOpenSSHKnowsWhoseEnvironment: as remotegpu ssh-config configures it,
// OpenSSH takes the host of its own workspace's environment, and that of
// another's under no name.
func TestOpenSSHKnowsWhoseEnvironment(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	host, port, _ := net.SplitHostPort(w.addr)
	dir := t.TempDir()
	write := func(name, text string, mode os.FileMode) string {
		file := filepath.Join(dir, name)
		if err := os.WriteFile(file, []byte(text), mode); err != nil {
			t.Fatal(err)
		}
		return file
	}
	known := write("known_hosts", sshconfig.KnownHosts(host, port, keyLine(w.ca), keyLine(w.hosts)), 0o600)
	// In place of remotegpu: through the gateway to the SSH end of $2.
	program := write("program", "#!/bin/sh\nexec ssh -F none -p "+port+" -i "+keyFile(t, w.key)+
		" -o IdentityAgent=none -o StrictHostKeyChecking=yes -o UserKnownHostsFile="+known+" -W \"$2:22\" jump@127.0.0.1\n", 0o700)
	config := write("config", sshconfig.Block("https://gpu.example.org", "lab", program, known), 0o600)
	options := []string{"-F", config, "-o", "BatchMode=yes", "-o", "ConnectTimeout=20"}
	for _, name := range []string{"box.rg", "box.lab.rg"} {
		if out, stderr, code := w.ssh("", append(options, name, "x")...); out != "end of \"env_box\"\n" || code != 0 {
			t.Errorf("%s: %d %q %s", name, code, out, stderr)
		}
	}
	// And led to lab's box by somebody in between, whatever it asks for.
	led := append(slices.Clone(options), "-o", "ProxyCommand="+program+" ssh-proxy box.lab.rg")
	for _, name := range []string{"second.rg", "box.other.rg", "box.rghost"} {
		if out, stderr, code := w.ssh("", append(led, name, "x")...); code == 0 || !strings.Contains(stderr, "name is not a listed principal") {
			t.Errorf("%s: %d %q %s", name, code, out, stderr)
		}
	}
	if out, stderr, code := w.ssh("", append(led, "-o", "HostName=box.rg", "box.rg", "x")...); code == 0 || !strings.Contains(stderr, "name is not a listed principal") {
		t.Errorf("by the short name: %d %q %s", code, out, stderr)
	}
}
