package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gorilla/websocket"

	"github.com/remotegpu/remotegpu/e2e/fleet/sim"
)

// fleetSize is how many hosts there are.
func (b *bench) fleetSize() int {
	switch {
	case b.hosts > 0:
		return b.hosts
	case b.quick:
		return 500
	}
	return 10_000
}

// crowd is a fleet of simulated hosts around the system, beside its real one.
type crowd struct {
	b     *bench
	s     *system
	n     int
	api   *sim.API
	parts *sim.Parts
	cfg   sim.FleetConfig
	plain bool // nginx ends TLS

	// Before they came:
	quiet float64 // p99 of a key in a terminal, ms
	idle  float64 // CPU of server and PostgreSQL, % of a core

	calm float64 // the same with them, while nothing happens
}

// within bounds each step of the fleet's figures.
const within = 20 * time.Minute

// fleet measures a server with many hosts: what an idle one costs, how quick it
// all stays for people, and how the hosts come back after the server was killed.
func fleet(b *bench) error {
	s, err := b.system()
	if err != nil {
		return err
	}
	c, err := b.crowd(s, b.fleetSize())
	if err != nil {
		return err
	}
	defer c.leave()
	if _, err := s.remotegpu("env", "create", "shell", "--image", image); err != nil {
		return err
	}
	for _, step := range []struct {
		name string
		do   func() error
	}{
		{"before", c.before}, {"joining", c.weighed}, {"steady", c.steady}, {"load", c.load}, {"telemetry", c.telemetry},
		{"typing", c.typing}, {"change", c.change}, {"create", c.create}, {"list", c.list}, {"kill", c.kill},
	} {
		if err := b.profiled(step.name, step.do); err != nil {
			return err
		}
	}
	return nil
}

// proxied weighs an idle host where nginx ends TLS. A host has four
// connections there, and memory scales: a quarter of the fleet is enough.
func proxied(b *bench) error {
	b.sys.stop() // it listens at the same place
	b.sys = nil
	s, err := b.behindNginx()
	if err != nil {
		return err
	}
	defer s.stop()
	c, err := b.crowd(s, min(b.fleetSize(), 2500))
	if err != nil {
		return err
	}
	defer c.leave()
	c.plain = true
	ours, bare, err := c.weigh()
	if err == nil {
		const name = "memory of an idle host on the server, MQTT and a spare stream, TLS ended by nginx"
		b.bound(name, "KiB", ours, 90)
		b.against(name+", against bare mochi and WebSocket", "KiB", atMost(1.3), ours, bare)
	}
	return err
}

// crowd makes one that has no hosts yet, for leave to end.
func (b *bench) crowd(s *system, n int) (*crowd, error) {
	dir, err := os.MkdirTemp("/dev/shm", "rgbench") // a disk of the simulation's would be measured
	if err != nil {
		return nil, err
	}
	c := &crowd{b: b, s: s, n: n, cfg: sim.FleetConfig{Server: "https://" + serverAddr, Dir: dir, Step: time.Second}}
	if c.cfg.CA, err = os.ReadFile(filepath.Join(s.dir, "ca.pem")); err == nil {
		c.api, err = sim.NewAPI(c.cfg.Server, s.token, c.cfg.CA)
	}
	if err != nil {
		c.leave()
	}
	return c, err
}

func (c *crowd) leave() {
	if c.parts != nil {
		c.parts.Stop()
	}
	os.RemoveAll(c.cfg.Dir)
}

// bound is a figure whose baseline is what it may be.
func (b *bench) bound(name, unit string, value, most float64) {
	b.add(name, unit, atMost(1), 0, pairs{ours: []measured{{value}}, baseline: []measured{{most}}})
}

// against is a figure of one pair.
func (b *bench) against(name, unit string, aim aim, value, baseline float64) {
	b.add(name, unit, aim, 0, pairs{ours: []measured{{value}}, baseline: []measured{{baseline}}})
}

// keys is the p99 of a key's echo in a terminal on the real host, in ms.
func (c *crowd) keys() (float64, error) {
	t, err := c.s.open("shell", serverAddr, "cat >/dev/null")
	if err != nil {
		return 0, err
	}
	defer t.close()
	var p99 []float64
	for range c.b.seldom() {
		m, err := strokes(t.key)
		if err != nil {
			return 0, err
		}
		p99 = append(p99, m[1])
	}
	return median(p99), nil
}

// before looks at the system without the fleet.
func (c *crowd) before() (err error) {
	if c.quiet, err = c.keys(); err == nil {
		c.idle, err = c.idleCPU(10)
	}
	return err
}

