// Command fleet runs simulated hosts against a server, as many as are asked for.
//
// It owns the command line and what it prints; the hosts are package sim's.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/remotegpu/remotegpu/e2e/fleet/sim"
)

const usage = `Run simulated GPU hosts against a RemoteGPU server. Each enrols with the join
token, keeps MQTT and a tunnel as a real agent does, has eight simulated GPUs and
obeys its document; its containers are made up. It ends with Ctrl-C.

  remotegpu host join --uses 1000          a token for as many hosts
  go run ./e2e/fleet --server https://gpu.example.org:8443 --ca ca.pem \
      --token rgj_… --agents 1000

A line every few seconds says how the fleet is:

   15s  1000 hosts: 1000 enrolled, 998 connected, 0 refused, 12 containers run

With --dir the hosts are the same ones the next time, and need no token. Remove
them afterwards with remotegpu host retire.

`

func main() {
	if sim.IsPart() {
		return
	}
	if err := run(); err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "fleet:", err)
		os.Exit(1)
	}
}

// settings are the command line.
type settings struct {
	sim.FleetConfig
	ca, versions string
	every, until time.Duration
}

func parse(args []string) (s settings, err error) {
	f := flag.NewFlagSet("fleet", flag.ContinueOnError)
	f.Usage = func() {
		fmt.Fprint(f.Output(), usage)
		f.PrintDefaults()
	}
	f.StringVar(&s.Server, "server", "https://localhost:8443", "address of the server")
	f.StringVar(&s.ca, "ca", "", "`file` with the authority of its certificate (default: the system's)")
	f.StringVar(&s.Token, "token", "", "join token with a use for every host")
	f.IntVar(&s.Agents, "agents", 100, "how many hosts")
	f.IntVar(&s.First, "first", 0, "`number` of the first one, for several fleets on one server")
	f.StringVar(&s.Dir, "dir", "", "`folder` for what the hosts keep (default: one in memory that goes with the fleet)")
	f.StringVar(&s.versions, "versions", "sim", "versions of agents, in turns, separated by commas")
	f.Float64Var(&s.Slow, "slow", 0, "`share` of hosts on bad lines, like 0.05")
	f.Float64Var(&s.Dead, "dead", 0, "`share` of hosts whose line dies in the first minute")
	f.BoolVar(&s.Together, "one-address", false, "all come from one address, as behind one NAT (default: each has its own, 127.x.y.z)")
	f.DurationVar(&s.Step, "step", time.Second, "what a step of a container takes at most")
	f.DurationVar(&s.Telemetry, "telemetry", 0, "each host says samples of itself and its GPUs, one a second, so often, like 10s (default: not at all)")
	f.DurationVar(&s.every, "every", 5*time.Second, "time between lines")
	f.DurationVar(&s.until, "for", 0, "end after so long (default: with Ctrl-C)")
	if err := f.Parse(args); err != nil {
		return s, err
	}
	s.Versions = strings.Split(s.versions, ",")
	if s.ca != "" {
		s.CA, err = os.ReadFile(s.ca)
	}
	switch {
	case err != nil:
	case f.NArg() > 0:
		err = fmt.Errorf("%q is no flag: see --help", f.Arg(0))
	case s.Token == "" && s.Dir == "":
		err = errors.New("give --token: 'remotegpu host join --uses N' makes one, see --help")
	case s.Telemetry != 0 && (s.Telemetry < time.Second || s.Telemetry > time.Hour):
		err = errors.New("--telemetry must be between a second, for a sample, and an hour")
	case s.Agents < 1 || s.First < 0 || s.First+s.Agents > 1<<22:
		err = errors.New("--agents and --first must be of 1 to 4 million hosts")
	}
	return s, err
}

func run() error {
	s, err := parse(os.Args[1:])
	if err != nil {
		return err
	}
	if s.Dir == "" {
		if s.Dir, err = tempDir(); err != nil {
			return err
		}
		defer os.RemoveAll(s.Dir)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if s.until > 0 {
		ctx, stop = context.WithTimeout(ctx, s.until)
		defer stop()
	}
	parts, err := sim.Start(s.FleetConfig)
	if err != nil {
		return err
	}
	defer parts.Stop()
	tick := time.NewTicker(s.every)
	defer tick.Stop()
	for start := time.Now(); ; {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			say(time.Since(start), parts.Progress())
		}
	}
}

func say(since time.Duration, p sim.Progress) {
	line := fmt.Sprintf("%5.0fs  %d hosts: %d enrolled, %d connected, %d refused, %d containers run", since.Seconds(), p.Agents, p.Enrolled, p.Connected, p.Refused, p.Running)
	if p.Dead > 0 {
		line += fmt.Sprintf(", %d dead", p.Dead)
	}
	if p.Batches+p.Lost > 0 {
		line += fmt.Sprintf(", %d batches of telemetry, %d lost", p.Batches, p.Lost)
	}
	if p.Last != "" && p.Connected+p.Dead < p.Agents {
		line += "; " + p.Last
	}
	fmt.Println(line)
}

// tempDir is in memory where there is some.
func tempDir() (string, error) {
	if dir, err := os.MkdirTemp("/dev/shm", "rgfleet"); err == nil {
		return dir, nil
	}
	return os.MkdirTemp("", "rgfleet")
}
