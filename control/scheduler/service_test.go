package scheduler

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/remotegpu/remotegpu/control/auth"
	"github.com/remotegpu/remotegpu/control/errs"
	"github.com/remotegpu/remotegpu/control/pg"
	"github.com/remotegpu/remotegpu/control/pgtest"
)

func TestMain(m *testing.M) { pgtest.Main(m) }

// fleet is a service with hosts in a database.
type fleet struct {
	*Service
	t testing.TB
}

func newFleet(t testing.TB) *fleet {
	return &fleet{New(pgtest.New(t), slog.New(slog.DiscardHandler)), t}
}

func (f *fleet) exec(sql string, args ...any) {
	f.t.Helper()
	if _, err := f.pool.Exec(f.t.Context(), sql, args...); err != nil {
		f.t.Fatalf("%s: %v", sql, err)
	}
}

func (f *fleet) host(name string, gpus int) {
	f.t.Helper()
	f.exec(`with h as (insert into hosts (id, name, public_key, state, online, os, arch, cpus, memory, disk, labels) values
			('host_' || $1, $1, $1::text::bytea, 'active', true, 'linux', 'amd64', 64, 256::bigint << 30, 1000::bigint << 30, '{"region": "eu"}') returning id)
		insert into gpus (uuid, host_id, index, name, memory) select 'GPU-' || $1 || '-' || i, h.id, i, 'NVIDIA H100', 80::bigint << 30
		from h, generate_series(0, $2 - 1) i`, name, gpus)
	f.exec("select pg_notify($1, $2)", hostChanged, "host_"+name)
}

func (f *fleet) place(r Request) Decision {
	f.t.Helper()
	d, err := f.tryPlace(f.t.Context(), r)
	if err != nil {
		f.t.Fatal(err)
	}
	return d
}

func (f *fleet) tryPlace(ctx context.Context, r Request) (d Decision, err error) {
	err = pg.InTx(ctx, f.pool, func(tx pg.Tx) error {
		d, err = f.Place(ctx, tx, r)
		return err
	})
	return d, err
}

func (f *fleet) release(workload string) {
	f.t.Helper()
	err := pg.InTx(f.t.Context(), f.pool, func(tx pg.Tx) error { return Release(f.t.Context(), tx, workload) })
	if err != nil {
		f.t.Fatal(err)
	}
}

func TestPlaceKeepsAndReleaseGives(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	f.host("a", 2)
	first := f.place(Request{Workload: "env_1", GPUs: 2})
	if again := f.place(Request{Workload: "env_1", GPUs: 2}); !slices.Equal(first.GPUs, again.GPUs) || len(again.GPUs) != 2 {
		t.Errorf("asked twice it got %v and %v", first.GPUs, again.GPUs)
	}
	if d := f.place(Request{Workload: "env_2", GPUs: 1}); d.Placed() || d.Summary != "Waiting for 1 GPU: host a: 0 of 2 GPUs free, 1 asked." {
		t.Errorf("%+v", d)
	}
	f.release("env_1")
	f.release("env_1")
	if d := f.place(Request{Workload: "env_2", GPUs: 1}); d.Host != "host_a" {
		t.Errorf("%+v", d)
	}
	history, err := History(t.Context(), f.pool, "env_2", 0, 0)
	if err != nil || len(history) != 2 {
		t.Fatalf("%+v, %v", history, err)
	}
	if p := history[0]; p.Outcome != "placed" || p.Strategy != BestFit || p.WaitedMS < 0 || len(p.GPUs) != 1 || p.DecisionUS <= 0 {
		t.Errorf("%+v", p)
	}
	if p := history[1]; p.Outcome != "waiting" || len(p.Rejected) != 1 || p.Rejected[0].Host != "host_a" {
		t.Errorf("%+v", p)
	}
}

