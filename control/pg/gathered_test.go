package pg

import (
	"slices"
	"testing"
)

// TestGathered: who is woken by what was handed over already gets nothing, and
// not the word that anything may have been missed.
func TestGathered(t *testing.T) {
	g := gathered{waiting: map[string]struct{}{}, wake: make(chan struct{}, 1)}
	for _, step := range []struct {
		add  []string
		want []string
		some bool
	}{
		{nil, nil, false},
		{[]string{"b", "a", "b"}, []string{"a", "b"}, true},
		{nil, nil, false},
		{[]string{"a", ""}, nil, true},
		{[]string{"c"}, []string{"c"}, true},
	} {
		for _, payload := range step.add {
			g.add(payload)
		}
		if got, some := g.take(); some != step.some || !slices.Equal(got, step.want) || some && (got == nil) != (step.want == nil) {
			t.Errorf("after %q: %q, %v; want %q, %v", step.add, got, some, step.want, step.some)
		}
	}
}
