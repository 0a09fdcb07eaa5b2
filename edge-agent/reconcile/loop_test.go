package reconcile

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/remotegpu/remotegpu/protocol"
)

// rig is a loop over a fake, in a bubble of fake time.
type rig struct {
	t      *testing.T
	fake   *fake
	loop   *Loop
	cancel context.CancelFunc
	ended  chan struct{}
	gen    uint64
	mu     sync.Mutex
	events []protocol.Event
}

func start(t *testing.T, f *fake) *rig {
	r := &rig{t: t, fake: f}
	r.boot()
	return r
}

// boot begins a loop over whatever the runtime holds, as a new agent does.
func (r *rig) boot() {
	ctx, cancel := context.WithCancel(context.Background())
	r.loop = New(Config{Runtime: r.fake, Log: slog.New(slog.DiscardHandler), Event: func(e protocol.Event) {
		r.mu.Lock()
		r.events = append(r.events, e)
		r.mu.Unlock()
	}})
	r.cancel, r.ended = cancel, make(chan struct{})
	go func() {
		r.loop.Run(ctx)
		close(r.ended)
	}()
}

func (r *rig) halt() { r.cancel(); <-r.ended }

func (r *rig) apply(ws ...protocol.Workload) {
	r.gen++
	r.loop.Apply(&protocol.Desired{Version: 1, Generation: r.gen, Workloads: ws})
}

// after lets d pass and returns the status of workload a.
func (r *rig) after(d time.Duration) protocol.WorkloadStatus {
	time.Sleep(d)
	synctest.Wait()
	for _, s := range r.loop.Statuses() {
		if s.ID == "a" {
			return s
		}
	}
	return protocol.WorkloadStatus{}
}

func (r *rig) expect(d time.Duration, phase, message string) protocol.WorkloadStatus {
	r.t.Helper()
	s := r.after(d)
	if s.Phase != phase || !strings.Contains(s.Message, message) {
		r.t.Fatalf("after %v: phase %q with message %q, want %q with %q", d, s.Phase, s.Message, phase, message)
	}
	return s
}

func TestLoopLife(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(1)
		r := start(t, f)
		defer r.halt()
		r.apply(workload("a", 1))
		s := r.expect(10*time.Second, protocol.PhaseRunning, "")
		if s.Pid == 0 || s.StartedAt == 0 || s.Revision != 1 || r.loop.Applied() != 1 {
			t.Fatalf("status %+v, applied %d", s, r.loop.Applied())
		}
		f.crash("a-1", 3)
		r.expect(50*time.Millisecond, protocol.PhaseBackoff, "code 3")
		s = r.expect(10*time.Second, protocol.PhaseRunning, "")
		if s.Restarts != 1 || s.ExitCode == nil || *s.ExitCode != 3 {
			t.Fatalf("status %+v, want one restart after code 3", s)
		}
		r.apply(workload("a", 1, stopped))
		r.expect(10*time.Second, protocol.PhaseStopped, "")
		r.apply(workload("a", 2))
		r.expect(10*time.Second, protocol.PhaseRunning, "")
		r.apply()
		if s := r.after(10 * time.Second); s.ID != "" || len(f.boxes)+len(f.left) != 0 || r.loop.Applied() != 4 {
			t.Fatalf("status %+v, containers %v, leftovers %v, applied %d", s, f.boxes, f.left, r.loop.Applied())
		}
	})
}

func TestLoopTouchesNothingWithoutDocument(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(1)
		f.boxes["a-1"] = &Container{ID: "a-1", Workload: "a", Revision: 1, State: Running, Pid: 7}
		r := start(t, f)
		r.after(time.Hour)
		if len(f.calls) != 0 {
			t.Fatalf("steps %v without a document", f.calls)
		}
		r.apply(workload("a", 1))
		s := r.expect(time.Minute, protocol.PhaseRunning, "")
		r.halt()
		r.boot()
		r.loop.Apply(&protocol.Desired{Generation: r.gen, Workloads: []protocol.Workload{workload("a", 1)}})
		if s = r.after(time.Minute); s.Pid != 7 || len(f.calls) != 0 {
			t.Fatalf("status %+v after steps %v, want the container adopted", s, f.calls)
		}
		r.halt()
	})
}

func TestLoopBacksOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(1)
		f.faults["a"] = Faultf(nil, "the registry does not answer; check the network")
		r := start(t, f)
		defer r.halt()
		r.apply(workload("a", 1), workload("b", 1))
		r.after(time.Hour)
		tries := f.calls[Pull]
		if tries < 15 || tries > 60 {
			t.Errorf("%d pulls in an hour, want about one per 2.5 minutes", tries)
		}
		s := r.after(0)
		if s.Phase == protocol.PhaseBackoff && (s.RetryAt == 0 || !strings.Contains(s.Message, "check the network")) {
			t.Errorf("status %+v, want when and why", s)
		}
		if f.boxes["b-1"].State != Running || r.loop.Applied() != 1 {
			t.Errorf("b is %v, applied %d: a must not hold it up", f.boxes["b-1"].State, r.loop.Applied())
		}
		f.set(func() { f.faults["a"] = nil })
		r.apply(workload("a", 2), workload("b", 1))
		r.expect(15*time.Second, protocol.PhaseRunning, "")
	})
}

func TestLoopKeepsOldContainerWhenNewImageFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(1)
		r := start(t, f)
		defer r.halt()
		r.apply(workload("a", 1))
		r.expect(10*time.Second, protocol.PhaseRunning, "")
		f.set(func() { f.faults["a"] = Finalf(nil, "image reference is wrong; correct it") })
		r.apply(workload("a", 2))
		s := r.expect(10*time.Second, protocol.PhaseFailed, "correct it; the container from before runs on")
		if s.Revision != 1 || s.Pid == 0 || r.loop.Applied() != 2 {
			t.Fatalf("status %+v, applied %d", s, r.loop.Applied())
		}
	})
}

func TestLoopWaitsForRuntime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(1)
		f.down = true
		r := start(t, f)
		defer r.halt()
		r.apply(workload("a", 1))
		r.expect(time.Hour, protocol.PhasePending, "containerd does not answer")
		if r.loop.Applied() != 0 || r.loop.Fault() != "containerd does not answer" {
			t.Fatalf("applied while the runtime was down, or no fault: %q", r.loop.Fault())
		}
		f.set(func() { f.down = false })
		r.expect(10*time.Second, protocol.PhaseRunning, "")
		if r.loop.Fault() != "" {
			t.Errorf("it runs, and its fault is %q", r.loop.Fault())
		}
		f.set(func() { f.down = true })
		r.expect(15*time.Second, protocol.PhaseRunning, "containerd does not answer")
	})
}

func TestLoopCancelsObsoleteStep(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(1)
		f.slow = 1000 * time.Hour
		r := start(t, f)
		defer r.halt()
		r.apply(workload("a", 1))
		s := r.expect(time.Second, protocol.PhasePulling, "")
		if s.Done != 1 || s.Total != 2 {
			t.Errorf("status %+v, want 1 of 2 bytes", s)
		}
		r.apply(workload("a", 1, stopped))
		r.expect(time.Second, protocol.PhaseStopped, "")
	})
}

// TestLoopTellsOfMemoryNowAndThen: a workload that the kernel ends processes of all
// the time neither drowns the events of others nor has the host looked at all the time.
func TestLoopTellsOfMemoryNowAndThen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(1)
		r := start(t, f)
		defer r.halt()
		r.apply(workload("a", 1), workload("b", 1))
		r.expect(time.Minute, protocol.PhaseRunning, "")
		f.mu.Lock()
		looks := f.looks
		f.mu.Unlock()
		for range 3000 { // in 150 seconds
			f.notify(Notice{Container: "a-1", OutOfMemory: true})
			time.Sleep(50 * time.Millisecond)
		}
		f.notify(Notice{Container: "b-1", OutOfMemory: true})
		synctest.Wait()
		r.mu.Lock()
		defer r.mu.Unlock()
		told := map[string]int{}
		for _, e := range r.events {
			if e.Reason == "OutOfMemory" {
				told[e.Workload]++
			}
		}
		if told["a"] != 3 || told["b"] != 1 {
			t.Errorf("told %v, want 3 of a and 1 of b", told)
		}
		f.mu.Lock()
		defer f.mu.Unlock()
		if n := f.looks - looks; n > 30 {
			t.Errorf("the host was looked at %d times", n)
		}
	})
}

