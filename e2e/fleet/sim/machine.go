package sim

import (
	"context"
	"time"

	"github.com/remotegpu/remotegpu/edge-agent/gpu"
	"github.com/remotegpu/remotegpu/protocol"
)

// machine is what a simulated host says of itself: a GPU server of today.
type machine struct {
	name    string
	gpus    gpu.Source
	running func() int // containers
}

const (
	machineCPUs   = 128
	machineMemory = 1 << 40
	machineDisk   = 16 << 40
)

var booted = time.Now().Add(-time.Hour)

func (m *machine) inventory(ctx context.Context) protocol.Inventory {
	gpus, driver, _ := m.gpus.Inventory(ctx) // a simulation has no trouble
	return protocol.Inventory{
		Hostname: m.name, OS: "linux", OSVersion: "Debian GNU/Linux 12 (bookworm)", Kernel: "6.1.0-44-amd64", Arch: "amd64",
		Deployment: "traditional", Addresses: []string{"192.0.2.7"}, CPUModel: "AMD EPYC 9554 64-Core Processor",
		CPUs: machineCPUs, Memory: machineMemory, Disk: machineDisk, Runtime: "containerd 1.6.20",
		Driver: driver.Version, CUDA: driver.CUDA, GPUs: gpus,
	}
}

// load is its usage but for its GPUs.
func (m *machine) load() protocol.Usage {
	running := m.running()
	return protocol.Usage{
		CPUPercent: float32(min(100, 2+10*running)), MemoryUsed: uint64(1+running) << 34, DiskUsed: uint64(1+running) << 36,
		Load1: float32(running), UptimeSecs: uint64(time.Since(booted).Seconds()),
	}
}

func (m *machine) usage(ctx context.Context) protocol.Usage {
	u := m.load()
	samples, _ := m.gpus.Sample(ctx) // as above
	for _, s := range samples {
		u.GPUUsed = append(u.GPUUsed, s.Usage)
	}
	return u
}
