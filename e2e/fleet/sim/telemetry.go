package sim

import (
	"context"
	"math/rand/v2"
	"sync/atomic"
	"time"

	"github.com/remotegpu/remotegpu/edge-agent/link"
	"github.com/remotegpu/remotegpu/protocol"
)

// telemetry is what a host samples, each second, and says in batches. It keeps
// nothing: what the line does not take is lost. So samples are numbered by their
// Unix second, which goes on over restarts and shows what is missing.
type telemetry struct {
	machine *machine
	samples atomic.Int64  // in a batch; 0: none are taken
	changed chan struct{} // capacity 1: samples did
	said    atomic.Int64  // batches that the broker has acknowledged
	lost    atomic.Int64  // and that it has not
}

func newTelemetry(m *machine) *telemetry {
	return &telemetry{machine: m, changed: make(chan struct{}, 1)}
}

// Telemetry has the host say its samples so often, or no more if every is 0.
func (a *Agent) Telemetry(every time.Duration) {
	a.telemetry.samples.Store(int64(every / time.Second))
	select {
	case a.telemetry.changed <- struct{}{}:
	default:
	}
}

func (t *telemetry) run(ctx context.Context, l *link.Link) error {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	due, batch := t.begin(ctx, tick)
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-t.changed:
			due, batch = t.begin(ctx, tick)
		case now := <-tick.C:
			t.machine.sample(ctx, batch, now)
			if len(batch.At) < due {
				continue
			}
			if l.Telemetry(ctx, batch) == nil {
				t.said.Add(1)
			} else {
				t.lost.Add(1)
			}
			due = int(t.samples.Load())
			batch = &protocol.TelemetryBatch{Version: protocol.Version, First: batch.First + uint64(len(batch.At))}
		}
	}
}

// begin starts the clock, if there is a rate, with a first batch that is shorter
// by chance, so that hosts which were told together do not speak together.
func (t *telemetry) begin(ctx context.Context, tick *time.Ticker) (due int, batch *protocol.TelemetryBatch) {
	tick.Stop()
	if n := int(t.samples.Load()); n > 0 {
		due = 1 + rand.IntN(n)
		select {
		case <-ctx.Done():
		case <-time.After(rand.N(time.Second)):
		}
		tick.Reset(time.Second)
	}
	return due, &protocol.TelemetryBatch{Version: protocol.Version}
}

// sample adds how the machine is now to a batch.
func (m *machine) sample(ctx context.Context, b *protocol.TelemetryBatch, now time.Time) {
	if len(b.At) == 0 {
		b.First = max(b.First, uint64(now.Unix()))
	}
	b.At = append(b.At, now.UnixMilli())
	u := m.load()
	b.Host = grow(b.Host,
		one(protocol.MetricCPUPercent, u.CPUPercent), one(protocol.MetricLoad1, u.Load1),
		one(protocol.MetricMemoryUsed, float32(u.MemoryUsed>>20)), one(protocol.MetricDiskUsed, float32(u.DiskUsed>>20)),
		one(protocol.MetricNetReceived, 1000*u.Load1), one(protocol.MetricNetSent, 100*u.Load1))
	gpus, _ := m.gpus.Sample(ctx) // a simulation has no trouble
	for i, g := range gpus {
		if len(b.GPUs) == i {
			b.GPUs = append(b.GPUs, protocol.GPUTelemetry{UUID: g.Usage.UUID})
		}
		b.GPUs[i].Series = grow(b.GPUs[i].Series,
			one(protocol.MetricGPUUtilisation, g.Usage.Utilisation), one(protocol.MetricGPUMemoryUsed, float32(g.Usage.MemoryUsed>>20)),
			one(protocol.MetricGPUTemperature, g.Usage.Temperature), one(protocol.MetricGPUPower, g.Usage.PowerWatts),
			one(protocol.MetricGPUFan, g.Fan), one(protocol.MetricGPUClockSM, g.ClockSM), one(protocol.MetricGPUClockMemory, g.ClockMemory))
	}
}

// grow adds a sample to series; its metrics are always the same.
func grow(all []protocol.Series, sample ...protocol.Series) []protocol.Series {
	if all == nil {
		return sample
	}
	for i := range all {
		all[i].Values = append(all[i].Values, sample[i].Values...)
	}
	return all
}

func one(m protocol.Metric, value float32) protocol.Series {
	return protocol.Series{Metric: m, Values: []float32{value}}
}
