package e2e

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/remotegpu/remotegpu/e2e/chaos"
)

// Kinds of parts.
const (
	partHost    = "host"
	partControl = "control plane" // the database, and the server if it is alone
	partReplica = "server"
	partBroker  = "broker"
	partClient  = "client"
	partSim     = "simulated host"
)

// act is half of a fault.
type act = func(context.Context, chaos.Hit) error

// faults is all that is broken.
func (y *yard) faults() []chaos.Fault {
	const s = time.Second
	agent, daemon := y.program("remotegpu-agent run"), y.program("containerd --")
	server := func(h chaos.Hit) []int { return []int{y.servers[h.Part].cmd.Process.Pid} }
	partServer := partControl // a lone server and its database are one part
	if len(y.servers) > 1 {
		partServer = partReplica
	}
	return []chaos.Fault{
		{Name: "agent killed", On: partHost, Do: kill(agent)},
		frozen("agent stands still", partHost, 12*s, agent),
		{Name: "containerd killed", On: partHost, Do: kill(daemon)},
		frozen("containerd stands still", partHost, 12*s, daemon),
		{Name: "agent's files damaged", On: partHost, Do: y.damage},
		{Name: "clock jumps", On: partHost, Least: 3 * s, Most: 12 * s, Do: y.jump, Undo: y.onHost("rm -f " + skewFile)},
		{Name: "disk full", On: partHost, Least: 3 * s, Most: 10 * s, Do: y.onHost(fillDisk), Undo: y.onHost(emptyDisk)},

		{Name: "host loses power", On: partHost, From: y.spared(), Most: 8 * s, Do: y.powerOff, Undo: y.powerOn},
		{Name: "DNS gone", On: partHost, Least: 2 * s, Most: 12 * s, Do: y.loseNames, Undo: y.findNames},
		{Name: "connections reset", On: partHost, Do: y.resetSome},
		{Name: "connections half open", On: partHost, Do: y.halve},
		y.weather("link cut", func(uint64) chaos.Weather { return chaos.Weather{Refuse: true} }),
		y.weather("link silent", func(uint64) chaos.Weather { return chaos.Weather{Silent: true} }),
		y.weather("link slow", func(dice uint64) chaos.Weather {
			return chaos.Weather{Delay: time.Duration(50+dice%450) * time.Millisecond}
		}),
		y.weather("link reorders", func(dice uint64) chaos.Weather {
			return chaos.Weather{Jitter: time.Duration(100+dice%900) * time.Millisecond}
		}),
		y.weather("link narrow", func(dice uint64) chaos.Weather { return chaos.Weather{Rate: 8<<10 + int(dice%(56<<10))} }),

		{Name: "server killed", On: partServer, Most: 5 * s, Do: y.endServer(syscall.SIGKILL), Undo: y.serverBack},
		{Name: "server restarted", On: partServer, Do: y.endServer(syscall.SIGTERM), Undo: y.serverBack},
		frozen("server stands still", partServer, 10*s, server),
		{Name: "server's disk full", On: partControl, Least: 3 * s, Most: 8 * s, Do: y.fillServer, Undo: y.emptyServer},
		{Name: "database killed", On: partControl, Do: kill(y.postmaster)},
		frozen("database stands still", partControl, 8*s, y.processes),

		{Name: "broker killed", On: partBroker, Most: 8 * s, Do: kill(y.broker), Undo: y.brokerBack},
		frozen("broker stands still", partBroker, 12*s, y.broker),

		{Name: "client's connections reset", On: partClient, Do: y.line("client", resetLinks)},
		{Name: "client silent", On: partClient, Least: s, Most: 8 * s,
			Do:   y.line("client", "nft add table inet hush && nft 'add chain inet hush in { type filter hook input priority 0; policy drop; }' && nft 'add chain inet hush out { type filter hook output priority 0; policy drop; }'"),
			Undo: y.line("client", "nft delete table inet hush")},

		{Name: "simulated host cut", On: partSim, Do: y.does("cut")},
		{Name: "simulated host's line dead", On: partSim, Least: 2 * s, Most: 20 * s, Do: y.does("hang"), Undo: y.does("well")},
		{Name: "simulated host's runtime down", On: partSim, Least: s, Most: 15 * s, Do: y.does("down"), Undo: y.does("up")},
	}
}

// pids finds the processes that a fault hits. One that is just being started
// again is not there, and needs no more.
type pids = func(chaos.Hit) []int

func (y *yard) program(words string) pids {
	return func(h chaos.Hit) []int { return y.boxes[h.Part].running([]string{words}) }
}

func kill(whom pids) act {
	return func(_ context.Context, h chaos.Hit) error {
		for _, pid := range whom(h) {
			_ = syscall.Kill(pid, syscall.SIGKILL) // it may have ended by itself
		}
		return nil
	}
}

