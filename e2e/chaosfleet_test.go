package e2e

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/remotegpu/remotegpu/e2e/chaos"
	"github.com/remotegpu/remotegpu/e2e/fleet/sim"
	"github.com/remotegpu/remotegpu/edge-agent/reconcile"
)

// fleetVar makes the test program a fleet of simulated hosts: it has to be a
// process in the server's network. It holds a sim.FleetConfig as JSON.
const fleetVar = "RG_CHAOS_FLEET"

func TestMain(m *testing.M) {
	if text, ok := os.LookupEnv(fleetVar); ok {
		if err := beFleet(text); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// order is what a fleet is told: one JSON line each. It answers each by one.
type order struct {
	Do   string `json:"do"`   // look, cut, hang, well, down or up
	Host int    `json:"host"` // in the order of enrolment
}

// beFleet is a fleet until standard input ends.
func beFleet(text string) error {
	var cfg sim.FleetConfig
	if err := json.Unmarshal([]byte(text), &cfg); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	f := sim.NewFleet(cfg)
	var running sync.WaitGroup
	running.Go(func() { _ = f.Run(ctx) }) // hosts that do not come are missed by who looks
	orders, answers := json.NewDecoder(os.Stdin), json.NewEncoder(os.Stdout)
	for {
		var o order
		if orders.Decode(&o) != nil {
			cancel()
			running.Wait()
			return nil
		}
		agents := f.Agents()
		var answer any
		switch {
		case o.Do == "look":
			answer = lookAt(agents)
		case o.Host < len(agents):
			obey(agents[o.Host], o.Do)
		}
		if err := answers.Encode(answer); err != nil {
			cancel()
		}
	}
}

func obey(a *sim.Agent, do string) {
	switch do {
	case "cut":
		a.Wire().Cut()
	case "hang", "well":
		a.Wire().Hang(do == "hang")
	case "down", "up":
		a.Runtime.Down(do == "down")
	}
}

// lookAt sees simulated hosts, by id.
func lookAt(agents []*sim.Agent) map[string]chaos.Host {
	seen := make(map[string]chaos.Host, len(agents))
	for _, a := range agents {
		var h chaos.Host
		_, h.Disk = a.Applied()
		for _, c := range a.Runtime.Containers() {
			if c.State == reconcile.Running {
				h.Containers = append(h.Containers, chaos.Container{ID: c.ID, Workload: c.Workload, Revision: c.Revision, GPUs: c.GPUs,
					Life: fmt.Sprint(c.Pid, " ", c.StartedAt.UnixNano())})
			}
		}
		seen[a.Host()] = h
	}
	return seen
}

// fleet is simulated hosts in a process of their own.
type fleet struct {
	agents int

	mu  sync.Mutex // guards what follows: one order at a time
	in  io.Writer
	out *bufio.Reader
}

// newFleet starts simulated hosts beside the server and waits for them.
func (y *yard) newFleet(agents int) *fleet {
	y.t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "rgchaos") // or fsync is what is tested
	if err != nil {
		y.t.Fatal(err)
	}
	y.t.Cleanup(func() { os.RemoveAll(dir) })
	join := y.w.in("client", fmt.Sprint("remotegpu host join -o json --uses ", agents))
	cfg := sim.FleetConfig{Server: y.p.url, CA: []byte(y.w.in("srv", "curl -fsSk "+y.p.url+"/ca.pem")), Token: regexp.MustCompile(`rgj_[0-9A-Z]+`).FindString(join),
		Dir: dir, Agents: agents, Step: 300 * time.Millisecond}
	text, err := json.Marshal(cfg)
	if err != nil {
		y.t.Fatal(err)
	}
	cmd := exec.Command("nsenter", "--net=/run/netns/"+y.w.ns("srv"), "/proc/self/exe")
	if cmd.Args[2], err = os.Executable(); err != nil {
		y.t.Fatal(err)
	}
	cmd.Env = append(os.Environ(), fleetVar+"="+string(text))
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	log, err := os.Create(filepath.Join(y.w.dir, "fleet.log"))
	if err != nil {
		y.t.Fatal(err)
	}
	defer log.Close()
	cmd.Stderr = log
	in, err := cmd.StdinPipe()
	if err != nil {
		y.t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		y.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		y.t.Fatal(err)
	}
	y.t.Cleanup(func() { in.Close(); y.w.end(cmd, syscall.SIGCONT) })
	f := &fleet{agents: agents, in: in, out: bufio.NewReader(out)}
	eventually(y.t, time.Minute+time.Duration(agents)*100*time.Millisecond, "the simulated hosts have joined", func() (string, bool) {
		seen, err := f.look()
		return fmt.Sprint(len(seen), " hosts ", err), err == nil && len(seen) >= agents
	})
	return f
}

// tell gives an order and returns the answer.
func (f *fleet) tell(o order) ([]byte, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := json.NewEncoder(f.in).Encode(o); err != nil {
		return nil, err
	}
	return f.out.ReadBytes('\n')
}

// look sees all of its hosts, by id.
func (f *fleet) look() (seen map[string]chaos.Host, err error) {
	if f == nil {
		return nil, nil
	}
	answer, err := f.tell(order{Do: "look"})
	return seen, errors.Join(err, json.Unmarshal(answer, &seen))
}

// does is half of a fault of a simulated host.
func (y *yard) does(what string) act {
	return func(_ context.Context, h chaos.Hit) error {
		answer, err := y.fleet.tell(order{Do: what, Host: h.Part})
		if text := strings.TrimSpace(string(answer)); err == nil && text != "null" {
			err = fmt.Errorf("the fleet says %q", text)
		}
		return err
	}
}
