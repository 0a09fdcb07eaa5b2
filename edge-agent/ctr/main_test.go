package ctr

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/remotegpu/remotegpu/edge-agent/ctr/logs"
	"github.com/remotegpu/remotegpu/edge-agent/reconcile"
	"github.com/remotegpu/remotegpu/protocol"
)

// These tests run real containers: they need root and containerd.
var (
	shared  *daemon // for every test that does not kill it
	hub     *registry
	helper  string
	scratch string
	netns   string // one network namespace for all: networks are not tested here
)

func TestMain(m *testing.M) {
	if len(os.Args) == 3 && os.Args[1] == logs.Argument {
		if err := logs.Drive(os.Args[2]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(run(m))
}

func run(m *testing.M) int {
	if _, err := exec.LookPath("containerd"); err != nil || os.Getuid() != 0 {
		fmt.Println("skipped: these tests need root and containerd")
		return 0
	}
	dir, err := os.MkdirTemp("", "rgctr")
	if err != nil {
		panic(err)
	}
	defer os.RemoveAll(dir)
	scratch = dir
	helper = filepath.Join(dir, "helper")
	build := exec.Command("go", "build", "-o", helper, "../helper")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		fmt.Printf("build helper: %v\n%s", err, out)
		return 1
	}
	netns = fmt.Sprintf("rgctr%d", os.Getpid())
	if out, err := exec.Command("ip", "netns", "add", netns).CombinedOutput(); err != nil {
		fmt.Printf("make network namespace: %v %s", err, out)
		return 1
	}
	defer exec.Command("ip", "netns", "del", netns).Run()
	hub = newRegistry(dir)
	defer hub.close()
	shared = newDaemon(filepath.Join(dir, "shared"))
	shared.start()
	defer shared.stop()
	return m.Run()
}

// daemon is a containerd of the tests.
type daemon struct {
	dir string
	cmd *exec.Cmd
	log bytes.Buffer
}

func newDaemon(dir string) *daemon { return &daemon{dir: dir} }

func (d *daemon) socket() string { return filepath.Join(d.dir, "c.sock") }

func (d *daemon) start() {
	config := fmt.Sprintf("version = 2\nroot = %q\nstate = %q\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n[grpc]\naddress = %q\n",
		filepath.Join(d.dir, "root"), filepath.Join(d.dir, "state"), d.socket())
	if err := os.MkdirAll(d.dir, 0o711); err != nil {
		panic(err)
	}
	file := filepath.Join(d.dir, "config.toml")
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		panic(err)
	}
	d.cmd = exec.Command("containerd", "--config", file)
	d.cmd.Stdout, d.cmd.Stderr = &d.log, &d.log
	if err := d.cmd.Start(); err != nil {
		panic(err)
	}
}

// kill ends containerd the hard way; its containers run on.
func (d *daemon) kill() {
	d.cmd.Process.Kill()
	d.cmd.Wait()
}

func (d *daemon) stop() {
	d.cmd.Process.Signal(os.Interrupt)
	d.cmd.Wait()
}

// host is one agent's runtime on a daemon, in a namespace of its own.
type host struct {
	*Runtime
	t        *testing.T
	daemon   *daemon
	mu       sync.Mutex
	attached map[string]bool
	password string
	pullErr  error
}

func newHost(t *testing.T, d *daemon, edit ...func(*Config)) *host {
	t.Helper()
	dir, err := os.MkdirTemp(scratch, "host")
	if err != nil {
		t.Fatal(err)
	}
	h := &host{t: t, daemon: d, attached: map[string]bool{}, password: "right"}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cfg := Config{
		Address: d.socket(), Namespace: strings.ToLower(strings.NewReplacer("/", "-", "_", "-").Replace(t.Name())),
		DataDir: filepath.Join(dir, "data"), RunDir: filepath.Join(dir, "run"), Helper: helper, LogDriver: self,
		Network:  Network{Attach: h.attach, Detach: h.detach, List: h.list, ResolvConf: func() string { return "" }},
		Registry: hub.tls.Listener.Addr().String(), RegistryCA: hub.pool,
		Credentials: func(context.Context, protocol.Workload, string) (string, string, error) {
			return "user", h.password, h.pullErr
		},
		Log: slog.New(slog.NewTextHandler(t.Output(), nil)),
	}
	for _, e := range edit {
		e(&cfg)
	}
	h.Runtime, err = New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(h.clear)
	return h
}

func (h *host) attach(_ context.Context, workload string) (string, string, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.attached[workload] = true
	return "/run/netns/" + netns, "10.9.8.7", nil
}

func (h *host) detach(_ context.Context, workload string) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.attached, workload)
	return nil
}

func (h *host) list() (ids []string, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for id := range h.attached {
		ids = append(ids, id)
	}
	return ids, nil
}

// clear removes every container and mount of the test.
func (h *host) clear() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	have, err := h.Observe(ctx)
	if err != nil {
		h.t.Error(err)
	}
	for _, c := range have.Containers {
		if err := h.Remove(ctx, c); err != nil {
			h.t.Error(err)
		}
	}
	for _, id := range have.Leftovers {
		if err := h.Purge(ctx, id); err != nil {
			h.t.Error(err)
		}
	}
	h.Close()
}

// ready waits until containerd answers.
func (h *host) ready() {
	h.t.Helper()
	h.until("containerd answers", func() bool { _, err := h.Observe(h.t.Context()); return err == nil })
}

// until polls what only the outside can make true.
func (h *host) until(what string, ok func() bool) {
	h.t.Helper()
	for end := time.Now().Add(60 * time.Second); !ok(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			h.t.Fatalf("it never came true that %s", what)
		}
	}
}

func (h *host) do(err error) {
	h.t.Helper()
	if err != nil {
		h.t.Fatal(err)
	}
}

// find returns the one container of the host.
func (h *host) find() reconcile.Container {
	h.t.Helper()
	have, err := h.Observe(h.t.Context())
	h.do(err)
	if len(have.Containers) != 1 {
		h.t.Fatalf("containers %+v, want one", have.Containers)
	}
	return have.Containers[0]
}

// up pulls, creates and starts w.
func (h *host) up(w protocol.Workload) reconcile.Container {
	h.t.Helper()
	h.ready()
	ctx := h.t.Context()
	h.do(h.Pull(ctx, w, func(_, _ uint64) {}))
	h.do(h.Create(ctx, w))
	h.do(h.Start(ctx, w, h.find()))
	return h.find()
}

// ended waits until the container has ended and returns it.
func (h *host) ended() (c reconcile.Container) {
	h.t.Helper()
	h.until("the container ended", func() bool { c = h.find(); return c.State == reconcile.Exited })
	return c
}

// output is everything that the workload wrote.
func (h *host) output() string {
	h.t.Helper()
	var b strings.Builder
	h.do(h.ReadLog(h.t.Context(), "env_a", -1, false, func(l logs.Line) error {
		b.Write(l.Text)
		b.WriteByte('\n')
		return nil
	}))
	return b.String()
}

func shell(script string, edit ...func(*protocol.Workload)) protocol.Workload {
	w := protocol.Workload{
		ID: "env_a", Revision: 1, Name: "box", Workspace: "ws_a", Want: protocol.WantRunning,
		Image: "{control}/test/busybox:1", Restart: protocol.RestartNever, PullAuth: true, Grace: 5,
	}
	if script != "" {
		w.Command = []string{"/bin/sh", "-c", script}
	}
	for _, e := range edit {
		e(&w)
	}
	return w
}
