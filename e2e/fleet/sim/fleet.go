package sim

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/remotegpu/remotegpu/edge-agent/link"
)

// FleetConfig says what a fleet is. Server, Dir and Agents are required, Token
// unless all were enrolled from the same Dir before.
type FleetConfig struct {
	Server    string
	CA        []byte // PEM; empty: the system's roots
	Token     string // a join token with as many uses
	Dir       string // their data folders are made in it; on a tmpfs, or fsync is what is measured
	First     int    // number of the first host
	Agents    int
	Versions  []string // of agents, in turns; empty: "sim"
	Slow      float64  // share of hosts on bad lines
	Dead      float64  // share of hosts whose lines die some time in the first minute
	Together  bool     // all from one address, as behind one NAT; else each has its own, 127.x.y.z
	Step      time.Duration
	Telemetry time.Duration // between two batches of samples; 0: none are said
	Log       *slog.Logger
}

const enrolling = 16 // hosts that enrol at a time

// badLine is that of slow hosts: a far away place on a mobile network.
var badLine = Line{Delay: 300 * time.Millisecond, Rate: 32 << 10}

// Fleet is many hosts in this process.
type Fleet struct {
	cfg      FleetConfig
	enrolled atomic.Int64

	mu        sync.Mutex // guards what follows
	agents    []*Agent
	dead      map[*Agent]bool
	telemetry time.Duration
	last      error
}

// NewFleet returns a fleet that Run makes.
func NewFleet(cfg FleetConfig) *Fleet {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if len(cfg.Versions) == 0 {
		cfg.Versions = []string{"sim"}
	}
	return &Fleet{cfg: cfg, dead: map[*Agent]bool{}, telemetry: cfg.Telemetry}
}

// Run enrols the hosts, each of which runs from then on, until ctx ends.
func (f *Fleet) Run(ctx context.Context) error {
	var running sync.WaitGroup
	defer running.Wait()
	joining, inner := errgroup.WithContext(ctx)
	joining.SetLimit(enrolling)
	for i := range f.cfg.Agents {
		joining.Go(func() error {
			a, err := f.join(inner, f.cfg.First+i)
			if err != nil || a == nil {
				return err
			}
			running.Go(func() {
				defer a.Close()
				if err := a.Run(ctx); err != nil {
					f.fail(err)
				}
			})
			return nil
		})
	}
	if err := joining.Wait(); err != nil && ctx.Err() == nil {
		f.fail(err)
		return err
	}
	<-ctx.Done()
	return nil
}

// join makes host number n and enrols it.
func (f *Fleet) join(ctx context.Context, n int) (*Agent, error) {
	cfg := Config{
		Server: f.cfg.Server, CA: f.cfg.CA, Token: f.cfg.Token, Dir: filepath.Join(f.cfg.Dir, fmt.Sprintf("%05d", n)),
		Version: f.cfg.Versions[n%len(f.cfg.Versions)], Step: f.cfg.Step, Log: f.cfg.Log,
	}
	if rand.Float64() < f.cfg.Slow {
		cfg.Line = badLine
	}
	if !f.cfg.Together {
		cfg.Line.Source = netip.AddrFrom4([4]byte{127, byte(1 + n>>16), byte(n >> 8), byte(n)})
	}
	a, err := f.enroll(ctx, cfg)
	if err != nil || a == nil {
		return nil, err
	}
	f.enrolled.Add(1)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.agents = append(f.agents, a)
	a.Telemetry(f.telemetry)
	if rand.Float64() < f.cfg.Dead {
		f.dead[a] = true
		time.AfterFunc(rand.N(time.Minute), func() { a.Wire().Hang(true) })
	}
	return a, nil
}

// enroll tries until the host is one of the server's; nil: ctx has ended.
func (f *Fleet) enroll(ctx context.Context, cfg Config) (*Agent, error) {
	for try := 1; ; try++ {
		a, err := New(cfg)
		if err == nil {
			if err = a.Enroll(ctx); err == nil {
				return a, nil
			}
			a.Close()
		}
		f.fail(err)
		if try == 20 {
			return nil, fmt.Errorf("enrol host %s: %w", cfg.Dir, err)
		}
		select {
		case <-ctx.Done():
			return nil, nil
		case <-time.After(rand.N(time.Second << min(try, 4))):
		}
	}
}

func (f *Fleet) fail(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.last = err
}

// Telemetry has all hosts say their samples so often, or no more.
func (f *Fleet) Telemetry(every time.Duration) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.telemetry = every
	for _, a := range f.agents {
		a.Telemetry(every)
	}
}

// Agents returns the hosts that have enrolled so far.
func (f *Fleet) Agents() []*Agent {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([]*Agent(nil), f.agents...)
}

// Progress is how a fleet is.
type Progress struct {
	Agents    int           `json:"agents"`    // that there shall be
	Enrolled  int           `json:"enrolled"`  //
	Connected int           `json:"connected"` // to MQTT
	Refused   int           `json:"refused"`   // told that they may not come in
	Dead      int           `json:"dead"`      // on lines that shall be
	Settled   int           `json:"settled"`   // whose containers agree with their document
	Running   int           `json:"running"`   // containers
	Batches   int           `json:"batches"`   // of telemetry that the broker has acknowledged
	Lost      int           `json:"lost"`      // and that it has not
	Since     map[int64]int `json:"since"`     // Unix second → hosts whose connection is from then
	Last      string        `json:"last"`      // what went wrong last
}

// Progress returns how the fleet is now.
func (f *Fleet) Progress() Progress {
	f.mu.Lock()
	defer f.mu.Unlock()
	p := Progress{Agents: f.cfg.Agents, Enrolled: int(f.enrolled.Load()), Dead: len(f.dead), Since: map[int64]int{}}
	if f.last != nil {
		p.Last = f.last.Error()
	}
	for _, a := range f.agents {
		p.Batches += int(a.telemetry.said.Load())
		p.Lost += int(a.telemetry.lost.Load())
		if f.dead[a] {
			continue
		}
		switch s := a.Link(); s.Phase {
		case link.Connected:
			p.Connected++
			p.Since[s.Since.Unix()]++
		case link.Refused:
			p.Refused++
			p.Last = s.Message
		default:
			if s.Message != "" {
				p.Last = s.Message
			}
		}
		if applied, observed := a.Applied(); applied == observed && observed > 0 {
			p.Settled++
		}
		p.Running += a.Runtime.Running()
	}
	return p
}

// add sums fleets up.
func (p *Progress) add(o Progress) {
	p.Agents += o.Agents
	p.Enrolled += o.Enrolled
	p.Connected += o.Connected
	p.Refused += o.Refused
	p.Dead += o.Dead
	p.Settled += o.Settled
	p.Running += o.Running
	p.Batches += o.Batches
	p.Lost += o.Lost
	for second, n := range o.Since {
		p.Since[second] += n
	}
	if o.Last != "" {
		p.Last = o.Last
	}
}
