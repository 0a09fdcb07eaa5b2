package environment

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/remotegpu/remotegpu/control/pg"
	"github.com/remotegpu/remotegpu/control/pgtest"
	"github.com/remotegpu/remotegpu/protocol"
)

// BenchmarkCreate makes environments in a fleet of 10,000 hosts with 80,000 GPUs,
// by the whole way that an API request takes behind its handler, with the scheduler
// following the fleet and PostgreSQL writing to its disk. Figures are per second.
// Together is what many who ask at once get; in turn is one who waits for each; a
// transaction each is how many get who share nothing; floor is PostgreSQL alone:
// one row of a table without an index, and its commit, by as many.
func BenchmarkCreate(b *testing.B) {
	const askers = 128
	w := newFleet(b)
	w.exec("create table floor (id bigint)")
	go w.sched.Run(b.Context())
	time.Sleep(2 * time.Second) // it reads the fleet
	var names atomic.Int64
	create := func() error {
		n := names.Add(1)
		e, err := w.Create(b.Context(), w.user, "lab", Spec{Name: fmt.Sprint("e", n), Resources: Resources{GPUs: 1, MilliCPU: 4000, Memory: 16 << 30}})
		if err == nil && e.Host == "" {
			err = fmt.Errorf("%s has no host: %s", e.ID, e.Message)
		}
		return err
	}
	apart := func() error {
		e := (&Spec{Name: fmt.Sprint("e", names.Add(1)), Image: StarterImage, Restart: protocol.RestartAlways, Resources: Resources{GPUs: 1, MilliCPU: 4000, Memory: 16 << 30}}).
			environment(protocol.NewID(protocol.PrefixEnvironment), w.workspaceID(), w.user)
		m := &creation{caller: w.user, asked: e}
		if err := w.createAll(b.Context(), []*creation{m}); err != nil {
			return err
		}
		return m.refused
	}
	floor := func() error {
		_, err := w.pool.Exec(b.Context(), "insert into floor values (1)")
		return err
	}
	for _, run := range []struct {
		name   string
		askers int
		do     func() error
	}{{"floor", askers, floor}, {"a transaction each", askers, apart}, {"together", askers, create}, {"in turn", 1, create}} {
		b.Run(run.name, func(b *testing.B) { rate(b, w, run.askers, run.do) })
	}
}

// newFleet is a world with 10,000 hosts and 5,000 environments, whose database
// writes to its disk.
func newFleet(b *testing.B) *world {
	w := newWorld(b)
	w.exec(`insert into hosts (id, name, public_key, state, online, os, arch, cpus, memory, disk)
		select 'host_' || i, 'gpu-' || i, i::text::bytea, 'active', true, 'linux', 'amd64', 64, 256::bigint << 30, 1000::bigint << 30 from generate_series(1, 10000) i`)
	w.exec(`insert into gpus (uuid, host_id, index, name, memory) select 'GPU-' || i || '-' || j, 'host_' || i, j, 'NVIDIA H100', 80::bigint << 30
		from generate_series(1, 10000) i, generate_series(0, 7) j`)
	w.exec(`insert into environments (id, workspace_id, name, owner_id, image, resources, restart, document_bytes, host_id, want, phase)
		select 'env_' || i, $1, 'old' || i, 'usr_a', 'x', '{"gpus": 1}', 'always', 500, 'host_' || i, 'running', 'running' from generate_series(1, 5000) i`, w.workspaceID())
	w.exec(`insert into host_allocations (workload, workspace_id, host_id, milli_cpu, memory, disk) select id, workspace_id, host_id, 4000, 16::bigint << 30, 0 from environments`)
	w.exec(`insert into gpu_allocations (gpu, host_id, workload) select 'GPU-' || substr(id, 5) || '-0', host_id, id from environments`)
	w.exec("insert into desired_documents (host_id) select id from hosts")
	w.exec(`insert into placements (workload, workspace_id, outcome, host_id, strategy, looked, summary, rejected, decision_us)
		select id, workspace_id, 'placed', host_id, 'best_fit', 1, '', '[]', 1 from environments`)
	w.exec(`insert into environment_events (environment_id, workspace_id, severity, reason, message) select id, workspace_id, 'normal', 'Created', '' from environments`)
	w.exec("alter system set fsync = on") // tests go without
	w.exec("select pg_reload_conf()")
	w.exec("vacuum analyze")
	b.Cleanup(func() { _, _ = w.pool.Exec(context.Background(), "alter system set fsync = off") })
	return w
}

