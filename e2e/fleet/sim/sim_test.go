package sim

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/remotegpu/remotegpu/control/pgtest"
	"github.com/remotegpu/remotegpu/control/server"
	"github.com/remotegpu/remotegpu/edge-agent/link"
	"github.com/remotegpu/remotegpu/edge-agent/reconcile"
	"github.com/remotegpu/remotegpu/protocol"
)

func TestMain(m *testing.M) {
	if IsPart() {
		return
	}
	pgtest.Main(m)
}

// plane is a real control plane in this process, and its first admin's API.
type plane struct {
	*API
	url  string
	ca   []byte
	join string // token
	log  *lines
}

// lines is what a server said, for all to read.
type lines struct {
	mu   sync.Mutex // guards text
	text strings.Builder
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
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

func newPlane(t *testing.T) *plane {
	t.Helper()
	https := freeAddress(t)
	dir := t.TempDir()
	said := new(lines)
	log := slog.New(slog.NewTextHandler(io.MultiWriter(t.Output(), said), &slog.HandlerOptions{Level: slog.LevelWarn}))
	s, err := server.New(t.Context(), server.Config{
		DataDir: dir, DatabaseURL: pgtest.URL(t), Listen: https, SSHListen: "127.0.0.1:0", URL: "https://" + https, Version: "test",
	}, log)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	p := &plane{url: "https://" + https, log: said}
	p.ca = authority(t, https)
	p.login(t, dir)
	return p
}

// authority waits for the server and returns who signed its certificate.
func authority(t *testing.T, address string) []byte {
	t.Helper()
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		c, err := tls.Dial("tcp", address, &tls.Config{InsecureSkipVerify: true}) // it is this test's own
		if err == nil {
			defer c.Close()
			chain := c.ConnectionState().PeerCertificates
			return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: chain[len(chain)-1].Raw})
		}
	}
	t.Fatal("the server does not listen")
	return nil
}

func (p *plane) login(t *testing.T, dir string) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(dir, "first-login.json"))
	if err != nil {
		t.Fatal(err)
	}
	var first struct{ Email, Password string }
	if err := json.Unmarshal(text, &first); err != nil {
		t.Fatal(err)
	}
	if p.API, err = NewAPI(p.url, "", p.ca); err != nil {
		t.Fatal(err)
	}
	if err := p.Login(t.Context(), first.Email, first.Password); err != nil {
		t.Fatal(err)
	}
	if p.join, err = p.JoinToken(t.Context(), 100); err != nil {
		t.Fatal(err)
	}
}

// patience is more than the 45 s in which a host notices a server that hangs: a
// heartbeat, the wait for its acknowledgement, and the one for the broker's.
const patience = 75 * time.Second

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !ok(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within %s: %s", patience, what)
		}
	}
}

// TestFleet: hosts join, run what people ask for, and come back after a cut
// with the containers that they had.
func TestFleet(t *testing.T) {
	t.Parallel()
	p := newPlane(t)
	f := NewFleet(FleetConfig{
		Server: p.url, CA: p.ca, Token: p.join, Dir: t.TempDir(), Agents: 12, Versions: []string{"0.1.0", "0.2.0"},
	})
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- f.Run(ctx) }()
	defer func() {
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}()
	eventually(t, "all are connected", func() bool { return f.Progress().Connected == 12 })
	const envs = 24
	for i := range envs {
		spec := map[string]any{"name": fmt.Sprintf("box-%d", i), "resources": map[string]any{"gpus": 4}}
		if err := p.Call(ctx, http.MethodPost, "workspaces/default/environments", spec, nil); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "all environments run", func() bool { return f.Progress().Running == envs })
	checkGPUs(t, f)
	before := pids(f)
	for _, a := range f.Agents() {
		a.Wire().Cut()
	}
	eventually(t, "all have noticed", func() bool { return f.Progress().Connected < 12 })
	eventually(t, "all are back and settled", func() bool { now := f.Progress(); return now.Connected == 12 && now.Settled == 12 })
	for id, pid := range pids(f) {
		if before[id] != pid {
			t.Errorf("%s has pid %d after the cut, before %d", id, pid, before[id])
		}
	}
	var hosts struct {
		Items []struct{ Agent, Status string }
	}
	if err := p.Call(ctx, http.MethodGet, "hosts", nil, &hosts); err != nil {
		t.Fatal(err)
	}
	versions := map[string]int{}
	for _, h := range hosts.Items {
		versions[h.Agent]++
	}
	if versions["0.1.0"] != 6 || versions["0.2.0"] != 6 {
		t.Errorf("hosts are %+v", hosts.Items)
	}
}

// checkGPUs: no GPU is in two containers, and each container has what it asked.
func checkGPUs(t *testing.T, f *Fleet) {
	t.Helper()
	holder := map[string]string{}
	for _, a := range f.Agents() {
		for _, c := range a.Runtime.Containers() {
			if len(c.GPUs) != 4 {
				t.Errorf("%s has %d GPUs", c.ID, len(c.GPUs))
			}
			for _, gpu := range c.GPUs {
				if other := holder[gpu]; other != "" {
					t.Errorf("GPU %s is in %s and %s", gpu, other, c.ID)
				}
				holder[gpu] = c.ID
			}
		}
	}
}

func pids(f *Fleet) map[string]uint32 {
	all := map[string]uint32{}
	for _, a := range f.Agents() {
		for _, c := range a.Runtime.Containers() {
			all[c.ID] = c.Pid
		}
	}
	return all
}

// TestOneAgent: its container restarts after a crash; a line that is dead is
// noticed, and one that is well again used.
func TestOneAgent(t *testing.T) {
	t.Parallel()
	p := newPlane(t)
	a, err := New(Config{Server: p.url, CA: p.ca, Token: p.join, Dir: t.TempDir(), Name: "one"})
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	if err := a.Enroll(t.Context()); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- a.Run(ctx) }()
	defer func() { stop(); <-ended }()
	spec := map[string]any{"name": "box", "resources": map[string]any{"gpus": 1}}
	if err := p.Call(ctx, http.MethodPost, "workspaces/default/environments", spec, nil); err != nil {
		t.Fatal(err)
	}
	running := func() (c reconcile.Container, ok bool) {
		for _, c := range a.Runtime.Containers() {
			if c.State == reconcile.Running {
				return c, true
			}
		}
		return c, false
	}
	eventually(t, "it runs", func() bool { _, ok := running(); return ok })
	first, _ := running()
	a.Runtime.Crash(first.Workload, 1)
	eventually(t, "it runs again", func() bool { c, ok := running(); return ok && c.Restarts == 1 && c.Pid != first.Pid })
	var env struct{ Phase string }
	eventually(t, "the control plane knows", func() bool {
		err := p.Call(ctx, http.MethodGet, "workspaces/default/environments/box", nil, &env)
		return err == nil && env.Phase == protocol.PhaseRunning
	})
	a.Wire().Hang(true)
	eventually(t, "silence is noticed", func() bool { return a.Link().Phase == link.Connecting })
	a.Wire().Hang(false)
	eventually(t, "it is back", func() bool { return a.Link().Phase == link.Connected })
}
