package environment

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/remotegpu/remotegpu/control/errs"
	"github.com/remotegpu/remotegpu/control/scheduler"
	"github.com/remotegpu/remotegpu/protocol"
)

// TestNothingIsGivenTwice takes 10,000 random steps by eight people and an
// unreliable fleet at once: no GPU goes to two, no host gives more than it has,
// and whoever waits can read why.
func TestNothingIsGivenTwice(t *testing.T) {
	steps := int64(10000)
	if testing.Short() {
		steps = 1000
	}
	w := newWorld(t)
	ctx, cancel := context.WithCancel(t.Context())
	var loops sync.WaitGroup
	for _, run := range []func(context.Context) error{w.sched.Run, w.sched.Lead, w.Service.Run, w.Lead} {
		loops.Go(func() { run(ctx) })
	}
	c := &chaos{world: w}
	for i := range 5 {
		c.join(fmt.Sprintf("gpu-%d", i))
	}
	var people sync.WaitGroup
	for person := range 8 {
		people.Go(func() {
			rng := rand.New(rand.NewPCG(uint64(person), 42))
			for c.steps.Add(1) <= steps {
				if err := c.step(ctx, rng); err != nil {
					t.Errorf("step: %v", err)
					return
				}
				if rng.IntN(100) == 0 {
					c.check()
				}
			}
		})
	}
	people.Wait()
	c.upToDate()
	cancel()
	loops.Wait()
	c.check()
	c.settle()
	var served int64 // after waiting
	if err := w.pool.QueryRow(t.Context(), "select count(*) from placements where outcome = 'placed' and waited_ms > 0").Scan(&served); err != nil {
		t.Error(err)
	}
	t.Logf("%d created, %d placed at once, %d had to wait, %d placements of those who waited, %d refused, %d hosts retired",
		c.created.Load(), c.placed.Load(), c.waited.Load(), served, c.refused.Load(), c.retired.Load())
	if c.placed.Load() < steps/50 || c.waited.Load() < steps/50 || served < steps/100 {
		t.Error("the steps hardly tested anything")
	}
}

// chaos is a world where everybody acts at once.
type chaos struct {
	*world
	steps, names, seqs                        atomic.Int64
	created, placed, waited, refused, retired atomic.Int64

	mu    sync.Mutex // guards hosts
	hosts []*machine
}

// machine plays an agent.
type machine struct {
	id string
	mu sync.Mutex // one report at a time
}

func (c *chaos) join(name string) {
	m := &machine{id: c.host(name, 4)}
	c.exec("select pg_notify('host_changed', $1)", m.id) // as its hello does
	c.mu.Lock()
	defer c.mu.Unlock()
	c.hosts = append(c.hosts, m)
}

func (c *chaos) any(rng *rand.Rand) *machine {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.hosts[rng.IntN(len(c.hosts))]
}

func (c *chaos) step(ctx context.Context, rng *rand.Rand) error {
	name := c.some(ctx)
	switch n := rng.IntN(1000); {
	case n < 230:
		return c.make(ctx, rng)
	case n < 340:
		_, err := c.Stop(ctx, c.user, "lab", name)
		return expected(err)
	case n < 470:
		_, err := c.Start(ctx, c.user, "lab", name)
		return expected(err)
	case n < 510:
		_, err := c.Restart(ctx, c.user, "lab", name)
		return expected(err)
	case n < 740:
		return expected(c.Delete(ctx, c.user, "lab", name))
	case n < 940:
		return c.obey(ctx, c.any(rng))
	case n < 965:
		return c.set(ctx, c.any(rng), "online = random() < 0.8")
	case n < 985:
		return c.set(ctx, c.any(rng), "state = case when random() < 0.2 then 'cordoned' else 'active' end")
	case n < 997:
		return c.set(ctx, c.any(rng), "state = case when random() < 0.2 then 'draining' else 'active' end")
	}
	return c.replace(ctx, rng)
}

// some returns the name of any environment.
func (c *chaos) some(ctx context.Context) (name string) {
	_ = c.pool.QueryRow(ctx, "select name from environments where want <> 'deleted' order by random() limit 1").Scan(&name) // none: no name
	return name
}

func (c *chaos) make(ctx context.Context, rng *rand.Rand) error {
	spec := Spec{Name: fmt.Sprint("e", c.names.Add(1)), Resources: Resources{
		GPUs: rng.IntN(4), MilliCPU: uint64(rng.IntN(16)) * 1000, Memory: uint64(1+rng.IntN(64)) << 30, Disk: uint64(rng.IntN(100)) << 30}}
	if rng.IntN(10) == 0 {
		spec.Resources.GPUs = 5 // more than any host has
	}
	if rng.IntN(4) == 0 {
		spec.Prefer = scheduler.Affinity{Host: c.any(rng).id}
	}
	e, err := c.Create(ctx, c.user, "lab", spec)
	switch {
	case err != nil:
		c.refused.Add(1)
		return expected(err)
	case e.Host != "":
		c.placed.Add(1)
	case e.Phase == protocol.PhasePending && e.Message == "":
		return fmt.Errorf("%s waits and nobody says why", e.Name)
	default:
		c.waited.Add(1)
	}
	c.created.Add(1)
	return nil
}

