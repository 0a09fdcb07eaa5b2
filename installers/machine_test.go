package installers

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"flag"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestMain lets this test binary play the agent's programs and the init of a
// machine: which one, its file name says.
func TestMain(m *testing.M) {
	switch filepath.Base(os.Args[0]) {
	case "remotegpu-agent":
		os.Exit(fakeAgent(os.Args[1:]))
	case "machine-init":
		reap()
	}
	os.Exit(m.Run())
}

// reap is PID 1 of a machine.
func reap() {
	fmt.Println("ready")
	for {
		if _, err := syscall.Wait4(-1, nil, 0, nil); err == syscall.ECHILD {
			time.Sleep(10 * time.Millisecond)
		}
	}
}

// fakeAgent keeps the agent's side of the contract with install.sh.
func fakeAgent(args []string) int {
	data, run := os.Getenv("REMOTEGPU_DATA_DIR"), os.Getenv("REMOTEGPU_RUN_DIR")
	var err error
	switch args[0] {
	case "enroll":
		err = fakeEnroll(args[1:], data)
	case "supervise":
		stop := make(chan os.Signal, 1)
		signal.Notify(stop, syscall.SIGTERM)
		fmt.Println("proxy", os.Getenv("HTTPS_PROXY")) // before install.sh sees that it is connected
		err = os.WriteFile(filepath.Join(run, "connected"), []byte(os.Getenv("REMOTEGPU_GPU_SOURCE")), 0o600)
		<-stop
		os.Remove(filepath.Join(run, "connected"))
	case "status":
		_, err = os.ReadFile(filepath.Join(run, "connected"))
		fmt.Println("connected as box")
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "remotegpu-agent:", err)
		return 1
	}
	return 0
}

func fakeEnroll(args []string, data string) error {
	set := flag.NewFlagSet("enroll", flag.ContinueOnError)
	server, ca, name := set.String("server", "", ""), set.String("ca", "", ""), set.String("name", "", "")
	if err := set.Parse(args); err != nil {
		return err
	}
	authorities := x509.NewCertPool()
	pem, err := os.ReadFile(*ca)
	if err != nil || !authorities.AppendCertsFromPEM(pem) {
		return fmt.Errorf("read authority: %w", err)
	}
	client := http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: authorities}}}
	body, _ := json.Marshal(map[string]string{"token": os.Getenv("REMOTEGPU_TOKEN"), "name": *name})
	res, err := client.Post(*server+"/api/v1/agent/enroll", "application/json", bytes.NewReader(body))
	if err != nil {
		return err
	}
	defer res.Body.Close()
	var problem struct{ Detail string }
	if res.StatusCode != http.StatusOK {
		_ = json.NewDecoder(res.Body).Decode(&problem) // an empty sentence fails the test
		return fmt.Errorf("%s", problem.Detail)
	}
	if err := os.MkdirAll(data, 0o700); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(data, "agent.json"), body, 0o600)
}

// machine is this machine once more: a copy-on-write view of its file system
// in namespaces of its own, so that a test may install, break and remove.
type machine struct {
	t     *testing.T
	pid   string
	upper string // what the machine changed, seen from inside its mount namespace
}

const machineSetup = `set -e
mount -t tmpfs tmpfs "$1"
mkdir "$1/upper" "$1/work" "$1/root"
mount -t overlay overlay -o "lowerdir=/,upperdir=$1/upper,workdir=$1/work" "$1/root"
for d in run tmp; do mount -t tmpfs tmpfs "$1/root/$d"; done
mount -t proc proc "$1/root/proc"
mount -t sysfs sysfs "$1/root/sys"
mount --rbind /dev "$1/root/dev"
cp "$2" "$1/root/tmp/machine-init"
exec chroot "$1/root" /tmp/machine-init`

func newMachine(t *testing.T) *machine {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("a machine of its own needs root: run as root")
	}
	dir := t.TempDir()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("sh", "-c", machineSetup, "sh", dir, self)
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWPID, Unshareflags: syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL,
	}
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatalf("start machine: %v", err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	if line := make([]byte, 6); !readAll(out, line) {
		t.Fatal("machine did not come up")
	}
	m := &machine{t: t, pid: strconv.Itoa(cmd.Process.Pid), upper: dir + "/upper"}
	// Not what this machine happens to have, but a host that lacks nothing.
	m.ok("rm -rf /etc/remotegpu /var/lib/remotegpu /var/lib/containerd; mkdir -p /usr/local/lib /usr/lib/cni")
	return m
}

func readAll(r interface{ Read([]byte) (int, error) }, b []byte) bool {
	for n := 0; n < len(b); {
		k, err := r.Read(b[n:])
		if n += k; err != nil {
			return false
		}
	}
	return true
}

// sh runs a shell command on the machine and returns what it printed.
func (m *machine) sh(command string, env ...string) (string, error) {
	cmd := exec.Command("nsenter", "-t", m.pid, "-m", "-p", "-r", "-w", "env", "-i", "HOME=/root",
		"GORACE=atexit_sleep_ms=0", // the fake agent is this test
		"PATH=/fake:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
	cmd.Args = append(append(cmd.Args, env...), "sh", "-c", command)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err := cmd.Run()
	return out.String(), err
}

func (m *machine) ok(command string, env ...string) string {
	m.t.Helper()
	out, err := m.sh(command, env...)
	if err != nil {
		m.t.Fatalf("%s: %v\n%s", command, err, out)
	}
	return out
}

// changes lists what the machine's file system has more than this one's, with
// times, so that two equal answers mean that nothing was written between.
func (m *machine) changes() string {
	m.t.Helper()
	out, err := exec.Command("nsenter", "-t", m.pid, "-m", "find", m.upper, "!", "-type", "d", "!", "-type", "c", "-printf", "%P %m %s %T@\n").CombinedOutput()
	if err != nil {
		m.t.Fatalf("list changes: %v\n%s", err, out)
	}
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	kept := lines[:0]
	for _, l := range lines {
		if !strings.HasPrefix(l, "var/lib/containerd/") && !strings.HasPrefix(l, "fake/") {
			kept = append(kept, l)
		}
	}
	return strings.Join(kept, "\n")
}

// fake puts a program before all others on the machine's PATH.
func (m *machine) fake(name, script string) {
	m.t.Helper()
	m.ok("mkdir -p /fake && cat >/fake/" + name + " <<'FAKE'\n#!/bin/sh\n" + script + "\nFAKE\nchmod 755 /fake/" + name)
}
