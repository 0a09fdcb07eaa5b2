package reconcile

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/remotegpu/remotegpu/protocol"
)

func code(n int) *int { return &n }

func workload(id string, revision uint64, edit ...func(*protocol.Workload)) protocol.Workload {
	w := protocol.Workload{
		ID: id, Revision: revision, Name: id, Workspace: "ws", Want: protocol.WantRunning,
		Image: "img", Restart: protocol.RestartAlways,
	}
	for _, e := range edit {
		e(&w)
	}
	return w
}

func stopped(w *protocol.Workload)   { w.Want = protocol.WantStopped }
func never(w *protocol.Workload)     { w.Restart = protocol.RestartNever }
func onFailure(w *protocol.Workload) { w.Restart = protocol.RestartOnFailure }
func diskLimit(w *protocol.Workload) { w.Limits.Disk = 100 }

func container(revision uint64, s State, edit ...func(*Container)) Container {
	c := Container{ID: "a-" + string(rune('0'+revision)), Workload: "a", Revision: revision, State: s}
	for _, e := range edit {
		e(&c)
	}
	return c
}

func ended(n int) func(*Container)       { return func(c *Container) { c.ExitCode = code(n) } }
func unreaped(c *Container)              { c.Unreaped = true }
func full(c *Container)                  { c.Disk = 101 }
func gpu(uuid string) func(*Container)   { return func(c *Container) { c.GPUs = []string{uuid} } }
func with(cs ...Container) []Container   { return cs }
func ready(revision uint64) Have         { return Have{Images: map[string]uint64{"a": revision}} }
func holds(h Have, cs ...Container) Have { h.Containers = cs; return h }

// TestPlanSquare goes through every wish of one workload × everything that may
// be found of it. A row's cells are: no document entry, stopped, always,
// on-failure, never; all wishes are revision 2.
func TestPlanSquare(t *testing.T) {
	wishes := []struct {
		name string
		want []protocol.Workload
	}{
		{"gone", nil},
		{"stopped", []protocol.Workload{workload("a", 2, stopped, diskLimit)}},
		{"always", []protocol.Workload{workload("a", 2, diskLimit)}},
		{"on-failure", []protocol.Workload{workload("a", 2, onFailure, diskLimit)}},
		{"never", []protocol.Workload{workload("a", 2, never, diskLimit)}},
	}
	rows := []struct {
		name string
		have Have
		want [5]string
	}{
		{"nothing", Have{}, [5]string{"", "", "pull", "pull", "pull"}},
		{"leftovers", Have{Leftovers: []string{"a"}}, [5]string{"purge", "", "pull", "pull", "pull"}},
		{"image of the old revision", ready(1), [5]string{"", "", "pull", "pull", "pull"}},
		{"image", ready(2), [5]string{"", "", "create", "create", "create"}},
		{"old running, no image", holds(Have{}, container(1, Running)), [5]string{"stop", "stop", "pull", "pull", "pull"}},
		{"old running, image", holds(ready(2), container(1, Running)), [5]string{"stop", "stop", "stop", "stop", "stop"}},
		{"old created, image", holds(ready(2), container(1, Created)), [5]string{"remove", "remove", "remove", "remove", "remove"}},
		{"old exited, no image", holds(Have{}, container(1, Exited, unreaped)), [5]string{"remove", "remove", "pull", "pull", "pull"}},
		{"old exited, image", holds(ready(2), container(1, Exited)), [5]string{"remove", "remove", "remove", "remove", "remove"}},
		{"created", holds(Have{}, container(2, Created)), [5]string{"remove", "remove", "start", "start", "start"}},
		{"running", holds(Have{}, container(2, Running)), [5]string{"stop", "stop", "", "", ""}},
		{"running, disk full", holds(Have{}, container(2, Running, full)), [5]string{"stop", "stop", "stop", "stop", "stop"}},
		{"unclear", holds(Have{}, container(2, Unclear)), [5]string{"remove", "remove", "wait", "wait", "wait"}},
		{"just ended", holds(Have{}, container(2, Exited, unreaped, ended(0))), [5]string{"remove", "remove", "reap", "reap", "reap"}},
		{"ended well", holds(Have{}, container(2, Exited, ended(0))), [5]string{"remove", "remove", "start", "", ""}},
		{"ended badly", holds(Have{}, container(2, Exited, ended(1))), [5]string{"remove", "remove", "start", "start", ""}},
		{"ended in a reboot", holds(Have{}, container(2, Exited)), [5]string{"remove", "remove", "start", "start", ""}},
		{"ended, disk full", holds(Have{}, container(2, Exited, ended(1), full)), [5]string{"remove", "remove", "", "", ""}},
		{"old and new", holds(ready(2), container(1, Running), container(2, Running)), [5]string{"stop", "stop", "stop", "stop", "stop"}},
		{"old exited and new", holds(ready(2), container(1, Exited), container(2, Running)), [5]string{"stop", "stop", "remove", "remove", "remove"}},
	}
	for _, row := range rows {
		for i, wish := range wishes {
			steps := Plan(wish.want, row.have)
			got := ""
			if len(steps) == 1 {
				got = steps[0].Kind.String()
			}
			if len(steps) > 1 || got != row.want[i] {
				t.Errorf("%s × %s: steps %v, want %q", row.name, wish.name, steps, row.want[i])
			}
		}
	}
}

func TestPlanPicksContainer(t *testing.T) {
	have := holds(ready(2), container(1, Running), container(2, Running))
	steps := Plan([]protocol.Workload{workload("a", 2)}, have)
	if len(steps) != 1 || steps[0].Container.Revision != 1 {
		t.Fatalf("steps %v, want the old container stopped", steps)
	}
}

func TestPlanRemovesStrangers(t *testing.T) {
	stranger := Container{ID: "x", State: Running}
	got := Plan([]protocol.Workload{workload("a", 2)}, Have{Containers: with(stranger, container(2, Running))})
	want := []Step{{Kind: Stop, Workload: "x", Container: stranger}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestPlanHandsGPUOver(t *testing.T) {
	needs := func(w *protocol.Workload) { w.GPUs = []string{"GPU-1"} }
	b := workload("b", 1, needs)
	created := Container{ID: "b-1", Workload: "b", Revision: 1, State: Created, GPUs: []string{"GPU-1"}}
	old := container(1, Running, gpu("GPU-1"), func(c *Container) { c.Grace = time.Second })

	// Without b the old container runs on while the new image is pulled.
	steps := Plan([]protocol.Workload{workload("a", 2)}, Have{Containers: with(old)})
	if len(steps) != 1 || steps[0].Kind != Pull {
		t.Fatalf("steps %v, want a pull", steps)
	}
	steps = Plan([]protocol.Workload{workload("a", 2), b}, Have{Containers: with(old, created)})
	if len(steps) != 2 || steps[0].Kind != Stop || steps[1].Kind != Wait || steps[1].Reason == "" {
		t.Fatalf("steps %v, want a stopped and b waiting with a reason", steps)
	}
	steps = Plan([]protocol.Workload{workload("a", 2), b}, Have{Containers: with(created)})
	if len(steps) != 2 || steps[1].Kind != Start {
		t.Fatalf("steps %v, want b started", steps)
	}
}

func TestSize(t *testing.T) {
	for n, want := range map[uint64]string{0: "0 B", 1023: "1023 B", 1536: "1.5 KiB", 10 << 30: "10.0 GiB"} {
		if got := size(n); got != want {
			t.Errorf("size(%d) = %s, want %s", n, got, want)
		}
	}
}
