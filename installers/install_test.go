package installers

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
)

// control is a control plane as far as install.sh sees one.
type control struct {
	*httptest.Server
	key   *ecdsa.PrivateKey
	mu    sync.Mutex
	files map[string][]byte // under /dl/, but for the sums; guarded by mu, as are all below
	sums  []byte            // instead of the true ones
	sig   []byte
	ca    string // instead of the true one
}

func newControl(t *testing.T) *control {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	self, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	dir := "linux-" + runtime.GOARCH + "/"
	c := &control{key: key, files: map[string][]byte{
		dir + "remotegpu-agent": self, dir + "remotegpu-helper": []byte("helper"), dir + "remotegpu-nvml": []byte("nvml"),
	}}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /install.sh", func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, c.script()) })
	mux.HandleFunc("GET /dl/{file...}", c.download)
	mux.HandleFunc("POST /api/v1/agent/enroll", enroll)
	c.Server = httptest.NewUnstartedServer(mux)
	c.mu.Lock() // requests wait until the fields are set
	c.StartTLS()
	c.mu.Unlock()
	t.Cleanup(c.Close)
	return c
}

func (c *control) script() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	der, err := x509.MarshalPKIXPublicKey(c.key.Public())
	if err != nil {
		panic(err)
	}
	pub := pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})
	ca := c.ca
	if ca == "" {
		ca = string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Certificate().Raw}))
	}
	return strings.NewReplacer("@URL@", c.URL, "@CA_PEM@", strings.TrimSpace(ca), "@RELEASE_PUB@", strings.TrimSpace(string(pub))).Replace(Script)
}

func (c *control) download(w http.ResponseWriter, r *http.Request) {
	c.mu.Lock()
	defer c.mu.Unlock()
	var sums []byte
	for name, b := range c.files {
		sums = fmt.Appendf(sums, "%x  %s\n", sha256.Sum256(b), name)
	}
	if c.sums == nil {
		c.sums = sums
		digest := sha256.Sum256(sums)
		c.sig, _ = ecdsa.SignASN1(rand.Reader, c.key, digest[:]) // cannot fail with a good key
	}
	switch file := r.PathValue("file"); file {
	case "SHA256SUMS":
		w.Write(c.sums)
	case "SHA256SUMS.sig":
		w.Write(c.sig)
	default:
		b, ok := c.files[file]
		if !ok {
			http.NotFound(w, r)
			return
		}
		w.Write(b)
	}
}

// publish replaces a program by a new version with true sums.
func (c *control) publish(name string, b []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.files["linux-"+runtime.GOARCH+"/"+name] = b
	c.sums = nil
}

func enroll(w http.ResponseWriter, r *http.Request) {
	var in struct{ Token string }
	if err := json.NewDecoder(r.Body).Decode(&in); err != nil || in.Token != "good" {
		w.WriteHeader(http.StatusForbidden)
		fmt.Fprintf(w, `{"detail":"This join token is %s: make a new one."}`, in.Token)
	}
}

// install runs the line that people paste.
func (m *machine) install(c *control, args string, env ...string) (string, error) {
	return m.sh("curl -fsSLk "+c.URL+"/install.sh | sh -s -- "+args, env...)
}

func (m *machine) mustInstall(c *control, args string, want string, env ...string) string {
	m.t.Helper()
	out, err := m.install(c, args, env...)
	if err != nil || !strings.Contains(out, want) {
		m.t.Fatalf("install.sh %s: %v, want %q in\n%s", args, err, want, out)
	}
	return out
}

// mustRefuse checks that install.sh fails with want in its last line and that
// it leaves the machine as it was.
func (m *machine) mustRefuse(c *control, args, want string, env ...string) {
	m.t.Helper()
	before := m.changes()
	out, err := m.install(c, args, env...)
	lines := strings.Split(strings.TrimSpace(out), "\n")
	if err == nil || !strings.Contains(out, want) || len(lines) > 3 {
		m.t.Errorf("install.sh %s: %v, want a refusal of at most three lines with %q, got\n%s", args, err, want, out)
	}
	if after := m.changes(); after != before {
		m.t.Errorf("install.sh %s changed the machine from\n%s\nto\n%s", args, before, after)
	}
}