// obey lets a machine that is online do what its newest document says.
func (c *chaos) obey(ctx context.Context, m *machine) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	var generation uint64
	err := c.pool.QueryRow(ctx, `update desired_documents d set generation = d.generation + 1, dirty = false from hosts h
		where d.host_id = $1 and h.id = d.host_id and h.online and h.state <> 'retired' returning d.generation`, m.id).Scan(&generation)
	if err != nil {
		return nil // offline, or nothing to do yet
	}
	lists, err := c.Workloads(ctx, c.pool, []string{m.id})
	if err != nil {
		return err
	}
	st := protocol.Status{Epoch: 1, Seq: uint64(c.seqs.Add(1)), Observed: generation, Applied: generation}
	held := map[string]string{}
	for _, l := range lists[m.id] {
		for _, gpu := range l.GPUs {
			if other := held[gpu]; other != "" {
				return fmt.Errorf("the document of %s gives %s to %s and %s", m.id, gpu, other, l.ID)
			}
			held[gpu] = l.ID
		}
		report := protocol.WorkloadStatus{ID: l.ID, Phase: l.Want}
		if l.Want == wantRunning {
			report.Revision = l.Revision
		}
		st.Workloads = append(st.Workloads, report)
	}
	return c.said(ctx, m.id, st)
}

func (c *chaos) set(ctx context.Context, m *machine, change string) error {
	_, err := c.pool.Exec(ctx, "update hosts set "+change+" where id = $1 and state <> 'retired'", m.id)
	if err == nil {
		_, err = c.pool.Exec(ctx, "select pg_notify('host_changed', $1)", m.id)
	}
	return err
}

// replace retires a machine for good and lets another one join.
func (c *chaos) replace(ctx context.Context, rng *rand.Rand) error {
	c.mu.Lock()
	i := rng.IntN(len(c.hosts))
	old := c.hosts[i]
	c.hosts = append(c.hosts[:i:i], c.hosts[i+1:]...)
	c.mu.Unlock()
	c.join(fmt.Sprint("new-", c.retired.Add(1)))
	return c.set(ctx, old, "state = 'retired', online = false")
}

func expected(err error) error {
	switch errs.KindOf(err) {
	case errs.Conflict, errs.NotFound, errs.Invalid:
		return nil
	}
	return err
}

// broken are queries that find what must not be.
var broken = map[string]string{
	"a host gives more than it has": `select h.name from hosts h join host_allocations a on a.host_id = h.id group by h.id
		having sum(a.milli_cpu) > h.cpus * 1000 or sum(a.memory) > h.memory or sum(a.disk) > h.disk`,
	"a GPU of another host": `select a.gpu from gpu_allocations a join gpus g on g.uuid = a.gpu join host_allocations h on h.workload = a.workload
		where a.host_id <> g.host_id or a.host_id <> h.host_id`,
	"not as many GPUs as asked": `select e.name from environments e join host_allocations a on a.workload = e.id
		where (select count(*) from gpu_allocations g where g.workload = e.id) <> coalesce((e.resources ->> 'gpus')::int, 0)`,
	"an allocation of nobody": `select workload from host_allocations a where not exists (select from environments where id = a.workload)`,
	"an allocation elsewhere": `select e.name from environments e join host_allocations a on a.workload = e.id where a.host_id <> e.host_id`,
	"it waits and has":        `select workload from placement_queue q where exists (select from host_allocations where workload = q.workload)`,
	"it waits unexplained": `select e.name from environments e where e.want = 'running' and not exists (select from host_allocations where workload = e.id)
		and not exists (select from placement_queue where workload = e.id and summary <> '')`,
	"it waits for nothing": `select workload from placement_queue q where not exists (select from environments where id = q.workload and want = 'running')`,
}

// check asks the database, at one moment, whether all is well.
func (c *chaos) check() {
	for what, sql := range broken {
		rows, err := c.pool.Query(context.Background(), sql)
		if err != nil {
			c.t.Errorf("%s: %v", what, err)
			continue
		}
		for rows.Next() {
			var name string
			_ = rows.Scan(&name)
			c.t.Errorf("%s: %s", what, name)
		}
		rows.Close()
	}
}

// upToDate waits until the running scheduler has served all that can be
// served, and until every reason is what a fresh look at the fleet gives.
func (c *chaos) upToDate() {
	stale := 0
	fresh := scheduler.New(c.pool, c.log)
	fresh.Retries(protocol.PrefixEnvironment, func(_ context.Context, all []string) error {
		stale += len(all)
		return nil
	})
	for deadline := time.Now().Add(time.Minute); ; {
		stale = 0
		if err := fresh.Turn(c.t.Context()); err != nil {
			c.t.Error(err)
			return
		}
		if stale == 0 {
			return
		}
		if time.Now().After(deadline) {
			c.t.Errorf("%d wait that could be served, or for a reason that is not true any more", stale)
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// settle brings all hosts back and lets them do what is asked: in the end
// nothing hangs between two states.
func (c *chaos) settle() {
	ctx := context.Background()
	for range 3 {
		for _, m := range c.hosts {
			if err := c.set(ctx, m, "online = true, state = 'active'"); err != nil {
				c.t.Error(err)
			}
			if err := c.followHosts(ctx, []string{m.id}); err != nil {
				c.t.Error(err)
			}
			if err := c.obey(ctx, m); err != nil {
				c.t.Error(err)
			}
		}
		if err := c.sched.Turn(ctx); err != nil {
			c.t.Error(err)
		}
	}
	c.check()
	all, err := read(ctx, c.pool, "order by e.name")
	if err != nil {
		c.t.Error(err)
	}
	for i := range all {
		e := &all[i]
		e.present()
		switch e.Phase {
		case protocol.PhaseRunning, protocol.PhaseStopped:
		case protocol.PhasePending, protocol.PhaseFailed:
			if e.Message == "" {
				c.t.Errorf("%s is %s and nobody says why", e.Name, e.Phase)
			}
		default:
			c.t.Errorf("%s hangs in %s (%s)", e.Name, e.Phase, e.Message)
		}
	}
}