// TestFaultyHostGetsNothing: where no container can be started, none is placed.
func TestFaultyHostGetsNothing(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	f.host("a", 2)
	f.exec("update hosts set fault = 'containerd does not answer'")
	if d := f.place(Request{Workload: "env_1", GPUs: 1}); d.Placed() || d.Summary != "Waiting for 1 GPU: host a: is unhealthy." {
		t.Errorf("%+v", d)
	}
	f.exec("update hosts set fault = ''")
	if d := f.place(Request{Workload: "env_1", GPUs: 1}); d.Host != "host_a" {
		t.Errorf("%+v", d)
	}
}

// TestDatabaseForbidsTwice goes around the scheduler.
func TestDatabaseForbidsTwice(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	f.host("a", 2)
	d := f.place(Request{Workload: "env_1", GPUs: 1})
	f.exec("insert into host_allocations (workload, workspace_id, host_id, milli_cpu, memory, disk) values ('env_2', '', 'host_a', 0, 0, 0)")
	_, err := f.pool.Exec(t.Context(), "insert into gpu_allocations (gpu, host_id, workload) values ($1, 'host_a', 'env_2')", d.GPUs[0])
	if !pg.IsUnique(err, "gpu_allocations_pkey") {
		t.Errorf("a GPU was given twice: %v", err)
	}
	err = pg.InTx(t.Context(), f.pool, func(tx pg.Tx) error {
		both := []string{d.GPUs[0], "GPU-a-1"}
		taken, err := allocate(t.Context(), tx, []Request{{Workload: "env_3"}, {Workload: "env_4"}}, []Decision{{Host: "host_a", GPUs: both}, {Host: "host_a"}}, []int{0, 1})
		if !slices.Equal(taken, []int{0}) {
			t.Errorf("allocate says that %v of two have not got theirs, want the first", taken)
		}
		if err != nil {
			return err
		}
		var left []string // the transaction must still be of use
		err = tx.QueryRow(t.Context(), "select array_agg(workload order by workload) from host_allocations").Scan(&left)
		if !slices.Equal(left, []string{"env_1", "env_2", "env_4"}) {
			t.Errorf("allocations of %v", left)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

func TestManyAtOnce(t *testing.T) {
	t.Parallel()
	for _, strategy := range Strategies {
		t.Run(string(strategy), func(t *testing.T) {
			t.Parallel()
			f := newFleet(t)
			f.host("a", 4)
			f.host("b", 4)
			var mu sync.Mutex
			given := map[string]string{}
			var all sync.WaitGroup
			for i := range 12 {
				all.Go(func() {
					workload := fmt.Sprint("env_", i)
					d, err := f.tryPlace(t.Context(), Request{Workload: workload, GPUs: 1, Strategy: strategy})
					if err != nil {
						t.Error(err)
					}
					mu.Lock()
					defer mu.Unlock()
					for _, gpu := range d.GPUs {
						if given[gpu] != "" {
							t.Errorf("%s went to %s and %s", gpu, given[gpu], workload)
						}
						given[gpu] = workload
					}
				})
			}
			all.Wait()
			if len(given) != 8 {
				t.Errorf("%d of 8 GPUs were given to 12 who asked", len(given))
			}
		})
	}
}

// TestManyDecideApart: those who ask in the same moment do not all run for the
// host that looks best, and what a failed transaction had booked comes back.
func TestManyDecideApart(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	const n = 40
	for i := range n {
		f.host(fmt.Sprintf("h%02d", i), 1)
	}
	go f.Run(t.Context())
	free := func() (n int, followed bool) {
		if err := f.live.with(t.Context(), f.pool, func(fl *Fleet, ours bool) {
			followed = ours
			for i := range fl.nodes {
				n += fl.nodes[i].free
			}
		}); err != nil {
			t.Fatal(err)
		}
		return n, followed
	}
	until := func(want int) {
		t.Helper()
		for end := time.Now().Add(30 * time.Second); ; time.Sleep(10 * time.Millisecond) {
			n, followed := free()
			if n == want && followed {
				return
			}
			if time.Now().After(end) {
				t.Fatalf("%d GPUs are known to be free, followed %v, want %d", n, followed, want)
			}
		}
	}
	until(n)
	if err := pg.InTx(t.Context(), f.pool, func(tx pg.Tx) error {
		if _, err := f.Place(t.Context(), tx, Request{Workload: "env_failed", GPUs: 1}); err != nil {
			t.Error(err)
		}
		return context.Canceled
	}); err == nil {
		t.Fatal("no failure")
	}
	until(n - 1)
	f.live.lapse(0)
	until(n)
	var all sync.WaitGroup
	for i := range n {
		all.Go(func() {
			if d, err := f.tryPlace(t.Context(), Request{Workload: fmt.Sprint("env_", i), GPUs: 1}); err != nil || !d.Placed() {
				t.Errorf("%d: %+v, %v", i, d, err)
			}
		})
	}
	all.Wait()
}

func TestQueueOrder(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	f.host("a", 1)
	f.place(Request{Workload: "env_0", GPUs: 1})
	for i, priority := range []int{0, 5, 0, 5} {
		f.place(Request{Workload: fmt.Sprint("env_", i+1), GPUs: 1, Priority: priority})
	}
	var order []string
	f.Retries("env_", func(_ context.Context, workloads []string) error {
		for _, workload := range workloads {
			if f.place(Request{Workload: workload, GPUs: 1}).Placed() {
				order = append(order, workload)
				f.release(workload)
			}
		}
		return nil
	})
	f.release("env_0")
	for range 4 {
		if err := f.Turn(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if want := []string{"env_2", "env_4", "env_1", "env_3"}; !slices.Equal(order, want) {
		t.Errorf("served %v, want %v", order, want)
	}
}

func TestStrategyAtRunTime(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	ctx, admin := t.Context(), auth.System("test")
	for _, name := range []string{"a", "b", "c"} {
		f.host(name, 8)
	}
	if err := f.SetStrategy(ctx, auth.Caller{Kind: auth.KindUser}, Random); errs.KindOf(err) != errs.Denied {
		t.Errorf("anybody sets the strategy: %v", err)
	}
	if err := f.SetStrategy(ctx, admin, "worst_fit"); errs.KindOf(err) != errs.Invalid {
		t.Errorf("unknown strategy: %v", err)
	}
	if got, err := f.Strategy(ctx, admin); got != BestFit || err != nil {
		t.Errorf("at first it is %s, %v", got, err)
	}
	if err := f.SetStrategy(ctx, admin, RoundRobin); err != nil {
		t.Fatal(err)
	}
	var hosts []string
	for i := range 4 {
		hosts = append(hosts, f.place(Request{Workload: fmt.Sprint("env_", i), GPUs: 1}).HostName)
	}
	if want := []string{"a", "b", "c", "a"}; !slices.Equal(hosts, want) {
		t.Errorf("round robin went to %v, want %v", hosts, want)
	}
}

// TestWaitingIsServedByNotification: long before the tick, whoever waits gets
// what a host that joins, comes back or is released can give.
func TestWaitingIsServedByNotification(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	served := make(chan string, 10)
	f.Retries("env_", func(ctx context.Context, workloads []string) error {
		for _, workload := range workloads {
			d, err := f.tryPlace(ctx, Request{Workload: workload, GPUs: 1})
			if err != nil {
				return err
			}
			if d.Placed() {
				served <- d.HostName
			}
		}
		return nil
	})
	go f.Run(t.Context())
	go f.Lead(t.Context())
	wait := func(what, want string) {
		t.Helper()
		select {
		case got := <-served:
			if got != want {
				t.Errorf("%s: placed on %s, want %s", what, got, want)
			}
		case <-time.After(30 * time.Second):
			t.Fatalf("%s: not served", what)
		}
	}
	f.place(Request{Workload: "env_1", GPUs: 1})
	f.host("a", 1)
	wait("a host joins", "a")
	f.place(Request{Workload: "env_2", GPUs: 1})
	f.release("env_1")
	wait("a GPU is released", "a")
	f.exec("update hosts set online = false")
	f.exec("select pg_notify($1, 'host_a')", hostChanged)
	f.release("env_2")
	f.place(Request{Workload: "env_3", GPUs: 1})
	f.exec("update hosts set online = true")
	f.exec("select pg_notify($1, 'host_a')", hostChanged)
	wait("a host comes back", "a")
}
