package main

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"text/tabwriter"
)

// figure is one line of the table and of bench.json.
type figure struct {
	Name     string  `json:"name"`
	Value    float64 `json:"value"`    // median of ours
	Unit     string  `json:"unit"`     // of value and baseline
	Baseline float64 `json:"baseline"` // median
	Ratio    float64 `json:"ratio"`    // median of the pairs' ratios
	Aim      string  `json:"aim"`      // of the ratio, or "+5": of value less baseline
	OK       bool    `json:"ok"`
}

// aim is a bound of a ratio, or of how much more ours is than the baseline.
type aim struct {
	least bool
	more  bool
	bound float64
}

func atLeast(bound float64) aim    { return aim{least: true, bound: bound} }
func atMost(bound float64) aim     { return aim{bound: bound} }
func atMostMore(bound float64) aim { return aim{more: true, bound: bound} }

func (a aim) String() string {
	switch {
	case a.least:
		return fmt.Sprintf(">= %g", a.bound)
	case a.more:
		return fmt.Sprintf("<= +%g", a.bound)
	}
	return fmt.Sprintf("<= %g", a.bound)
}

// met takes the ratio and the difference.
func (a aim) met(ratio, more float64) bool {
	switch {
	case a.least:
		return ratio >= a.bound
	case a.more:
		return more <= a.bound
	}
	return ratio <= a.bound
}

// measured is what one repetition yields: several figures may come of it.
type measured []float64

// pairs are the repetitions of ours and of the baseline, in turns.
type pairs struct{ ours, baseline []measured }

// paired measures both in turns, n times; a first pair warms up.
func paired(n int, ours, baseline func() (measured, error)) (p pairs, err error) {
	for i := range n + 1 {
		x, err := ours()
		if err != nil {
			return p, err
		}
		y, err := baseline()
		if err != nil {
			return p, fmt.Errorf("baseline: %w", err)
		}
		if i > 0 {
			p.ours, p.baseline = append(p.ours, x), append(p.baseline, y)
		}
	}
	return p, nil
}

// add makes a figure of one column of pairs.
func (b *bench) add(name, unit string, aim aim, column int, p pairs) {
	var x, y, ratios, more []float64
	for i := range p.ours {
		x, y = append(x, p.ours[i][column]), append(y, p.baseline[i][column])
		ratios, more = append(ratios, x[i]/y[i]), append(more, x[i]-y[i])
	}
	f := figure{Name: name, Unit: unit, Value: median(x), Baseline: median(y), Ratio: median(ratios), Aim: aim.String()}
	f.OK = aim.met(f.Ratio, median(more))
	b.figures = append(b.figures, f)
	printTable(os.Stderr, []figure{f})
}

// quantile sorts its argument.
func quantile(q float64, of []float64) float64 {
	slices.Sort(of)
	return of[min(len(of)-1, int(q*float64(len(of))))]
}

func median(of []float64) float64 { return quantile(0.5, slices.Clone(of)) }

func printTable(to io.Writer, figures []figure) {
	w := tabwriter.NewWriter(to, 0, 0, 2, ' ', 0)
	if len(figures) > 1 {
		fmt.Fprintln(w, "figure\tvalue\tbaseline\tunit\tratio\taim\t")
	}
	for _, f := range figures {
		verdict := "ok"
		if !f.OK {
			verdict = "missed"
		}
		fmt.Fprintf(w, "%s\t%.4g\t%.4g\t%s\t%.3g\t%s\t%s\n", f.Name, f.Value, f.Baseline, f.Unit, f.Ratio, f.Aim, verdict)
	}
	w.Flush()
}

// machine says where and of what the figures are.
func machine() string {
	cpu := "unknown CPU"
	text, _ := os.ReadFile("/proc/cpuinfo")
	for line := range strings.Lines(string(text)) {
		if key, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(key) == "model name" {
			cpu = strings.TrimSpace(value)
			break
		}
	}
	kernel, _ := os.ReadFile("/proc/sys/kernel/osrelease")
	commit, err := exec.Command("git", "describe", "--always", "--dirty").Output()
	if err != nil {
		commit = []byte("unknown")
	}
	return fmt.Sprintf("%s, %d cores, %s %s, Linux %s, commit %s", cpu, runtime.NumCPU(), runtime.Version(), runtime.GOARCH,
		strings.TrimSpace(string(kernel)), strings.TrimSpace(string(commit)))
}
