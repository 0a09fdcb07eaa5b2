package sim

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"runtime/pprof"
	"sync"
	"syscall"
	"time"
)

// partVar tells a process that it is a part of a fleet: its FleetConfig as JSON.
const partVar = "RG_FLEET_PART"

// PartSize is how many hosts one process holds: each has a file for its data
// folder, one for MQTT and one for a spare stream.
const PartSize = 2500

// Parts is a fleet in processes of its own.
type Parts struct {
	cfg  FleetConfig
	cmds []*exec.Cmd
	ins  []io.WriteCloser // each a line with the telemetry's period, its end stops

	mu   sync.Mutex // guards last
	last []Progress
}

// Start starts a fleet in as many processes as it needs: this program again,
// whose main func must begin with IsPart.
func Start(cfg FleetConfig) (p *Parts, err error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	p = &Parts{cfg: cfg}
	defer func() {
		if err != nil {
			p.Stop()
		}
	}()
	for first := 0; first < cfg.Agents; first += PartSize {
		part := cfg
		part.First, part.Agents, part.Log = cfg.First+first, min(PartSize, cfg.Agents-first), nil
		if err := p.start(self, part); err != nil {
			return nil, err
		}
	}
	return p, nil
}

func (p *Parts) start(self string, cfg FleetConfig) error {
	text, err := json.Marshal(cfg)
	if err != nil {
		return err
	}
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), partVar+"="+string(text))
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start a part of the fleet: %w", err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	n := len(p.cmds)
	p.cmds, p.ins, p.last = append(p.cmds, cmd), append(p.ins, stdin), append(p.last, Progress{Agents: cfg.Agents})
	go p.follow(n, stdout)
	return nil
}

func (p *Parts) follow(n int, from io.Reader) {
	for lines := json.NewDecoder(from); ; {
		var now Progress
		if lines.Decode(&now) != nil {
			return // it has ended
		}
		p.mu.Lock()
		p.last[n] = now
		p.mu.Unlock()
	}
}

// Progress returns how the fleet is, at most a second old.
func (p *Parts) Progress() Progress {
	p.mu.Lock()
	defer p.mu.Unlock()
	sum := Progress{Since: map[int64]int{}}
	for _, part := range p.last {
		sum.add(part)
	}
	return sum
}

// Wait waits until the fleet is as ok says, and gives up when ctx ends.
func (p *Parts) Wait(ctx context.Context, ok func(Progress) bool) (Progress, error) {
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		now := p.Progress()
		if ok(now) {
			return now, nil
		}
		select {
		case <-ctx.Done():
			return now, fmt.Errorf("%d of %d hosts enrolled, %d connected, %d settled; %s: %w", now.Enrolled, now.Agents, now.Connected, now.Settled, now.Last, ctx.Err())
		case <-tick.C:
		}
	}
}

// Telemetry has all hosts say their samples so often, or no more if every is 0.
func (p *Parts) Telemetry(every time.Duration) error {
	for _, in := range p.ins {
		if err := json.NewEncoder(in).Encode(every); err != nil {
			return fmt.Errorf("tell a part of the fleet: %w", err)
		}
	}
	return nil
}

// Stop ends the fleet: its hosts say goodbye.
func (p *Parts) Stop() {
	for _, in := range p.ins {
		in.Close()
	}
	for _, cmd := range p.cmds {
		late := time.AfterFunc(20*time.Second, func() { _ = cmd.Process.Kill() })
		_ = cmd.Wait() // how it ended is of no matter
		late.Stop()
	}
}

// IsPart reports whether this process is a part of a fleet, after having been
// one: main returns then.
func IsPart() bool {
	text, ok := os.LookupEnv(partVar)
	if !ok {
		return false
	}
	if err := part([]byte(text)); err != nil {
		fmt.Fprintln(os.Stderr, "part of the fleet:", err)
		os.Exit(1)
	}
	return true
}

// part runs a fleet until standard input ends, and says each second how it is.
func part(text []byte) error {
	var cfg FleetConfig
	if err := json.Unmarshal(text, &cfg); err != nil {
		return err
	}
	debug.SetGCPercent(400) // its collections take cores from what is measured
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	if dir := os.Getenv("RG_FLEET_PROFILE"); dir != "" {
		stop, err := profile(filepath.Join(dir, fmt.Sprintf("fleet.%d.pprof", cfg.First)))
		if err != nil {
			return err
		}
		defer stop()
	}
	f := NewFleet(cfg)
	go func() {
		defer cancel()
		for in := json.NewDecoder(os.Stdin); ; {
			var every time.Duration
			if in.Decode(&every) != nil {
				return
			}
			f.Telemetry(every)
		}
	}()
	done := make(chan error, 1)
	go func() { done <- f.Run(ctx) }()
	out := bufio.NewWriter(os.Stdout)
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case err := <-done:
			return err
		case <-tick.C:
			if json.NewEncoder(out).Encode(f.Progress()) != nil || out.Flush() != nil {
				cancel() // nobody listens
			}
		}
	}
}

func profile(file string) (stop func(), err error) {
	f, err := os.Create(file)
	if err != nil {
		return nil, err
	}
	return func() { pprof.StopCPUProfile(); f.Close() }, pprof.StartCPUProfile(f)
}
