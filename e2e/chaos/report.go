package chaos

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
)

// Report is what a run did and found.
type Report struct {
	Seed    uint64
	Replay  string
	Shape   Shape
	Began   time.Time
	Took    time.Duration
	Rounds  int // that began
	Struck  []Struck
	Rests   []time.Duration // how long each calm took until rest; the first is before any fault
	Checked map[string]int  // times, by invariant
	Broke   *Break          // the first; nil: none
	Notes   []string        // what the system under test adds
}

// Struck is a fault that has been.
type Struck struct {
	At, Lasts  time.Duration
	Name, Part string
	Err        string // the injector's own
}

// Break is an invariant that did not hold.
type Break struct {
	At              time.Duration
	Invariant, What string
}

// String is the report for people, in Markdown.
func (r *Report) String() string {
	var b strings.Builder
	p := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	p("# Chaos: seed %d, %v\n", r.Seed, r.Took.Round(time.Second))
	p("Began %s. Rounds: %d of %v of faults each, and then rest. Again: `%s`\n", r.Began.UTC().Format(time.RFC3339), r.Rounds, r.Shape.Storm, r.Replay)
	if r.Broke == nil {
		p("No invariant was broken.\n")
	} else {
		p("**Broken after %v: %s.** %s\n", r.Broke.At.Round(time.Millisecond), r.Broke.Invariant, r.Broke.What)
	}
	for _, note := range r.Notes {
		p("%s\n", note)
	}
	p("| invariant | checked |\n| --- | --- |")
	for _, name := range slices.Sorted(maps.Keys(r.Checked)) {
		p("| %s | %d |", name, r.Checked[name])
	}
	if len(r.Rests) > 1 {
		rests := slices.Sorted(slices.Values(r.Rests[1:]))
		p("\nAt rest after a storm: median %v, worst %v of %d.", rests[len(rests)/2].Round(100*time.Millisecond), rests[len(rests)-1].Round(100*time.Millisecond), len(rests))
	}
	p("\n| fault | times |\n| --- | --- |")
	times := map[string]int{}
	for _, s := range r.Struck {
		times[s.Name]++
	}
	for _, name := range slices.Sorted(maps.Keys(times)) {
		p("| %s | %d |", name, times[name])
	}
	p("\n| at | fault | on | for |\n| --- | --- | --- | --- |")
	slices.SortFunc(r.Struck, func(a, b Struck) int { return int(a.At - b.At) })
	for _, s := range r.Struck {
		p("| %v | %s | %s | %v |", s.At.Round(100*time.Millisecond), s.Name, s.Part, s.Lasts.Round(100*time.Millisecond))
	}
	return b.String()
}
