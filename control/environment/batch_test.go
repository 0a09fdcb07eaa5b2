package environment

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/remotegpu/remotegpu/control/audit"
	"github.com/remotegpu/remotegpu/control/auth"
	"github.com/remotegpu/remotegpu/control/errs"
	"github.com/remotegpu/remotegpu/control/scheduler"
	"github.com/remotegpu/remotegpu/control/workspace"
	"github.com/remotegpu/remotegpu/protocol"
)

// TestManyCreateAtTwoReplicas: 400 ask at the same moment, of two replicas with a
// scheduler each on one database, some for what cannot be had. No GPU goes to two,
// everybody gets an answer to their own question, and each environment is audited
// once.
func TestManyCreateAtTwoReplicas(t *testing.T) {
	t.Parallel()
	for _, followed := range []bool{true, false} {
		t.Run(map[bool]string{true: "followed", false: "read each time"}[followed], func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			for i := range 40 {
				w.host(fmt.Sprint("gpu-", i), 4)
			}
			second := scheduler.New(w.pool, slog.New(slog.DiscardHandler))
			replicas := []*Service{w.Service, New(w.pool, Config{Resolve: workspace.New(w.pool).Resolve, Scheduler: second}, slog.New(slog.DiscardHandler))}
			ctx, cancel := context.WithCancel(t.Context())
			var loops sync.WaitGroup
			if followed {
				for _, s := range []*scheduler.Service{w.sched, second} {
					loops.Go(func() { _ = s.Run(ctx) })
				}
			}
			var asked sync.WaitGroup
			answers := make([]answer, 400)
			for i := range answers {
				asked.Go(func() { answers[i] = ask(ctx, w, replicas[i%2], i) })
			}
			asked.Wait()
			cancel()
			loops.Wait()
			tally(t, w, answers)
		})
	}
}

// answer is what somebody got who asked for a name, and what was right.
type answer struct {
	e    Environment
	err  error
	name string
	gpus int
	want errs.Kind // with err
	fine bool      // it should work
}

func ask(ctx context.Context, w *world, s *Service, i int) (a answer) {
	rng := rand.New(rand.NewPCG(uint64(i), 3))
	a = answer{name: fmt.Sprint("e", i), gpus: rng.IntN(3), fine: true}
	spec := Spec{Name: a.name}
	switch i % 8 {
	case 3: // the same name as another one: one of them has it
		a.name = fmt.Sprint("twin", i/16)
		spec.Name, a.want = a.name, errs.Conflict
	case 5: // more than any host has
		a.gpus, a.fine, a.want = 9, false, errs.Invalid
	case 7: // what PostgreSQL does not take
		spec.Workdir, a.fine, a.want = "/a\x00b", false, errs.Internal
	}
	spec.Resources.GPUs = a.gpus
	a.e, a.err = s.Create(ctx, w.user, "lab", spec)
	return a
}

func tally(t *testing.T, w *world, answers []answer) {
	gpus, names, twins, made := map[string]string{}, map[string]bool{}, map[string]int{}, 0
	for _, a := range answers {
		if a.err != nil {
			if errs.KindOf(a.err) != a.want || a.want == errs.Internal && a.fine {
				t.Errorf("%s with %d GPUs got: %v", a.name, a.gpus, a.err)
			}
			twins[a.name]++
			continue
		}
		made++
		switch e := a.e; {
		case !a.fine || e.Name != a.name || e.Resources.GPUs != a.gpus || names[e.Name]:
			t.Errorf("who asked for %s with %d GPUs got %+v", a.name, a.gpus, e)
		case e.Host != "" && len(e.GPUs) != a.gpus, e.Host == "" && (e.Phase != protocol.PhasePending || e.Message == ""):
			t.Errorf("%s is %s on %q with %v: %s", e.Name, e.Phase, e.Host, e.GPUs, e.Message)
		}
		names[a.e.Name] = true
		for _, gpu := range a.e.GPUs {
			if gpus[gpu] != "" {
				t.Errorf("%s went to %s and %s", gpu, gpus[gpu], a.e.Name)
			}
			gpus[gpu] = a.e.Name
		}
	}
	for name, n := range twins {
		if !names[name] && n > 1 {
			t.Errorf("nobody got the name %s of %d", name, n)
		}
	}
	(&chaos{world: w}).check()
	var rows, acts, events int
	err := w.pool.QueryRow(t.Context(), `select (select count(*) from environments), (select count(*) from audit_entries where action = 'environment.write' and target like 'env_%'),
		(select count(*) from environment_events where reason = 'Created')`).Scan(&rows, &acts, &events)
	if err != nil || rows != made || acts != made || events != made {
		t.Errorf("%d were made; %d rows, %d audited, %d events, %v", made, rows, acts, events, err)
	}
	if err := audit.Seal(t.Context(), w.pool); err != nil {
		t.Error(err)
	}
	if p, err := audit.Verify(t.Context(), w.pool, auth.System("test"), audit.Walk{Limit: 1 << 20}); p.Damage != "" || p.Entries < int64(made) || err != nil {
		t.Errorf("the audit log: %+v, %v", p, err)
	}
	if made < 200 || len(gpus) < 100 {
		t.Errorf("%d were made with %d GPUs: hardly a test", made, len(gpus))
	}
}
