// Package gpu tells the agent which GPUs its host has and how they are doing.
//
// It owns the sources of that truth (NVML in a child process, a simulation, none)
// and the CDI specification that lets a container get a GPU by its UUID. It
// does not decide who gets one, and never loads the driver's library itself.
// Its invariant: no driver, however broken, blocks or ends the agent; a GPU
// that stops answering stays in the inventory, unhealthy, with the reason.
package gpu

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/remotegpu/remotegpu/edge-agent/gpu/wire"
	"github.com/remotegpu/remotegpu/protocol"
)

// Source knows the GPUs of this host. Its methods may be called concurrently
// and return what is known at once; only the first Inventory may wait, until
// the driver has answered or failed for the first time.
type Source interface {
	// Inventory returns every GPU seen since the agent started, by index. The
	// error is one sentence for a person that says what to do; GPUs that were
	// known before stay in the list, unhealthy.
	Inventory(context.Context) ([]protocol.GPU, Driver, error)
	// Sample returns how each GPU of the inventory does now, in its order. One
	// that does not answer has Healthy false and zeros.
	Sample(context.Context) ([]Sample, error)
	// Capabilities are for Hello: "gpu.cdi" or "gpu.sim".
	Capabilities() []string
	Close() error
}

// Driver is the NVIDIA driver; empty where there is none.
type Driver = wire.Driver

// Sample is one GPU at one moment: what Status carries, and what only the
// telemetry batch does.
type Sample = wire.Sample

// DefaultCDIDir is a folder of the agent's own, to be searched before
// /var/run/cdi: NVIDIA's services write the same devices there, and a device
// that two files of one folder name cannot be used at all.
const DefaultCDIDir = "/run/remotegpu/cdi"

// CDIName is the name by which a container gets the GPU.
func CDIName(uuid string) string { return cdiKind + "=" + uuid }

// Config says where GPUs come from. Its zero value is "auto".
type Config struct {
	Spec        string        // "auto" (the same as empty), "nvml", "none", or "sim:8xH100,1xT4"
	NVMLProgram string        // the child, absolute path; it is also the hook program of the CDI specification
	CDIDir      string        // where the CDI specification is written; empty: DefaultCDIDir
	Seed        string        // simulated UUIDs grow from it: something that is this host's alone and stays; empty: the hostname
	Every       time.Duration // time between two samples; 0: 5 s
	Log         *slog.Logger  // nil: slog.Default()
}

// Open returns the source that cfg.Spec names. It fails only when the words of
// the spec are wrong or a simulation cannot write its CDI specification: a
// missing driver is what Inventory reports.
func Open(ctx context.Context, cfg Config) (Source, error) {
	if cfg.CDIDir == "" {
		cfg.CDIDir = DefaultCDIDir
	}
	if cfg.Every <= 0 {
		cfg.Every = 5 * time.Second
	}
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	switch cfg.Spec {
	case "", "auto":
		if driverPresent("/") {
			return openChild(ctx, cfg), nil
		}
		cfg.Log.Info("no NVIDIA driver on this host, so it has no GPUs")
		return none{}, nil
	case "nvml":
		return openChild(ctx, cfg), nil
	case "none":
		return none{}, nil
	}
	if models, ok, err := parseSim(cfg.Spec); ok {
		if err != nil {
			return nil, err
		}
		return openSim(cfg, models)
	}
	return nil, fmt.Errorf("unknown GPU source %q: say auto, nvml, none or, for machines without a GPU, sim:8xH100", cfg.Spec)
}

// driverPresent reports whether the driver's device or library is below root.
func driverPresent(root string) bool {
	for _, pattern := range []string{
		"dev/nvidiactl",
		"usr/lib/*-linux-gnu/libnvidia-ml.so.1",
		"usr/lib*/libnvidia-ml.so.1",
		"usr/local/nvidia/lib64/libnvidia-ml.so.1",
	} {
		found, err := filepath.Glob(filepath.Join(root, pattern))
		if err == nil && len(found) > 0 {
			return true
		}
	}
	return false
}

// none is a host without GPUs.
type none struct{}

func (none) Inventory(context.Context) ([]protocol.GPU, Driver, error) { return nil, Driver{}, nil }
func (none) Sample(context.Context) ([]Sample, error)                  { return nil, nil }
func (none) Capabilities() []string                                    { return nil }
func (none) Close() error                                              { return nil }

// seed returns what simulated UUIDs grow from.
func (c Config) seed() string {
	if c.Seed != "" {
		return c.Seed
	}
	name, err := os.Hostname()
	if err != nil {
		return "remotegpu"
	}
	return name
}