func TestLifeOfAHost(t *testing.T) {
	c, m := newControl(t), newMachine(t)
	pristine := m.changes()
	out := m.mustInstall(c, "--token good --gpu-source sim:2xH100", "visible at "+c.URL, "https_proxy=", "no_proxy=127.0.0.1")
	for _, want := range []string{"joined", "connected as box", "there is no systemd here"} {
		if !strings.Contains(out, want) {
			t.Errorf("want %q in\n%s", want, out)
		}
	}
	m.ok("test -x /usr/local/bin/remotegpu-agent -a -x /usr/local/lib/remotegpu/remotegpu-helper -a -x /usr/local/lib/remotegpu/remotegpu-nvml")
	m.ok("test $(stat -c %a /etc/remotegpu/agent.env) = 600 && test -s /etc/remotegpu/ca.pem")
	if got := m.ok("cat /run/remotegpu/connected"); got != "sim:2xH100" {
		t.Errorf("the agent got the GPU source %q", got)
	}

	installed := m.changes()
	first := m.ok("cat /run/remotegpu/supervise.pid")
	m.mustInstall(c, "--token used", "nothing was changed")
	m.mustInstall(c, "", "nothing was changed")
	if after := m.changes(); after != installed {
		t.Errorf("a second run changed\n%s\nto\n%s", installed, after)
	}

	self, _ := os.ReadFile("/proc/self/exe")
	c.publish("remotegpu-agent", append(self, "newer"...))
	m.mustInstall(c, "--upgrade", "downloaded and checked: remotegpu-agent")
	if again := m.ok("cat /run/remotegpu/supervise.pid"); again == first {
		t.Error("the upgrade did not restart the agent")
	}
	if got := m.ok("cat /run/remotegpu/connected"); got != "sim:2xH100" {
		t.Errorf("the upgrade changed the GPU source to %q", got)
	}

	m.mustInstall(c, "--stop", "are stopped")
	if out := m.ok("ps ax"); strings.Contains(out, "supervise") {
		t.Errorf("still running after --stop:\n%s", out)
	}
	m.mustInstall(c, "", "started")

	m.ok("mkdir -p /var/lib/remotegpu/volumes/env_1/home && echo mine >/var/lib/remotegpu/volumes/env_1/home/file")
	if out := m.ok("sh /usr/local/lib/remotegpu/install.sh --uninstall"); !strings.Contains(out, "volumes stay in /var/lib/remotegpu/volumes") {
		t.Errorf("uninstall does not say where the volumes are:\n%s", out)
	}
	m.ok("rm /var/lib/remotegpu/volumes/env_1/home/file")
	if left := m.changes(); left != pristine {
		t.Errorf("uninstall left\n%s\nbesides the volumes, pristine is\n%s", left, pristine)
	}
	if out := m.ok("ps ax"); strings.Contains(out, "remotegpu") {
		t.Errorf("still running after uninstall:\n%s", out)
	}
	m.mustInstall(c, "--uninstall --purge", "done")
	m.ok("test ! -e /var/lib/remotegpu")
}

func TestChangedOptionRestarts(t *testing.T) {
	c, m := newControl(t), newMachine(t)
	m.mustInstall(c, "--token good", "joined")
	before := m.ok("cat /run/remotegpu/supervise.pid")
	m.mustInstall(c, "--gpu-source none --proxy http://127.0.0.1:1", "started", "no_proxy=127.0.0.1")
	if after := m.ok("cat /run/remotegpu/supervise.pid"); after == before {
		t.Error("a changed option did not restart the agent")
	}
	if got := m.ok("cat /run/remotegpu/connected; tail -n 1 /var/log/remotegpu/supervise.log"); got != "noneproxy http://127.0.0.1:1\n" {
		t.Errorf("the agent got GPU source and proxy %q", got)
	}
	m.mustInstall(c, "", "nothing was changed")
}

func TestRefusals(t *testing.T) {
	c, m := newControl(t), newMachine(t)
	other := newControl(t)
	pem := exec.Command("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", "/dev/null", "-subj", "/CN=other", "-days", "2")
	ca, err := pem.Output()
	if err != nil {
		t.Fatal(err)
	}
	other.ca = string(ca)

	m.mustRefuse(c, "", "a join token is missing")
	m.mustRefuse(c, "--token", "--token needs a value")
	m.mustRefuse(c, "--tokn x", "there is no option '--tokn'")
	m.mustRefuse(c, `--token "a'b"`, "no quotes")
	m.mustRefuse(c, "--token good --data-dir relative", "must be an absolute path")
	m.mustRefuse(c, "--token used-up", "This join token is used-up: make a new one.")
	m.mustRefuse(c, "--token expired", "This join token is expired: make a new one.")
	m.mustRefuse(c, "--upgrade", "has not joined yet")
	m.mustRefuse(c, "--token good --proxy http://127.0.0.1:1", "cannot be reached through the proxy http://127.0.0.1:1")
	m.mustRefuse(other, "--token good", "does not show the certificate that this script was made for")

	m.ok("mount -t tmpfs -o size=20m tmpfs /usr/local")
	m.mustRefuse(c, "--token good", "needs 150 MiB of free space and has 20: make room")
	m.ok("umount /usr/local")

	m.fake("uname", `case $1 in -m) echo riscv64;; *) echo Linux;; esac`)
	m.mustRefuse(c, "--token good", "processors of type riscv64 are not supported")
	m.fake("uname", `case $1 in -m) echo x86_64;; *) echo FreeBSD;; esac`)
	m.mustRefuse(c, "--token good", "FreeBSD is not supported")
}

