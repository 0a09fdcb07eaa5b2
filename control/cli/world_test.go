package cli

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/remotegpu/remotegpu/control/pgtest"
	"github.com/remotegpu/remotegpu/protocol"
)

func TestMain(m *testing.M) { pgtest.Main(m) }

// world is a real server and a person at a command line who is its admin.
type world struct {
	t        *testing.T
	config   string // for --config
	database string
	client   *client
}

func newWorld(t *testing.T) *world {
	t.Helper()
	data, listen := t.TempDir(), freeAddress(t)
	w := &world{t: t, config: filepath.Join(data, "cli.json"), database: pgtest.URL(t)}
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		if out, code := w.runCtx(ctx, "server", "--data-dir", filepath.Join(data, "srv"), "--database-url", w.database, "--listen", listen, "--ssh-listen", freeAddress(t), "--drain", "0s"); code != 0 {
			t.Errorf("the server ended with %d: %s", code, out)
		}
	}()
	t.Cleanup(func() { stop(); <-ended })
	w.logIn(listen, filepath.Join(data, "srv/first-login.json"))
	return w
}

var addresses atomic.Int32

// freeAddress is one where nobody listens, nor will: no other process of tests, and
// nothing that wants any port, has this address.
func freeAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", fmt.Sprintf("127.%d.%d.%d:0", 1+os.Getpid()>>8&127, os.Getpid()&255, 1+addresses.Add(1)%250))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// logIn waits for the server and does what login does after its questions.
func (w *world) logIn(listen, file string) {
	w.t.Helper()
	var conn *tls.Conn
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
		var err error
		if conn, err = tls.Dial("tcp", listen, &tls.Config{InsecureSkipVerify: true}); err == nil {
			break
		}
		if time.Now().After(deadline) {
			w.t.Fatal(err)
		}
	}
	defer conn.Close()
	var first struct{ Email, Password string }
	if b, err := os.ReadFile(file); err != nil || json.Unmarshal(b, &first) != nil {
		w.t.Fatalf("%s: %v", file, err)
	}
	c, err := newClient(profile{URL: "https://" + listen, Pin: keyPin(conn.ConnectionState().PeerCertificates[0])})
	if err != nil {
		w.t.Fatal(err)
	}
	var out struct{ Token string }
	if err := c.call(w.t.Context(), http.MethodPost, "/api/v1/login", first, &out); err != nil {
		w.t.Fatal(err)
	}
	c.Token, w.client = out.Token, c
	a := &app{profile: w.config, errOut: &bytes.Buffer{}}
	if err := a.remember(w.t.Context(), c); err != nil {
		w.t.Fatal(err)
	}
}

// join makes a host, as an agent does.
func (w *world) join(name string) {
	w.t.Helper()
	var token struct{ Token string }
	w.must(w.client.call(w.t.Context(), http.MethodPost, "/api/v1/join-tokens", map[string]any{"uses": 1, "hours": 1}, &token))
	pub, key, err := ed25519.GenerateKey(nil)
	w.must(err)
	w.must(w.client.call(w.t.Context(), http.MethodPost, "/api/v1/agent/enroll", protocol.Enroll{
		Token: token.Token, PublicKey: pub, Proof: ed25519.Sign(key, protocol.EnrollProof(token.Token, pub)), Name: name,
		Inventory: protocol.Inventory{Hostname: name, OS: "linux", Arch: "amd64", CPUs: 8, Memory: 64 << 30, Disk: 1 << 40},
	}, nil))
}