// frozen is the fault that processes stand still for up to most.
func frozen(name, on string, most time.Duration, whom pids) chaos.Fault {
	var mu sync.Mutex
	still := map[int][]int{} // by part
	signal := func(sig syscall.Signal, all []int) error {
		for _, pid := range all {
			_ = syscall.Kill(pid, sig)
		}
		return nil
	}
	return chaos.Fault{Name: name, On: on, Least: 2 * time.Second, Most: most,
		Do: func(_ context.Context, h chaos.Hit) error {
			mu.Lock()
			defer mu.Unlock()
			still[h.Part] = whom(h)
			return signal(syscall.SIGSTOP, still[h.Part])
		},
		Undo: func(_ context.Context, h chaos.Hit) error {
			mu.Lock()
			defer mu.Unlock()
			return signal(syscall.SIGCONT, still[h.Part])
		},
	}
}

// weather is the fault that a host's line to the server is bad.
func (y *yard) weather(name string, is func(dice uint64) chaos.Weather) chaos.Fault {
	return chaos.Fault{Name: name, On: partHost, Least: time.Second, Most: 15 * time.Second,
		Do: func(_ context.Context, h chaos.Hit) error {
			w, line := is(h.Dice), y.boxes[h.Part].line
			line.Set(w)
			if w.Refuse {
				line.Cut(func(int) bool { return true })
			}
			return nil
		},
		Undo: func(_ context.Context, h chaos.Hit) error {
			y.boxes[h.Part].line.Set(chaos.Weather{})
			return nil
		},
	}
}

// resetSome resets about half of a host's connections.
func (y *yard) resetSome(_ context.Context, h chaos.Hit) error {
	rnd := rand.New(rand.NewPCG(h.Dice, 0))
	y.boxes[h.Part].line.Cut(func(int) bool { return rnd.IntN(2) == 0 })
	return nil
}

func (y *yard) halve(_ context.Context, h chaos.Hit) error {
	y.boxes[h.Part].line.Halve()
	return nil
}

// loseNames makes DNS bad, and resets what is connected: nobody would notice else.
func (y *yard) loseNames(_ context.Context, h chaos.Hit) error {
	b := y.boxes[h.Part]
	b.dns.Do(chaos.Worse(h.Dice))
	b.line.Cut(func(int) bool { return true })
	return nil
}

func (y *yard) findNames(_ context.Context, h chaos.Hit) error {
	y.boxes[h.Part].dns.Do(chaos.Answers)
	return nil
}

const (
	diskSize  = "1100m"
	fillDisk  = "mount -o remount,size=$(du -sk /opt/data | cut -f1)k /opt/data; (cat /dev/zero >/opt/data/filler || :) 2>/dev/null"
	emptyDisk = "mount -o remount,size=" + diskSize + " /opt/data && rm -f /opt/data/filler"
)

func (y *yard) fillServer(ctx context.Context, h chaos.Hit) error {
	return y.line("srv", strings.ReplaceAll(fillDisk, "/opt/data", y.disk))(ctx, h)
}

func (y *yard) emptyServer(ctx context.Context, h chaos.Hit) error {
	return y.line("srv", strings.ReplaceAll(emptyDisk, "/opt/data", y.disk))(ctx, h)
}

// powerOff ends all that runs on a host.
func (y *yard) powerOff(_ context.Context, h chaos.Hit) error {
	b := y.boxes[h.Part]
	b.mu.Lock()
	defer b.mu.Unlock()
	b.boots++
	if b.ctr != nil {
		b.ctr.Close()
		b.ctr = nil
	}
	b.unplug()
	return nil
}

func (y *yard) powerOn(ctx context.Context, h chaos.Hit) error {
	b := y.boxes[h.Part]
	b.mu.Lock()
	b.boot()
	b.mu.Unlock()
	return y.onHost(atBoot)(ctx, h)
}

func (y *yard) onHost(line string) act {
	return func(_ context.Context, h chaos.Hit) error {
		if out, err := y.boxes[h.Part].sh(line); err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	}
}

// jump puts a host's clock up to an hour ahead or back.
func (y *yard) jump(ctx context.Context, h chaos.Hit) error {
	return y.onHost(fmt.Sprintf("echo %d >%s", int64(h.Dice%7200)-3600, skewFile))(ctx, h)
}

func (y *yard) line(role, line string) act {
	return func(context.Context, chaos.Hit) error {
		if out, err := y.w.try(role, line); err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	}
}

// damage makes a mess of what the agent keeps, by chance of one file or both,
// cut short or overwritten, and ends the agent: it has to start from that.
func (y *yard) damage(ctx context.Context, h chaos.Hit) error {
	rnd := rand.New(rand.NewPCG(h.Dice, 0))
	b := y.boxes[h.Part]
	names := [][]string{{"state.json"}, {"desired.cose"}, {"state.json", "desired.cose"}}[rnd.IntN(3)]
	for _, name := range names {
		file := filepath.Join(b.path(b.dir), name)
		content, err := os.ReadFile(file)
		if errors.Is(err, os.ErrNotExist) {
			continue
		} else if err != nil {
			return err
		}
		content = content[:rnd.IntN(len(content)+1)]
		if rnd.IntN(2) == 0 {
			for i := range content {
				content[i] = byte(rnd.Uint32())
			}
		}
		if err := os.WriteFile(file, content, 0o600); err != nil {
			return err
		}
	}
	return kill(y.program("remotegpu-agent run"))(ctx, h)
}