func TestLoopPolicies(t *testing.T) {
	for _, c := range []struct {
		name  string
		edit  func(*protocol.Workload)
		exit  int
		phase string
	}{
		{"always", func(*protocol.Workload) {}, 0, protocol.PhaseRunning},
		{"on-failure, failed", onFailure, 1, protocol.PhaseRunning},
		{"on-failure, ended well", onFailure, 0, protocol.PhaseExited},
		{"never", never, 1, protocol.PhaseExited},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := start(t, newFake(1))
				defer r.halt()
				r.apply(workload("a", 1, c.edit))
				r.expect(10*time.Second, protocol.PhaseRunning, "")
				r.fake.crash("a-1", c.exit)
				s := r.expect(10*time.Second, c.phase, "")
				if s.ExitCode == nil || *s.ExitCode != c.exit {
					t.Errorf("status %+v, want code %d", s, c.exit)
				}
			})
		})
	}
}

// TestLoopConverges throws random documents, failures, crashes, outages and
// agent restarts at the loop. Whatever happened, it must end where the last
// document says, without ever having broken an invariant.
func TestLoopConverges(t *testing.T) {
	seeds := uint64(200)
	if testing.Short() {
		seeds = 20
	}
	for seed := range seeds {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { converge(t, seed) })
		})
	}
}

func converge(t *testing.T, seed uint64) {
	rng := rand.New(rand.NewPCG(seed, 2))
	f := newFake(seed)
	f.chaos = 0.4
	r := start(t, f)
	want := map[string]protocol.Workload{}
	doc := func() (ws []protocol.Workload) {
		for i := range 5 {
			if w, ok := want[fmt.Sprint("w", i)]; ok {
				ws = append(ws, w)
			}
		}
		return ws
	}
	for range 60 {
		time.Sleep(time.Duration(rng.Int64N(int64(5 * time.Second))))
		id := fmt.Sprint("w", rng.IntN(5))
		switch rng.IntN(8) {
		case 0, 1, 2:
			want[id] = workload(id, want[id].Revision+1+uint64(rng.IntN(2)))
			r.apply(doc()...)
		case 3:
			want[id] = workload(id, max(want[id].Revision, 1), stopped)
			r.apply(doc()...)
		case 4:
			delete(want, id)
			r.apply(doc()...)
		case 5:
			f.crash(fmt.Sprint(id, "-", want[id].Revision), rng.IntN(3))
		case 6:
			f.set(func() { f.down = !f.down })
		case 7:
			r.halt()
			r.boot()
			r.loop.Apply(&protocol.Desired{Generation: r.gen, Workloads: doc()})
		}
	}
	f.set(func() { f.chaos, f.down = 0, false })
	time.Sleep(30 * time.Minute)
	synctest.Wait()
	r.halt()
	check(t, f, r.loop, want, r.gen)
}

func check(t *testing.T, f *fake, l *Loop, want map[string]protocol.Workload, gen uint64) {
	if len(f.breaches) > 0 {
		t.Errorf("invariants broken: %q", f.breaches)
	}
	running := 0
	for id, w := range want {
		if w.Want != protocol.WantRunning {
			continue
		}
		running++
		if c := f.boxes[fmt.Sprintf("%s-%d", id, w.Revision)]; c == nil || c.State != Running {
			t.Errorf("%s revision %d does not run: %+v", id, w.Revision, c)
		}
	}
	if len(f.boxes) != running {
		t.Errorf("%d containers for %d wanted: %v", len(f.boxes), running, f.boxes)
	}
	for id := range f.left {
		if _, ok := want[id]; !ok {
			t.Errorf("leftovers of %s stay", id)
		}
	}
	if l.Applied() != gen || len(l.Statuses()) != len(want) {
		t.Errorf("applied %d of %d, statuses %+v", l.Applied(), gen, l.Statuses())
	}
}