func (w *world) must(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

// run runs a command line and returns all that it prints.
func (w *world) run(args ...string) (out string, code int) {
	return w.runCtx(w.t.Context(), args...)
}

func (w *world) runCtx(ctx context.Context, args ...string) (out string, code int) {
	var b bytes.Buffer
	a := &app{version: "test", out: &b, errOut: &b}
	root := a.root()
	root.SetOut(&b)
	root.SetErr(&b)
	root.SetArgs(append([]string{"--config", w.config}, args...))
	cmd, err := root.ExecuteContextC(ctx)
	code = a.status(cmd, err)
	return b.String(), code
}

// TestSSHConfig: OpenSSH calls an environment by its workspace's name too, so
// that nobody else's host of that name will do.
func TestSSHConfig(t *testing.T) {
	w := newWorld(t)
	out, code := w.run("ssh-config")
	file := filepath.Join(t.TempDir(), "config")
	if code != 0 || os.WriteFile(file, []byte(out), 0o600) != nil {
		t.Fatal(out)
	}
	for host, want := range map[string]string{
		"train.rg": "train.rg.default.rg", "train.lab.rg": "train.lab.rg", "env_0123.rg": "env_0123.rg", "lab.rghost": "lab.rghost", "a.b.rghost": "a.b.rghost", "other": "other",
	} {
		out, err := exec.Command("ssh", "-F", file, "-G", host).CombinedOutput()
		if err != nil || !strings.Contains(string(out), "\nhostname "+want+"\n") || strings.Contains(string(out), "ssh-proxy %h") != (host != "other") {
			t.Errorf("%s should be %s: %s %v", host, want, out, err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if out, _ := w.runCtx(ctx, "ssh-proxy", "--end-to-end", "train.rg"); !strings.Contains(out, "ssh-config --install") {
		t.Errorf("an older configuration: %s", out)
	}
	for _, host := range []string{"train.rg.default.rg", "train.default.rg", "train.default"} {
		if out, code := w.runCtx(ctx, "ssh-proxy", "--end-to-end", host); code == 0 || !strings.Contains(out, "no environment train in a workspace default") || strings.Contains(out, "--install") {
			t.Errorf("%s: %s", host, out)
		}
	}
}

// TestOtherWorkspace: whatever takes an environment takes ENV.WORKSPACE.
func TestOtherWorkspace(t *testing.T) {
	w := newWorld(t)
	for _, line := range []string{"workspace create lab", "-w lab env create box --wait=false"} {
		if out, code := w.run(strings.Fields(line)...); code != 0 {
			t.Fatalf("%s: %s", line, out)
		}
	}
	for _, c := range []struct {
		line string
		code int
		says string
	}{
		{"env show box.lab", 0, `"name": "box"`},
		{"env events box.lab", 0, "Created by"},
		{"env logs box.lab", 1, "has not run yet"},
		{"sessions box.lab", 1, "pending"},
		{"attach box.lab", 1, "pending"},
		{"ssh box.lab -- true", 255, "pending"},
		{"cp -rp none.lab:/etc/hosts /tmp", 1, "There is no environment none in a workspace lab"},
		{"cp box.lab:/etc/hosts /tmp", 1, "pending; waiting"},
		{"forward box.lab 0:80", 0, "IN BOX"},
		{"rdp box.lab --no-launch", 1, "pending"},
		{"jupyter box.lab --no-browser", 1, "pending"},
		{"app expose box.lab 8000", 0, "box"},
		{"app open box.lab 8000 --no-browser", 0, "https://"},
		{"app rm box.lab 8000", 0, "as every port"},
		{"env stop box.lab --wait=false", 0, "Environment box"},
		{"env start box.lab --wait=false", 0, "Environment box"},
		{"env restart box.lab --wait=false", 0, "Environment box"},
		{"env rm box.lab", 0, "is deleted"},
	} {
		ctx, cancel := context.WithTimeoutCause(t.Context(), 5*time.Second, errors.New("enough"))
		if strings.HasPrefix(c.line, "env") {
			cancel()
			ctx, cancel = context.WithTimeout(t.Context(), time.Minute)
		}
		out, code := w.runCtx(ctx, strings.Fields(c.line)...)
		cancel()
		if code != c.code || !strings.Contains(out, c.says) {
			t.Errorf("%s: status %d, want %d with %q:\n%s", c.line, code, c.code, c.says, out)
		}
	}
}