func (c *crowd) typing() error {
	busy, err := c.keys()
	if err == nil {
		c.b.against(fmt.Sprintf("key to echo in a terminal beside %d hosts, p99, against without them", c.n), "ms", atMost(2), busy, c.quiet)
	}
	return err
}

// weighed lets the fleet in and makes a figure of its weight.
func (c *crowd) weighed() error {
	ours, bare, err := c.weigh()
	if err == nil {
		c.b.against("memory of an idle host on the server, MQTT and a spare stream by TLS, against bare mochi and WebSocket", "KiB", atMost(1.3), ours, bare)
	}
	return err
}

// join lets the fleet in.
func (c *crowd) join() error {
	token, err := c.api.JoinToken(context.Background(), c.n)
	if err != nil {
		return err
	}
	c.cfg.Token, c.cfg.Agents = token, c.n
	if c.parts, err = sim.Start(c.cfg); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), within)
	defer cancel()
	start := time.Now()
	if _, err := c.parts.Wait(ctx, func(p sim.Progress) bool { return p.Settled == c.n && p.Connected == c.n }); err != nil {
		return err
	}
	fmt.Fprintf(os.Stderr, "%d hosts have joined in %v\n", c.n, time.Since(start).Round(time.Second))
	time.Sleep(c.rest()) // all have their spare stream, and have said once that nothing is new
	return nil
}

// load is what the fleet adds to the CPU of server and PostgreSQL while nothing
// happens but heartbeats.
func (c *crowd) load() error {
	var err error
	if c.calm, err = c.idleCPU(int(c.rest().Seconds())); err == nil {
		name := fmt.Sprintf("CPU of server and PostgreSQL for %d idle hosts, against 15 %% of a core for 10,000", c.n)
		c.b.bound(name, "% of a core", c.calm-c.idle, 15*float64(c.n)/10_000)
	}
	return err
}

// rest is a little more than the time between two heartbeats, or half of that.
func (c *crowd) rest() time.Duration {
	if c.b.quick {
		return 16 * time.Second
	}
	return 32 * time.Second
}

// idleCPU is how much of a core server and PostgreSQL use, in percent.
func (c *crowd) idleCPU(seconds int) (float64, error) {
	before, err := c.serverCPU()
	if err != nil {
		return 0, err
	}
	time.Sleep(time.Duration(seconds) * time.Second)
	after, err := c.serverCPU()
	return 100 * (after - before) / float64(seconds), err
}

// serverCPU is what the server and its children have used, in seconds.
func (c *crowd) serverCPU() (sum float64, err error) {
	pids := []int{c.s.server.Process.Pid}
	for i := 0; i < len(pids); i++ {
		used, err := cpuOf(pids[i])
		if err != nil && i == 0 {
			return 0, err
		}
		sum += used // of one that has just ended: what it has used is lost
		text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pids[i], pids[i]))
		for _, child := range strings.Fields(string(text)) {
			if pid, err := strconv.Atoi(child); err == nil {
				pids = append(pids, pid)
			}
		}
	}
	return sum, nil
}

// list is the API's list of hosts, fifty requests at once.
func (c *crowd) list() error {
	first := time.Now()
	if err := c.api.Call(context.Background(), http.MethodGet, "hosts?limit=1", nil, nil); err != nil {
		return err
	}
	fmt.Fprintf(os.Stderr, "the first list that this server makes took %v\n", time.Since(first).Round(time.Millisecond))
	took, errs := make([]float64, 0, 2000), make([]error, 50)
	var mu sync.Mutex
	var all sync.WaitGroup
	for i := range errs {
		all.Go(func() {
			for n := range 40 {
				path := fmt.Sprintf("hosts?limit=100&status=online&after=sim-%05d", (i*197+n*31)%max(1, c.n-100))
				start := time.Now()
				if err := c.api.Call(context.Background(), http.MethodGet, path, nil, nil); err != nil {
					errs[i] = err
					return
				}
				mu.Lock()
				took = append(took, time.Since(start).Seconds()*1e3)
				mu.Unlock()
			}
		})
	}
	begin := time.Now()
	all.Wait()
	if err := errors.Join(errs...); err != nil {
		return err
	}
	fmt.Fprintf(os.Stderr, "%d lists took %v, half of them at most %.0f ms, the slowest %.0f\n", len(took), time.Since(begin).Round(time.Millisecond), median(took), slices.Max(took))
	c.b.bound(fmt.Sprintf("list 100 of %d hosts, 50 requests at once, p95", c.n), "ms", quantile(0.95, took), 50)
	return nil
}

