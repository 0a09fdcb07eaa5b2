package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"slices"
	"time"

	"github.com/remotegpu/remotegpu/e2e/fleet/sim"
)

// steady looks at the fleet for as long as was asked for, while nobody asks it for
// anything: no host may leave, nothing may grow, and a person's keys stay quick.
func (c *crowd) steady() error {
	if c.b.steady == 0 {
		return nil
	}
	start, least := time.Now(), c.n
	objects, stacks, err := memory(debugAddr)
	if err != nil {
		return err
	}
	running, err := goroutines(debugAddr)
	if err != nil {
		return err
	}
	cpu, err := c.serverCPU()
	if err != nil {
		return err
	}
	var keys []float64
	for time.Since(start) < c.b.steady {
		p99, err := c.keys()
		if err != nil {
			return err
		}
		keys, least = append(keys, p99), min(least, c.parts.Progress().Connected)
		time.Sleep(10 * time.Second)
	}
	took := time.Since(start)
	used, err := c.serverCPU()
	if err != nil {
		return err
	}
	objectsNow, stacksNow, err := memory(debugAddr)
	if err != nil {
		return err
	}
	runningNow, err := goroutines(debugAddr)
	if err != nil {
		return err
	}
	left := back(c.parts.Progress(), start.Unix())
	fmt.Fprintf(os.Stderr, "%v steady: at least %d of %d hosts connected, %d came anew; server and PostgreSQL used %.1f %% of a core; memory %.0f -> %.0f MiB, goroutines %d -> %d\n",
		took.Round(time.Second), least, c.n, left, 100*(used-cpu)/took.Seconds(), (objects+stacks)/(1<<20), (objectsNow+stacksNow)/(1<<20), running, runningNow)
	minutes := took.Round(time.Minute).Minutes()
	c.b.against(fmt.Sprintf("hosts that stayed connected for %.0f steady minutes", minutes), "", atLeast(1), float64(least-left), float64(c.n))
	c.b.against(fmt.Sprintf("memory of the server after %.0f steady minutes with %d hosts, against before", minutes, c.n), "MiB", atMost(1.05), (objectsNow+stacksNow)/(1<<20), (objects+stacks)/(1<<20))
	name := fmt.Sprintf("key to echo in a terminal in %.0f steady minutes, %%s p99 of %d, against without hosts", minutes, len(keys))
	c.b.against(fmt.Sprintf(name, "median"), "ms", atMost(2), median(keys), c.quiet)
	c.b.against(fmt.Sprintf(name, "worst"), "ms", atMost(2), slices.Max(keys), c.quiet)
	return nil
}

// telemetry has all hosts say samples of eight GPUs, one a second: ten at once, and
// each by itself, which is more than a big fleet and its server can do on one machine.
func (c *crowd) telemetry() error {
	err := c.samples(10*time.Second, 20)
	if err == nil && c.n <= sim.PartSize {
		err = c.samples(time.Second, 150)
	}
	return errors.Join(err, c.parts.Telemetry(0))
}

// samples measures what batches add to the CPU of the server while nobody but the
// broker takes them; most is for 10,000 hosts, in percent of a core.
func (c *crowd) samples(every time.Duration, most float64) error {
	if err := c.parts.Telemetry(every); err != nil {
		return err
	}
	time.Sleep(every + 2*time.Second) // all have begun, and said the first, shorter batch
	objects, stacks, err := memory(debugAddr)
	if err != nil {
		return err
	}
	start, before := time.Now(), c.parts.Progress()
	busy, err := c.idleCPU(int(c.rest().Seconds()))
	if err != nil {
		return err
	}
	took, now := time.Since(start).Seconds(), c.parts.Progress()
	objectsNow, stacksNow, err := memory(debugAddr)
	if err != nil {
		return err
	}
	rate := float64(now.Batches-before.Batches) / took
	fmt.Fprintf(os.Stderr, "telemetry every %v: %.0f batches a second, %d lost; server and PostgreSQL used %.1f %% of a core, %.1f without; memory %.1f -> %.1f MiB\n",
		every, rate, now.Lost-before.Lost, busy, c.calm, (objects+stacks)/(1<<20), (objectsNow+stacksNow)/(1<<20))
	name := fmt.Sprintf("%d hosts that say a sample of 8 GPUs each second, every %v: ", c.n, every)
	cpu := pairs{ours: []measured{{busy}}, baseline: []measured{{c.calm}}}
	c.b.add(name+"CPU of server and PostgreSQL, against silence", "% of a core", atMostMore(max(2, most*float64(c.n)/10_000)), 0, cpu)
	c.b.against(name+"that stayed connected", "", atLeast(1), float64(now.Connected-back(now, start.Unix())), float64(c.n))
	c.b.against(name+"acknowledged, against what there is", "batches/s", atLeast(0.9), rate, float64(c.n)/every.Seconds())
	return nil
}

// kill kills the server, starts it anew and waits for everybody.
func (c *crowd) kill() error {
	if err := c.s.server.Process.Kill(); err != nil {
		return err
	}
	start := time.Now()
	_ = c.s.server.Wait() // it was killed
	if _, err := c.s.remotegpu("host", "ls"); err != nil {
		fmt.Fprintf(os.Stderr, "meanwhile people see: %v\n", err)
	}
	c.s.started = slices.DeleteFunc(c.s.started, func(cmd *exec.Cmd) bool { return cmd == c.s.server })
	if err := c.s.startServer(); err != nil {
		return err
	}
	up := time.Since(start)
	ctx, cancel := context.WithTimeout(context.Background(), within)
	defer cancel()
	since := start.Unix()
	now, err := c.parts.Wait(ctx, func(p sim.Progress) bool { return back(p, since) == c.n })
	if err != nil {
		return err
	}
	took := time.Since(start)
	used, err := c.serverCPU()
	if err != nil {
		return err
	}
	fmt.Fprintf(os.Stderr, "the server was ready after %v; hosts back by second after the kill:", up.Round(100*time.Millisecond))
	most := 0
	for second := since; second <= since+int64(took.Seconds()); second++ {
		fmt.Fprintf(os.Stderr, " %d", now.Since[second])
		most = max(most, now.Since[second])
	}
	fmt.Fprintf(os.Stderr, "; server and PostgreSQL used %.1f ms of CPU per host\n", used*1e3/float64(c.n))
	c.b.bound(fmt.Sprintf("all %d hosts back after kill -9 of the server", c.n), "s", took.Seconds(), 90)
	c.b.bound(fmt.Sprintf("hosts of %d that come back in the fullest second", c.n), "", float64(most), max(0.05*float64(c.n), 250))
	return nil
}

// goroutines counts those of a program.
func goroutines(debugAddr string) (n int, err error) {
	res, err := http.Get("http://" + debugAddr + "/debug/pprof/goroutine?debug=1")
	if err != nil {
		return 0, err
	}
	defer res.Body.Close()
	_, err = fmt.Fscanf(res.Body, "goroutine profile: total %d", &n)
	return n, err
}

// back counts hosts whose connection is from a second or later; a server may be
// back in the one in which it was killed.
func back(p sim.Progress, since int64) (n int) {
	for second, hosts := range p.Since {
		if second >= since {
			n += hosts
		}
	}
	return n
}
