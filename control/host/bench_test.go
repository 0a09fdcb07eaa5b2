package host

import (
	"bytes"
	"fmt"
	"testing"

	"github.com/remotegpu/remotegpu/control/auth"
	"github.com/remotegpu/remotegpu/control/pgtest"
	"github.com/remotegpu/remotegpu/protocol"
)

// BenchmarkList shows pages of 100 hosts, as JSON, to 50 who ask at once, in a
// fleet of 10,000 hosts with 80,000 GPUs, half of them with an environment.
// Baseline is as much JSON from one statement of 100 rows by their key.
func BenchmarkList(b *testing.B) {
	w := newWorld(b)
	w.populate(b)
	page := func(f Filter, want int) func() error {
		return func() error {
			page, err := w.List(b.Context(), auth.System("bench"), f)
			n := 0
			for _, piece := range page {
				n += bytes.Count(piece, []byte(`"hostname"`))
			}
			if err == nil && n != want {
				b.Errorf("%+v gives %d hosts, want %d", f, n, want)
			}
			return err
		}
	}
	for _, run := range []struct {
		name string
		do   func() error
	}{
		{"baseline", func() error {
			rows, err := w.pool.Query(b.Context(), "select to_jsonb(h) from hosts h where name > 'gpu-05000' order by name limit 100")
			if err != nil {
				return err
			}
			rows.Close()
			return rows.Err()
		}},
		{"first page", page(Filter{}, 100)},
		{"later page", page(Filter{After: "gpu-09000"}, 100)},
		{"status", page(Filter{Status: "offline", After: "gpu-05000"}, 100)},
		{"label", page(Filter{Label: "rack=r7"}, 100)},
		{"search name", page(Filter{Search: "gpu-0777"}, 10)},
		{"search GPU", page(Filter{Search: "a100"}, 100)},
		{"search nothing", page(Filter{Search: "nowhere"}, 0)},
		{"all filters", page(Filter{Status: "online", Label: "region=eu", Search: "h100", After: "gpu-02000"}, 100)},
	} {
		b.Run(run.name, func(b *testing.B) { pages(b, 50, run.do) })
	}
}

// pages has askers do at once and reports how long one waits.
func pages(b *testing.B, askers int, do func() error) {
	took := pgtest.AtOnce(b, askers, do)
	b.ReportMetric(float64(took[b.N/2].Microseconds())/1e3, "p50-ms")
	b.ReportMetric(float64(took[b.N*95/100].Microseconds())/1e3, "p95-ms")
}

// populate makes a fleet of 10,000 hosts with 80,000 GPUs, nine of ten online.
func (w *world) populate(b *testing.B) {
	b.Helper()
	for _, sql := range []string{
		`insert into hosts (id, name, public_key, state, online, os, arch, cpus, memory, disk, labels, hostname, address)
			select 'host_' || i, 'gpu-' || lpad(i::text, 5, '0'), i::text::bytea, case when i % 50 = 0 then 'maintenance' else 'active' end, i % 10 > 0, 'linux', 'amd64', 64, 256::bigint << 30, 1000::bigint << 30,
				jsonb_build_object('rack', 'r' || i % 100, 'region', 'eu'), 'node' || i, '10.0.' || i / 256 || '.' || i % 256 from generate_series(1, 10000) i`,
		`insert into gpus (uuid, host_id, index, name, memory, healthy) select 'GPU-' || i || '-' || j, 'host_' || i, j, case when i % 4 = 0 then 'NVIDIA A100' else 'NVIDIA H100' end, 80::bigint << 30, i % 20 > 0
			from generate_series(1, 10000) i, generate_series(0, 7) j`,
		`insert into host_usage (host_id, at, cpu_percent, memory_used, disk_used, load1, uptime) select id, now(), 10, 1, 1, 1, 1 from hosts`,
		`insert into desired_documents (host_id) select id from hosts`,
		`insert into host_allocations (workload, workspace_id, host_id, milli_cpu, memory, disk) select 'env_' || i, 'ws', 'host_' || i, 1000, 1, 1 from generate_series(1, 5000) i`,
		`insert into gpu_allocations (gpu, host_id, workload) select 'GPU-' || i || '-' || j, 'host_' || i, 'env_' || i from generate_series(1, 5000) i, generate_series(0, 3) j`,
		`vacuum analyze`, `select pg_notify('host_changed', id) from hosts`,
	} {
		if _, err := w.pool.Exec(b.Context(), sql); err != nil {
			b.Fatalf("%s: %v", sql, err)
		}
	}
}

// BenchmarkBeats notes, in one statement, what comes of 10,000 hosts in a second.
// Baseline is an update of as many rows by their key.
func BenchmarkBeats(b *testing.B) {
	w := newWorld(b)
	w.populate(b)
	beats, keys := map[string]*protocol.Status{}, []string(nil)
	for i := 1; len(beats) < 333; i += 11 { // those at 10, 20 … are offline
		if i%10 > 0 {
			id := fmt.Sprintf("host_%d", i)
			beats[id], keys = &protocol.Status{}, append(keys, id)
		}
	}
	b.Run("baseline", func(b *testing.B) {
		for b.Loop() {
			if _, err := w.pool.Exec(b.Context(), "update host_usage u set at = now() from unnest($1::text[]) k (id) where u.host_id = k.id", keys); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("beats", func(b *testing.B) {
		for b.Loop() {
			if noted, err := w.Beats(b.Context(), beats); err != nil || len(noted) != len(beats) {
				b.Fatalf("%d of %d noted, %v", len(noted), len(beats), err)
			}
		}
	})
}
