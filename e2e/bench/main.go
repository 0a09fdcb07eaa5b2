// Command bench measures what people feel, each figure against a baseline in
// the same run: 'make bench' prints a table and writes run/bench.json.
//
// It owns the measuring and the baselines; what is measured are the product's
// own packages and programs. Its invariant: a figure and its baseline take
// turns (A B A B …) over the same hops of the same machine, so that whatever
// else runs there hurts both; the ratio is the median of the pairs' ratios.
//
// A group of figures is one file with one func in groups. Both ends of a way
// (ways.go) are processes of their own, which this program starts of itself, so
// that their CPU time is theirs alone:
//
//	load ──TCP──► gateway ══TLS══► (delay) ══► agent ──TCP──► load
package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"syscall"
	"time"

	"github.com/remotegpu/remotegpu/e2e/fleet/sim"
)

// groups are run in this order.
var groups = []struct {
	name    string
	figures func(*bench) error
}{
	{"throughput", throughput},
	{"distance", distance},
	{"latency", latency},
	{"remotedialer", remotedialer},
	{"environment", environment},
	{"agent", weight},
	{"desktop", desktop},
	{"files", files},
	{"terminal", keystrokes},
	{"resume", resumption},
	{"fleet", fleet},
	{"proxied", proxied},
}

// bench is one run.
type bench struct {
	quick   bool
	hosts   int           // simulated; 0: see fleetSize
	steady  time.Duration // that the fleet is looked at
	n       int           // pairs of a figure; 0: see often
	profile string        // folder for CPU profiles; empty: none
	bin     string        // folder of the product's programs
	dir     string        // for what the run writes
	sys     *system
	figures []figure
}

func main() {
	if sim.IsPart() {
		return
	}
	if len(os.Args) > 1 && os.Args[1] == "end" {
		if err := end(os.Args[2:]); err != nil {
			fmt.Fprintln(os.Stderr, "bench end:", err)
			os.Exit(1)
		}
		return
	}
	measure := run
	if os.Geteuid() == 0 && !inside() {
		measure = goInside
	}
	if err := measure(); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run() error {
	quick := flag.Bool("quick", false, "fewer repetitions, smaller copies")
	only := flag.String("only", "", "run only the groups whose names match this expression")
	n := flag.Int("pairs", 0, "measure a figure so often (default 21, quick 7; a third of it where one takes long)")
	hosts := flag.Int("hosts", 0, "how many hosts the fleet has (default 10000, quick 500)")
	steady := flag.Duration("steady", 0, "look at the whole fleet for so long while nothing happens (like 30m)")
	profile := flag.String("profile", "", "write CPU profiles of the ends and of the server into this folder")
	bin := flag.String("bin", "bin", "folder of the programs to measure")
	out := flag.String("out", "run/bench.json", "file for the figures")
	flag.Parse()
	wanted, err := regexp.Compile(*only)
	if err != nil {
		return fmt.Errorf("-only: %w", err)
	}
	dir := os.Getenv(insideVar)
	if dir == "" {
		if dir, err = os.MkdirTemp("", "rgbench"); err != nil {
			return err
		}
		defer os.RemoveAll(dir)
	}
	b := &bench{quick: *quick, n: *n, hosts: *hosts, steady: *steady, profile: *profile, bin: *bin, dir: dir}
	defer func() { b.sys.stop() }()
	if err := os.Chmod(dir, 0o755); err != nil { // the server's PostgreSQL passes through
		return err
	}
	if err := writeCertificate(dir); err != nil {
		return err
	}
	fmt.Println(machine())
	start := time.Now()
	var failed error // what one group lacks does not keep the others
	for _, g := range groups {
		if !wanted.MatchString(g.name) {
			continue
		}
		fmt.Fprintf(os.Stderr, "measuring %s\n", g.name)
		if err := g.figures(b); err != nil {
			failed = errors.Join(failed, fmt.Errorf("%s: %w", g.name, err))
		}
	}
	printTable(os.Stdout, b.figures)
	fmt.Printf("medians of %d to %d pairs; %v in all\n", b.seldom(), b.often(), time.Since(start).Round(time.Second))
	return errors.Join(failed, b.write(*out))
}

// often is how many pairs of a figure are measured whose repetition is short.
func (b *bench) often() int {
	switch {
	case b.n > 0:
		return b.n
	case b.quick:
		return 7
	}
	return 21
}

// seldom is the same for one whose repetition takes a second or more.
func (b *bench) seldom() int { return (b.often() + 2) / 3 }

func (b *bench) write(file string) error {
	var text bytes.Buffer
	e := json.NewEncoder(&text)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	if err := e.Encode(b.figures); err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return err
	}
	return os.WriteFile(file, text.Bytes(), 0o644)
}

// insideVar names the run's folder to the process in the namespaces.
const insideVar = "RG_BENCH_DIR"

// inside says whether this process is in namespaces of the run's own.
func inside() bool { return os.Getenv(insideVar) != "" }

// goInside runs this program again as the first process of a network, a process
// table and a /run of its own: what it starts, containers too, meets nothing of
// this machine and ends with it.
func goInside() error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "rgbench")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	script := `mount --make-rprivate / && mount -t tmpfs tmpfs /run && ip link set lo up && exec "$0" "$@"`
	args := []string{"--net", "--mount", "--pid", "--ipc", "--fork", "--kill-child", "--mount-proc", "sh", "-c", script, self}
	cmd := exec.Command("unshare", append(args, os.Args[1:]...)...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Env = append(os.Environ(), insideVar+"="+dir)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return err
	}
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, os.Interrupt, syscall.SIGTERM)
	go func() {
		<-stop
		_ = cmd.Process.Kill() // and with it all that is inside
	}()
	if err := cmd.Wait(); err != nil {
		return fmt.Errorf("in namespaces of its own: %w", err)
	}
	return nil
}
