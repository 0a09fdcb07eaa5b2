package environment

import (
	"slices"
	"strings"
	"testing"

	"github.com/remotegpu/remotegpu/control/errs"
	"github.com/remotegpu/remotegpu/protocol"
)

// phases are all that a row can have; PhaseUnreachable is only ever shown.
var phases = []string{
	protocol.PhasePending, protocol.PhasePulling, protocol.PhaseStarting, protocol.PhaseRunning, protocol.PhaseBackoff,
	protocol.PhaseStopping, protocol.PhaseStopped, protocol.PhaseExited, protocol.PhaseFailed, PhaseDeleting,
}

// TestOperationSquare walks every operation in every phase.
func TestOperationSquare(t *testing.T) {
	const (
		no = refuse
		is = nothing
	)
	square := map[operation][]effect{ // in the order of phases:
		//        pending pulling starting running backoff stopping stopped exited failed deleting
		opStart:   {is, is, is, is, is, run, run, run, run, no},
		opStop:    {halt, halt, halt, halt, halt, is, is, halt, halt, no},
		opRestart: {is, run, run, run, run, no, no, run, run, no},
		opDelete:  {remove, remove, remove, remove, remove, remove, remove, remove, remove, is},
	}
	for op, row := range square {
		for i, phase := range phases {
			e := Environment{Name: "box", Phase: phase}
			got, err := e.allow(op)
			if got != row[i] {
				t.Errorf("%s in %s has effect %d, want %d", op, phase, got, row[i])
			}
			if (err != nil) != (row[i] == refuse) {
				t.Errorf("%s in %s: error %v", op, phase, err)
			}
			if err != nil && (errs.KindOf(err) != errs.Conflict || !strings.Contains(errs.Text(err), "box")) {
				t.Errorf("%s in %s is refused with %q", op, phase, errs.Text(err))
			}
		}
	}
	if len(legal) != len(square) {
		t.Errorf("%d operations, %d in the square", len(legal), len(square))
	}
}

// TestSettleSquare walks everything that a host can report against everything
// that can be wanted.
func TestSettleSquare(t *testing.T) {
	reported := append(slices.Clone(phases[:len(phases)-1]), "levitating", "")
	square := map[string][]string{ // in the order of reported
		wantRunning: {"pending", "pulling", "starting", "running", "backoff", "starting", "starting", "exited", "failed", "pending", "pending"},
		wantStopped: {"stopping", "stopping", "stopping", "stopping", "stopping", "stopping", "stopped", "stopping", "stopping", "stopping", "stopping"},
		wantDeleted: slices.Repeat([]string{PhaseDeleting}, 11),
	}
	for want, row := range square {
		for i, phase := range reported {
			got, _ := settle(want, 7, protocol.WorkloadStatus{Phase: phase, Revision: 7})
			if got != row[i] {
				t.Errorf("wanted %s, reported %q: stored as %s, want %s", want, phase, got, row[i])
			}
			if !slices.Contains(phases, got) {
				t.Errorf("wanted %s, reported %q: stored as %s, which is no phase", want, phase, got)
			}
		}
	}
	if got, _ := settle(wantRunning, 7, protocol.WorkloadStatus{Phase: protocol.PhaseRunning, Revision: 6}); got != protocol.PhaseStarting {
		t.Errorf("the container from before a restart makes it %s", got)
	}
}

// TestPresentSquare: an absent host never makes an environment look as if it
// ran, nor as if its work were lost.
func TestPresentSquare(t *testing.T) {
	for _, phase := range phases {
		for _, host := range []string{"", hostUp, hostAway, hostDrained, hostGone} {
			e := Environment{Phase: phase, HostState: host, HostName: "gpu-1", Want: wantRunning}
			e.present()
			want := phase
			if host == hostAway && !slices.Contains([]string{"stopped", "exited", "failed", PhaseDeleting}, phase) {
				want = PhaseUnreachable
			}
			if e.Phase != want {
				t.Errorf("%s on a host that is %q is shown as %s, want %s", phase, host, e.Phase, want)
			}
			if e.Phase == PhaseUnreachable && !strings.Contains(e.Message, "gpu-1 is offline") {
				t.Errorf("unreachable, and the message is %q", e.Message)
			}
		}
	}
}

func TestAdvice(t *testing.T) {
	for _, phase := range append(slices.Clone(phases), PhaseUnreachable) {
		e := Environment{Name: "box", Phase: phase, Message: "it is so."}
		if got := e.Advice(); !strings.Contains(got, "remotegpu env ") || strings.Contains(got, "..") {
			t.Errorf("in %s the advice is %q", phase, got)
		}
	}
	lost := Environment{Name: "box", Phase: protocol.PhaseFailed, Want: wantStopped, Message: "its host was retired"}
	if got, want := lost.Advice(), "Its host was retired. Start it: remotegpu env start box"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}

func TestImage(t *testing.T) {
	tests := []struct{ written, want string }{
		{"", "{control}/library/starter:latest"},
		{"python:3.13", "docker.io/library/python:3.13"},
		{"python", "docker.io/library/python:latest"},
		{"me/tool", "docker.io/me/tool:latest"},
		{"registry.example.org:5000/a/b/c:1", "registry.example.org:5000/a/b/c:1"},
		{"{control}/lab/tool", "{control}/lab/tool:latest"},
		{"{control}/lab/deep/er/tool:2", "{control}/lab/deep/er/tool:2"},
		{"gpu.example.org:8443/lab/tool:2", "{control}/lab/tool:2"},
		{"{control}/library/starter", "{control}/library/starter:latest"},
		{"tool@sha256:" + strings.Repeat("a", 64), "docker.io/library/tool@sha256:" + strings.Repeat("a", 64)},
		{"{control}/lab/tool:1@sha256:" + strings.Repeat("a", 64), "{control}/lab/tool@sha256:" + strings.Repeat("a", 64)},
	}
	for _, tt := range tests {
		if got, err := image(tt.written, "lab", "gpu.example.org:8443"); got != tt.want || err != nil {
			t.Errorf("%q is %q (%v), want %q", tt.written, got, err, tt.want)
		}
	}
}

// FuzzImage: whatever is written, no image of another workspace comes out, and
// what comes out is stable.
func FuzzImage(f *testing.F) {
	for _, s := range []string{"python", "{control}/lab/x", "{control}/other/x", "{control}/lab/../other/x", "gpu.example.org:8443/other/x", "{control}/{control}/other/x", "{control}", "GPU.example.org:8443/other/x"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		got, err := image(s, "lab", "gpu.example.org:8443")
		if err != nil {
			if errs.KindOf(err) == errs.Internal {
				t.Errorf("%q: %v", s, err)
			}
			return
		}
		rest, own := strings.CutPrefix(got, controlRegistry)
		if own && !strings.HasPrefix(rest, "lab/") && !strings.HasPrefix(rest, "library/") || strings.HasPrefix(strings.ToLower(got), "gpu.example.org:8443/") {
			t.Errorf("%q gives %q", s, got)
		}
		if again, err := image(got, "lab", "gpu.example.org:8443"); again != got || err != nil {
			t.Errorf("%q gives %q, which gives %q, %v", s, got, again, err)
		}
	})
}