// TestProxyPasswordStaysSecret tries proxies that are away, that no program
// understands, and that a package manager complains of.
func TestProxyPasswordStaysSecret(t *testing.T) {
	c, m := newControl(t), newMachine(t)
	refuse := func(proxy, want string) {
		t.Helper()
		out, err := m.install(c, "--token good --proxy '"+proxy+"'")
		if err == nil || !strings.Contains(out, want) || strings.Contains(out, "sesame") || strings.Contains(out, "ali") {
			t.Errorf("proxy %s: %v, want %q and no password in\n%s", proxy, err, want, out)
		}
	}
	refuse("http://ali:sesame@127.0.0.1:1", "cannot be reached through the proxy http://127.0.0.1:1 (")
	refuse("http://ali:pass@sesame@127.0.0.1:1", "through the proxy http://127.0.0.1:1 (")
	refuse("ali:sesame@127.0.0.1:1", "through the proxy 127.0.0.1:1 (")
	refuse("http://ali:se same@127.0.0.1:1", "no blanks")
	m.fake("curl", `case "$*" in *ca.pem*) echo "curl: (5) Unsupported proxy syntax in '$https_proxy'" >&2; exit 5;; esac; exec /usr/bin/curl "$@"`)
	refuse("http://ali:sesame@:1", "Unsupported proxy syntax in 'http://:1'")
	m.fake("curl", `exec /usr/bin/curl --noproxy '*' "$@"`)
	m.ok("mv /usr/bin/containerd /tmp/")
	m.fake("apt-get", `echo "E: Unsupported proxy configured: $https_proxy" >&2; exit 100`)
	refuse("http://ali:sesame@127.0.0.1:1", "apt-get could not install containerd (E: Unsupported proxy configured: http://127.0.0.1:1)")
}

func TestNeedsRoot(t *testing.T) {
	c, m := newControl(t), newMachine(t)
	out, err := m.sh("curl -fsSLk " + c.URL + "/install.sh | setpriv --reuid 65534 --clear-groups sh -s -- --token good")
	if err == nil || !strings.Contains(out, "run it with 'sudo sh -s --'") {
		t.Errorf("without root: %v\n%s", err, out)
	}
}

func TestTamperedDownloads(t *testing.T) {
	evil := []byte("#!/bin/sh\necho evil\n")
	for _, tc := range []struct {
		name, want string
		tamper     func(c *control)
	}{
		{"program", "remotegpu-agent is not what the signed checksums say", func(c *control) { c.files["linux-"+runtime.GOARCH+"/remotegpu-agent"] = evil }},
		{"helper", "remotegpu-helper is not what the signed checksums say", func(c *control) { c.files["linux-"+runtime.GOARCH+"/remotegpu-helper"] = evil }},
		{"sums", "is not signed with the key", func(c *control) { c.sums = append(c.sums, '\n') }},
		{"signature", "is not signed with the key", func(c *control) {
			key, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
			digest := sha256.Sum256(c.sums)
			c.sig, _ = ecdsa.SignASN1(rand.Reader, key, digest[:])
		}},
		{"no program for this machine", "has no programs for linux-", func(c *control) {
			delete(c.files, "linux-"+runtime.GOARCH+"/remotegpu-agent")
			c.sums = nil
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c, m := newControl(t), newMachine(t)
			m.ok("curl -fsSk -o /dev/null " + c.URL + "/dl/SHA256SUMS") // makes the true sums
			c.mu.Lock()
			tc.tamper(c)
			c.mu.Unlock()
			m.mustRefuse(c, "--token good", tc.want)
		})
	}
}

// TestTamperedUpgrade shows that a bad download leaves a running host alone.
func TestTamperedUpgrade(t *testing.T) {
	c, m := newControl(t), newMachine(t)
	m.mustInstall(c, "--token good", "joined")
	c.mu.Lock()
	c.files["linux-"+runtime.GOARCH+"/remotegpu-helper"] = []byte("evil")
	c.sums = append(c.sums, '\n')
	c.mu.Unlock()
	before := m.ok("cat /run/remotegpu/supervise.pid")
	m.mustRefuse(c, "--upgrade", "is not signed with the key")
	if after := m.ok("cat /run/remotegpu/supervise.pid"); after != before {
		t.Error("a refused upgrade restarted the agent")
	}
}

