package relay

import (
	"fmt"
	"strings"
	"testing"
)

// TestRoomForOthers: however many environments, forwards and channels a workspace
// has, others on the host still get in, and so does its owner.
func TestRoomForOthers(t *testing.T) {
	t.Parallel()
	r := &room{max: 64, byTenant: map[string]int{}, tenant: func(workload string) string { return strings.Split(workload, "-")[0] }}
	enter := func(workload string) func() {
		leave, no := r.enter(workload)
		if no != nil {
			return nil
		}
		return leave
	}
	var greedy []func()
	for i := range 1000 {
		if leave := enter(fmt.Sprint("greedy-", i)); leave != nil {
			greedy = append(greedy, leave)
		}
	}
	if len(greedy) != 48 {
		t.Errorf("one tenant has %d streams of 64, want 48", len(greedy))
	}
	for i := range 3 {
		for range 4 {
			if enter(fmt.Sprint("modest", i, "-a")) == nil {
				t.Errorf("tenant %d is kept out", i)
			}
		}
	}
	if _, no := r.enter("greedy-1"); no == nil || !strings.Contains(no.Message, "48 sessions") {
		t.Errorf("greedy: %+v", no)
	}
	for range 4 {
		if enter("") == nil {
			t.Error("the host's owner is kept out")
		}
	}
	if _, no := r.enter(""); no == nil || !strings.Contains(no.Message, "64 sessions") {
		t.Errorf("a full host: %+v", no)
	}
	for _, leave := range greedy {
		leave()
		leave()
	}
	if enter("greedy-1") == nil || r.open != 17 || len(r.byTenant) != 5 {
		t.Errorf("%d open, %v", r.open, r.byTenant)
	}
}
