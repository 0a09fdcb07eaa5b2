package scheduler

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

// BenchmarkPlace decides on 10,000 hosts with 80,000 GPUs, four fifths of them
// taken, the fleet changing with every decision. Baseline walks all GPUs.
func BenchmarkPlace(b *testing.B) {
	for _, s := range Strategies {
		b.Run(string(s), func(b *testing.B) {
			f, rng := busyFleet(10000)
			benchmark(b, rng, func(r Request) {
				r.Strategy = s
				f.Place(r)
			}, func(r Request) {
				r.Strategy = s
				f.Take(r, f.Place(r))
			}, f)
		})
	}
	b.Run("soft affinity", func(b *testing.B) {
		f, rng := busyFleet(10000)
		benchmark(b, rng, func(r Request) {
			r.Prefer = Affinity{Region: "eu", GPUModel: "H100"}
			f.Place(r)
		}, nil, f)
	})
	b.Run("nothing fits", func(b *testing.B) {
		f, rng := busyFleet(10000)
		benchmark(b, rng, func(r Request) {
			r.Memory = 1 << 50
			f.Place(r)
		}, nil, f)
	})
	b.Run("explain", func(b *testing.B) {
		f, rng := busyFleet(10000)
		benchmark(b, rng, func(r Request) {
			r.Memory = 1 << 50
			f.Decide(r)
		}, nil, f)
	})
	b.Run("baseline", func(b *testing.B) {
		f, rng := busyFleet(10000)
		hosts := make([]Host, len(f.nodes))
		for i := range f.nodes {
			hosts[i] = f.nodes[i].host
		}
		benchmark(b, rng, func(r Request) { baseline(r, hosts) }, nil, f)
	})
}

func busyFleet(n int) (*Fleet, *rand.Rand) {
	rng := rand.New(rand.NewPCG(7, 7))
	hosts := fleetOf(n, rng)
	for i := range hosts {
		for j := range hosts[i].GPUs {
			hosts[i].GPUs[j].Taken = rng.IntN(5) > 0
		}
	}
	return NewFleet(hosts), rng
}

func benchmark(b *testing.B, rng *rand.Rand, decide, take func(Request), f *Fleet) {
	var took []time.Duration
	for n := 0; b.Loop(); n++ {
		r := ask(rng, n)
		start := time.Now()
		decide(r)
		took = append(took, time.Since(start))
		if take != nil && n < 1000 {
			take(r)
		}
	}
	report(b, took)
}

func report(b *testing.B, took []time.Duration) {
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)/2].Nanoseconds())/1e3, "p50-µs")
	b.ReportMetric(float64(took[len(took)*99/100].Nanoseconds())/1e3, "p99-µs")
}

// BenchmarkPlaceInDatabase places and releases with everything around it:
// locks, allocations, queue, history and notifications in PostgreSQL.
func BenchmarkPlaceInDatabase(b *testing.B) {
	f := newFleet(b)
	f.exec(`insert into hosts (id, name, public_key, state, online, os, arch, cpus, memory, disk)
		select 'host_' || i, 'gpu-' || i, i::text::bytea, 'active', true, 'linux', 'amd64', 64, 256::bigint << 30, 1000::bigint << 30 from generate_series(1, 10000) i`)
	f.exec(`insert into gpus (uuid, host_id, index, name, memory) select 'GPU-' || i || '-' || j, 'host_' || i, j, 'NVIDIA H100', 80::bigint << 30
		from generate_series(1, 10000) i, generate_series(0, 7) j`)
	for _, followed := range []bool{true, false} {
		b.Run(map[bool]string{true: "fleet in memory", false: "fleet read each time"}[followed], func(b *testing.B) {
			if followed {
				if err := f.live.reload(b.Context(), f.pool); err != nil {
					b.Fatal(err)
				}
			}
			defer f.live.drop()
			var took []time.Duration
			for n := 0; b.Loop(); n++ {
				r := Request{Workload: fmt.Sprint("env_", n), GPUs: 1 + n%8, Strategy: LeastLoaded}
				start := time.Now()
				if d, err := f.tryPlace(b.Context(), r); err != nil || !d.Placed() {
					b.Fatalf("%+v, %v", d, err)
				}
				took = append(took, time.Since(start))
				f.release(r.Workload)
			}
			report(b, took)
		})
	}
}