// BenchmarkReport takes statuses of hosts that have one environment each, which
// stops and starts by turns: alone, and of 32 hosts together. Figures are per status.
func BenchmarkReport(b *testing.B) {
	w := newFleet(b)
	w.exec("update desired_documents set dirty = false, generation = 1")
	seq := uint64(0)
	for _, together := range []int{1, 32} {
		b.Run(fmt.Sprint(together, " together"), func(b *testing.B) {
			ours, theirs := cpu(w)
			for done := 0; done < b.N; done += together {
				seq++
				phase := []string{protocol.PhaseRunning, protocol.PhaseStarting}[seq/256%2]
				said := map[string]*protocol.Status{}
				for i := range together {
					n := 1 + (done+i)%5000
					said[fmt.Sprint("host_", n)] = &protocol.Status{Epoch: 1, Seq: seq, Observed: 1, Applied: 1,
						Workloads: []protocol.WorkloadStatus{{ID: fmt.Sprint("env_", n), Phase: phase, Message: fmt.Sprint(seq)}}}
				}
				if err := pg.InTx(b.Context(), w.pool, func(tx pg.Tx) error { return w.Report(b.Context(), tx, said) }); err != nil {
					b.Fatal(err)
				}
			}
			ours2, theirs2 := cpu(w)
			b.ReportMetric(float64((ours2-ours).Microseconds())/float64(b.N), "cpu-µs")
			b.ReportMetric(float64((theirs2-theirs).Microseconds())/float64(b.N), "db-cpu-µs")
		})
	}
}

func (w *world) workspaceID() string {
	for id := range w.user.Roles {
		return id
	}
	return ""
}

// rate lets askers do as often as the benchmark wants, and reports it.
func rate(b *testing.B, w *world, askers int, do func() error) {
	ours, theirs := cpu(w)
	took := pgtest.AtOnce(b, askers, do)
	ours2, theirs2 := cpu(w)
	b.ReportMetric(float64((ours2-ours).Microseconds())/float64(b.N), "cpu-µs")
	b.ReportMetric(float64((theirs2-theirs).Microseconds())/float64(b.N), "db-cpu-µs")
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "/s")
	b.ReportMetric(float64(took[b.N/2].Microseconds())/1e3, "p50-ms")
	b.ReportMetric(float64(took[b.N*99/100].Microseconds())/1e3, "p99-ms")
}

// cpu is the processor time that this process and the database's have taken, of
// those of the latter that have served it.
func cpu(w *world) (ours, theirs time.Duration) {
	var use syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &use); err != nil {
		w.t.Fatal(err)
	}
	ours = time.Duration(use.Utime.Nano() + use.Stime.Nano())
	rows, err := w.pool.Query(w.t.Context(), "select pid from pg_stat_activity where datname = current_database()")
	if err != nil {
		w.t.Fatal(err)
	}
	pids, err := pgx.CollectRows(rows, pgx.RowTo[int])
	if err != nil {
		w.t.Fatal(err)
	}
	for _, pid := range pids {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			continue // it has ended
		}
		fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
		for _, ticks := range fields[11:13] {
			n, _ := strconv.Atoi(ticks)
			theirs += time.Duration(n) * 10 * time.Millisecond
		}
	}
	return ours, theirs
}
