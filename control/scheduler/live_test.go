package scheduler

import (
	"slices"
	"testing"
	"time"
)

// TestFleetChanges: hosts come, go and are renamed; the order stays that of names,
// what was taken stays taken, and round_robin goes on where it was.
func TestFleetChanges(t *testing.T) {
	t.Parallel()
	l := &live{stale: make(chan struct{}, 1), fleet: NewFleet([]Host{h100("b", 4, 0), h100("d", 4, 0)}), booked: map[string][]booking{}, places: map[string]string{}}
	r := Request{Workload: "w", GPUs: 4, Strategy: FirstFit}
	d := l.fleet.Place(r)
	l.book(r, d, true)
	l.fleet.After(d.Host)
	b, dd := l.fleet.nodes[0].host, l.fleet.nodes[1].host
	want := func(what string, names ...string) {
		t.Helper()
		var got []string
		for i := range l.fleet.nodes {
			got = append(got, l.fleet.nodes[i].host.Name)
		}
		if !slices.Equal(got, names) {
			t.Errorf("%s: %v, want %v", what, got, names)
		}
		if n := &l.fleet.nodes[l.fleet.byID[b.ID]]; n.free != 0 || l.places["w"] != b.ID {
			t.Errorf("%s: b has %d GPUs free, want none", what, n.free)
		}
		if l.fleet.nodes[l.fleet.last].host.ID != b.ID {
			t.Errorf("%s: the last one was %d", what, l.fleet.last)
		}
	}
	a, c := h100("a", 4, 0), h100("c", 4, 0)
	l.update([]Host{c, a}, map[string]bool{a.ID: true, c.ID: true}, time.Now())
	want("two came", "a", "b", "c", "d")
	l.update(nil, map[string]bool{c.ID: true, "host_unknown": true}, time.Now())
	want("one went", "a", "b", "d")
	dd.Name = "0"
	l.update([]Host{dd}, map[string]bool{dd.ID: true}, time.Now())
	want("one has another name", "0", "a", "b")
	l.update([]Host{h100("b", 4, 0)}, map[string]bool{b.ID: true}, time.Now())
	want("one is read before its transaction ends", "0", "a", "b")
}
