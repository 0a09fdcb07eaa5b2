package gpu

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"math"
	"time"

	"github.com/remotegpu/remotegpu/protocol"
)

// simulation is a host whose GPUs are made up: the same seed has the same
// GPUs. What it says is plausible and moves; containers get /dev/null for each.
type simulation struct {
	gpus   []protocol.GPU
	models []model
	now    func() time.Time
}

// simDriver is what a simulated host says its driver is.
var simDriver = Driver{Version: "570.124.06", CUDA: "12.8"}

func openSim(cfg Config, list []model) (*simulation, error) {
	s := &simulation{models: list, now: time.Now}
	seed := cfg.seed()
	for i, m := range list {
		s.gpus = append(s.gpus, protocol.GPU{
			Index: uint32(i), UUID: simUUID(seed, i, m.name), Name: m.name, Brand: m.brand,
			Architecture: m.architecture, Memory: m.memory, CUDACores: m.cores, Capability: m.capability,
			PowerLimit: m.watts, TempLimit: m.slowdown, NUMANode: int32(2 * i / len(list)),
			PCI: fmt.Sprintf("%04x:%02x:00.0", i/8, 0x1b+0x10*(i%8)), Links: simLinks(list, i),
			Healthy: true, HealthMessage: "simulated",
		})
	}
	if err := writeSimCDI(cfg.CDIDir, seed, s.gpus); err != nil {
		return nil, fmt.Errorf("write the simulated GPUs' CDI specification: %w", err)
	}
	return s, nil
}

// simUUID is a random-looking UUID (RFC 9562, version 4 layout) that only
// depends on its arguments.
func simUUID(seed string, index int, name string) string {
	b := sha256.Sum256(fmt.Appendf(nil, "remotegpu simulated gpu\n%s\n%d\n%s", seed, index, name))
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("GPU-%x-%x-%x-%x-%x", b[0:4], b[4:6], b[6:8], b[8:10], b[10:16])
}

// simLinks joins GPUs of one model with each other, as one NVSwitch does.
func simLinks(list []model, index int) []uint32 {
	if list[index].lanes == 0 {
		return nil
	}
	links := make([]uint32, len(list))
	for i, m := range list {
		if i != index && m.name == list[index].name {
			links[i] = m.lanes
		}
	}
	return links
}

func (s *simulation) Inventory(context.Context) ([]protocol.GPU, Driver, error) {
	return cloneGPUs(s.gpus), simDriver, nil
}

func (s *simulation) Sample(context.Context) ([]Sample, error) {
	now := s.now()
	samples := make([]Sample, len(s.gpus))
	for i, g := range s.gpus {
		samples[i] = simSample(g, s.models[i], now)
	}
	return samples, nil
}

func (s *simulation) Capabilities() []string { return []string{"gpu.cdi", "gpu.sim"} }

func (s *simulation) Close() error { return nil }

// simSample lets load come and go in two waves of minutes; memory, heat, power
// and clocks follow the load as they do on a real one.
func simSample(g protocol.GPU, m model, now time.Time) Sample {
	sum := sha256.Sum256([]byte(g.UUID))
	phase := float64(binary.BigEndian.Uint32(sum[:])%3600) * 2 * math.Pi / 3600
	t := float64(now.UnixMilli()) / 1000
	load := 0.5 + 0.4*math.Sin(t/97+phase) + 0.1*math.Sin(t/7+3*phase)
	load = min(max(load, 0), 1)
	heat := 0.5 + 0.4*math.Sin((t-20)/97+phase) // it lags behind
	s := Sample{
		Usage: protocol.GPUUsage{
			UUID:        g.UUID,
			Utilisation: float32(math.Round(100 * load)),
			MemoryUsed:  uint64(float64(g.Memory)*(0.05+0.8*load)) / mib * mib,
			Temperature: float32(math.Round(32 + 40*heat)),
			PowerWatts:  m.idleWatts + float32(load)*(m.watts-m.idleWatts),
			Healthy:     true,
		},
		ClockSM:     m.clockSM * float32(0.3+0.7*load),
		ClockMemory: m.clockMemory,
	}
	if m.fan {
		s.Fan = float32(math.Round(30 + 50*heat))
	}
	return s
}

// cloneGPUs copies deeply enough that a caller may change what it got.
func cloneGPUs(gpus []protocol.GPU) []protocol.GPU {
	out := make([]protocol.GPU, len(gpus))
	for i, g := range gpus {
		g.Links = append([]uint32(nil), g.Links...)
		out[i] = g
	}
	return out
}