func TestOtherControlPlane(t *testing.T) {
	c, m, other := newControl(t), newMachine(t), newControl(t)
	m.mustInstall(c, "--token good", "joined")
	m.mustRefuse(other, "--token good", "this machine has joined "+c.URL)
	m.ok("cp /etc/ssl/certs/ca-certificates.crt /etc/remotegpu/ca.pem")
	m.mustRefuse(c, "--token good", "this machine has joined another control plane, which was at "+c.URL)
}

func TestPackages(t *testing.T) {
	const bare = "mv /usr/bin/containerd /usr/sbin/runc /usr/lib/cni/bridge /usr/bin/apt-get /tmp/"
	for _, tc := range []struct{ name, tool, prepare, want string }{
		{"nothing is missing", "apt-get", "true", ""},
		{"debian", "apt-get", bare, "containerd runc containernetworking-plugins"},
		{"docker's containerd without plugins", "apt-get", "mv /usr/lib/cni/bridge /tmp/", "containernetworking-plugins"},
		{"a containerd that answers elsewhere", "apt-get", "mv /usr/bin/containerd /tmp/ && mkdir -p /run/containerd && python3 -c 'import socket; socket.socket(socket.AF_UNIX).bind(\"/run/containerd/containerd.sock\")'", ""},
		{"fedora", "dnf", bare, "containerd runc containernetworking-plugins"},
		{"rhel", "yum", bare, "containerd.io containernetworking-plugins"},
		{"suse", "zypper", bare, "containerd runc cni-plugins"},
		{"no tool", "emerge", bare, "refused"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c, m := newControl(t), newMachine(t)
			m.ok(tc.prepare)
			m.fake(tc.tool, `case "$*" in *list\ containerd) [ "${0##*/}" = dnf ]; exit;; *install*) ;; *) exit;; esac
for a; do case $a in -*|install|DPkg*) ;; *) printf '%s ' "$a";; esac; done >>/fake/asked`)
			if tc.want == "refused" {
				out, err := m.install(c, "--token good")
				if err == nil || !strings.Contains(out, "none of apt-get, dnf, yum, zypper is here") {
					t.Errorf("%v\n%s", err, out)
				}
				return
			}
			m.mustInstall(c, "--token good", "joined")
			if got := strings.TrimSpace(m.ok("cat /fake/asked 2>/dev/null || :")); got != tc.want {
				t.Errorf("asked %s for %q, want %q", tc.tool, got, tc.want)
			}
		})
	}
}

// TestCutDownload runs every tenth prefix of the script: none may do anything.
func TestCutDownload(t *testing.T) {
	c, m := newControl(t), newMachine(t)
	script := c.script()
	for i := 1; i < 10; i++ {
		cut := filepath.Join("/tmp", fmt.Sprintf("cut%d.sh", i))
		m.ok("curl -fsSLk " + c.URL + "/install.sh | head -c " + fmt.Sprint(len(script)*i/10) + " >" + cut)
		before := m.changes()
		_, _ = m.sh("sh " + cut + " --token good") // a syntax error is as good as nothing
		if after := m.changes(); after != before {
			t.Errorf("the first %d/10 of the script changed the machine:\n%s", i, after)
		}
	}
}

func TestOtherShells(t *testing.T) {
	for _, shell := range []string{"bash --posix", "busybox sh"} {
		t.Run(shell, func(t *testing.T) {
			if _, err := exec.LookPath(strings.Fields(shell)[0]); err != nil {
				t.Skip("not here")
			}
			c, m := newControl(t), newMachine(t)
			out, err := m.sh("curl -fsSLk " + c.URL + "/install.sh | " + shell + " -s -- --token good")
			if err != nil || !strings.Contains(out, "visible at") {
				t.Errorf("%v\n%s", err, out)
			}
		})
	}
}

func TestHelpTeaches(t *testing.T) {
	out, err := exec.Command("sh", "-c", `printf '%s' "$1" | sh -s -- --help`, "sh", Script).CombinedOutput()
	if err != nil || !strings.Contains(string(out), "--token TOKEN") {
		t.Errorf("--help: %v\n%s", err, out)
	}
}

func TestShellcheck(t *testing.T) {
	if _, err := exec.LookPath("shellcheck"); err != nil {
		t.Skip("shellcheck is not installed")
	}
	if out, err := exec.Command("shellcheck", "install.sh").CombinedOutput(); err != nil {
		t.Errorf("shellcheck: %v\n%s", err, out)
	}
}
