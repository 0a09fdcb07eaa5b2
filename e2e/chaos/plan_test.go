package chaos

import (
	"context"
	"fmt"
	"reflect"
	"testing"
	"time"
)

var table = []Fault{
	{Name: "at once", On: "a"},
	{Name: "short", On: "a", Least: time.Second, Most: 3 * time.Second},
	{Name: "often", On: "b", Weight: 5, Least: time.Second, Most: 10 * time.Second},
	{Name: "of nothing", On: "c"},
	{Name: "of the last", On: "a", From: 1},
}

var shape = Shape{Rounds: 20, Storm: 30 * time.Second, Pause: 2 * time.Second, Parts: map[string]int{"a": 2, "b": 1}}

func TestPlanIsItsSeed(t *testing.T) {
	one, again, other := Plan(1, table, shape), Plan(1, table, shape), Plan(2, table, shape)
	if !reflect.DeepEqual(one, again) {
		t.Error("one seed gives two plans")
	}
	if reflect.DeepEqual(one, other) {
		t.Error("two seeds give one plan")
	}
}

func TestPlanKeepsItsBounds(t *testing.T) {
	for seed := range uint64(200) {
		plan := Plan(seed, table, shape)
		times := map[string]int{}
		free := map[string]time.Duration{}
		last := Strike{}
		for _, s := range plan {
			f := table[s.Fault]
			times[f.Name]++
			if s.Round < last.Round || s.Round == last.Round && s.At < last.At {
				t.Fatalf("seed %d: %+v comes after %+v", seed, s, last)
			}
			last = s
			part := fmt.Sprint(s.Round, f.On, s.Hit.Part)
			if s.At < free[part] {
				t.Fatalf("seed %d: %+v hits what is broken until %v", seed, s, free[part])
			}
			free[part] = s.At + s.Lasts
			if s.Lasts < f.Least || s.Lasts > max(f.Least, f.Most) || s.At+s.Lasts > shape.Storm {
				t.Fatalf("seed %d: %+v is out of its bounds", seed, s)
			}
			if s.Hit.Part < f.From || s.Hit.Part >= shape.Parts[f.On] {
				t.Fatalf("seed %d: there is no part %+v", seed, s)
			}
		}
		if times["at once"] == 0 || times["short"] == 0 || times["often"] < times["short"] || times["of nothing"] > 0 {
			t.Fatalf("seed %d: drawn %v", seed, times)
		}
	}
}

// A run notes the first break, mends what it broke, and says how to do it again.
func TestRunStopsAtTheFirstBreak(t *testing.T) {
	broken, looks := 0, 0
	system := System{
		Faults: []Fault{{Name: "hit", On: "a", Least: time.Millisecond, Most: 2 * time.Millisecond,
			Do:   func(context.Context, Hit) error { broken++; return nil },
			Undo: func(context.Context, Hit) error { broken--; return nil }}},
		Look: func(_, now *Seen) {
			if looks++; looks > 3 {
				now.Said = []string{"panic: of a test"}
			}
		},
		Rest: func(context.Context) string { return "" }, Resume: func() {}, Clear: func() {}, Log: t.Logf,
	}
	run := Run{System: system, Seed: 7, Calm: time.Minute, Replay: "do it again",
		Shape: Shape{Rounds: 100, Storm: 1500 * time.Millisecond, Pause: 100 * time.Millisecond, Parts: map[string]int{"a": 1}}}
	report := run.Do(t.Context())
	if report.Broke == nil || report.Broke.What != "panic: of a test" {
		t.Errorf("the break is %+v", report.Broke)
	}
	if broken != 0 || len(report.Struck) == 0 {
		t.Errorf("%d faults are not undone of %d", broken, len(report.Struck))
	}
	for _, want := range []string{"seed 7", "do it again", "panic: of a test", "| hit |"} {
		if text := report.String(); !contains(text, want) {
			t.Errorf("the report lacks %q:\n%s", want, text)
		}
	}
}

func TestRunSaysWhatComesToNoRest(t *testing.T) {
	run := Run{System: System{Look: func(_, _ *Seen) {}, Rest: func(context.Context) string { return "one is missing" }, Resume: func() {}, Clear: func() {}, Log: t.Logf}, Calm: time.Millisecond}
	if report := run.Do(t.Context()); report.Broke == nil || !contains(report.Broke.What, "one is missing") {
		t.Errorf("the break is %+v", report.Broke)
	}
}