// create makes an environment for every second host, and waits until they run.
func (c *crowd) create() error {
	n := min(c.n/2, 2000)
	errs := make([]error, n)
	slots := make(chan struct{}, 32)
	var all sync.WaitGroup
	var again atomic.Int32 // refused, since all choose the same host
	start := time.Now()
	for i := range n {
		slots <- struct{}{}
		all.Go(func() {
			defer func() { <-slots }()
			spec := map[string]any{"name": fmt.Sprintf("load-%d", i), "resources": map[string]any{"gpus": 1 + i%4}}
			for range 50 {
				errs[i] = c.api.Call(context.Background(), http.MethodPost, "workspaces/default/environments", spec, nil)
				if errs[i] == nil || !strings.Contains(errs[i].Error(), "fill up faster") {
					break
				}
				again.Add(1)
			}
		})
	}
	all.Wait()
	if err := errors.Join(errs...); err != nil {
		return err
	}
	took := time.Since(start).Seconds()
	c.b.against(fmt.Sprintf("environments created and placed among %d hosts", c.n), "per second", atLeast(1), float64(n)/took, 1500)
	ctx, cancel := context.WithTimeout(context.Background(), within)
	defer cancel()
	_, err := c.parts.Wait(ctx, func(p sim.Progress) bool { return p.Running >= n })
	fmt.Fprintf(os.Stderr, "%d environments run after %v; %d times a request had to be repeated\n", n, time.Since(start).Round(100*time.Millisecond), again.Load())
	return err
}

// change measures from the call of the API until a host's containers are as the
// new document says, against a message of a bare broker.
func (c *crowd) change() error {
	token, err := c.api.JoinToken(context.Background(), 1)
	if err != nil {
		return err
	}
	a, err := sim.New(sim.Config{Server: c.cfg.Server, CA: c.cfg.CA, Token: token, Dir: filepath.Join(c.cfg.Dir, "probe"), Name: "probe"})
	if err != nil {
		return err
	}
	defer a.Close()
	ctx, stop := context.WithTimeout(context.Background(), within)
	defer stop()
	if err := a.Enroll(ctx); err != nil {
		return err
	}
	ended := make(chan error, 1)
	go func() { ended <- a.Run(ctx) }()
	defer func() { stop(); <-ended }()
	spec := map[string]any{"name": "probe", "affinity": map[string]any{"host": "probe"}}
	if err := until("the probe takes an environment", func() error {
		return c.api.Call(ctx, http.MethodPost, "workspaces/default/environments", spec, nil)
	}); err != nil {
		return err
	}
	if err := until("it runs", func() error { return running(a, 1) }); err != nil {
		return err
	}
	var took []float64
	for i := range 30 * c.b.seldom() {
		verb, want := "stop", 0
		if i%2 == 1 {
			verb, want = "start", 1
		}
		start := time.Now()
		if err := c.api.Call(ctx, http.MethodPost, "workspaces/default/environments/probe/"+verb, nil, nil); err != nil {
			return err
		}
		for running(a, want) != nil && ctx.Err() == nil {
			time.Sleep(200 * time.Microsecond)
		}
		took = append(took, time.Since(start).Seconds()*1e3)
		time.Sleep(100 * time.Millisecond)
	}
	bare, err := c.message(len(took))
	if err != nil {
		return err
	}
	c.b.against(fmt.Sprintf("change of a document to applied with %d hosts, p50, against a message of a bare broker", c.n), "ms", atMost(3), median(took), median(bare))
	c.b.against(fmt.Sprintf("change of a document to applied with %d hosts, p99, against a message of a bare broker", c.n), "ms", atMost(3), quantile(0.99, took), quantile(0.99, bare))
	return nil
}

func running(a *sim.Agent, want int) error {
	if n := a.Runtime.Running(); n != want {
		return fmt.Errorf("%d containers run, want %d", n, want)
	}
	return nil
}

// message is how long a bare broker takes from publish to receive.
func (c *crowd) message(n int) (took []float64, err error) {
	broker, err := c.b.start(settings{Role: "bare broker"})
	if err != nil {
		return nil, err
	}
	defer broker.stop()
	cfg, err := settings{Dir: c.b.dir}.tlsConfig()
	if err != nil {
		return nil, err
	}
	client, err := dialBare(&websocket.Dialer{TLSClientConfig: &tls.Config{RootCAs: cfg.RootCAs, MinVersion: tls.VersionTLS13}, Subprotocols: []string{"mqtt"}}, broker.addrs[0], host)
	if err != nil {
		return nil, err
	}
	defer client.ws.Close()
	for range n {
		ms, err := client.echo()
		if err != nil {
			return nil, err
		}
		took = append(took, ms)
		time.Sleep(10 * time.Millisecond)
	}
	return took, nil
}
