//go:build linux && cgo

package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/NVIDIA/go-nvml/pkg/nvml"

	"github.com/remotegpu/remotegpu/edge-agent/gpu/wire"
	"github.com/remotegpu/remotegpu/protocol"
)

// driver is NVML with what old versions of it lack.
type driver struct {
	lib  nvml.Interface
	root string // of the file system with /sys and the driver's files
	up   bool   // Init succeeded
}

func newDriver(lib nvml.Interface, root string) *driver { return &driver{lib: lib, root: root} }

func (d *driver) answer(r *wire.Request) *wire.Reply {
	reply := new(wire.Reply)
	err := d.start()
	if err == nil {
		switch r.Op {
		case wire.OpInventory:
			err = d.inventory(reply)
		case wire.OpSample:
			err = d.sample(reply)
		case wire.OpCDI:
			err = d.writeCDI(r.CDIFile, r.Hook)
		default:
			err = fmt.Errorf("unknown operation %.40q: agent and remotegpu-nvml are of different versions, install the agent again", r.Op)
		}
	}
	if err != nil {
		return &wire.Reply{Error: protocol.Cut(strings.ReplaceAll(err.Error(), "\n", "; "))}
	}
	return reply
}

// start loads the library once. A failure ends nothing: the agent starts this
// process anew, and with it the library, which may be another one by then.
func (d *driver) start() error {
	if d.up {
		return nil
	}
	ret := d.lib.Init()
	if ret == nvml.ERROR_LIBRARY_NOT_FOUND {
		if file := d.elsewhere(); file != "" {
			d.lib = nvml.New(nvml.WithLibraryPath(file))
			ret = d.lib.Init()
		}
	}
	d.up = ret == nvml.SUCCESS
	return explain(ret)
}

// localDir holds the driver on machines whose system is read-only or an image:
// container-optimised systems, and containers of a cloud's.
const localDir = "/usr/local/nvidia"

// elsewhere is the library where the system's loader does not look; empty: not there.
func (d *driver) elsewhere() string {
	file := filepath.Join(d.root, localDir, "lib64/libnvidia-ml.so.1")
	if _, err := os.Stat(file); err != nil {
		return ""
	}
	return file
}

// explain turns why NVML does not start into what to do.
func explain(ret nvml.Return) error {
	switch ret {
	case nvml.SUCCESS:
		return nil
	case nvml.ERROR_LIBRARY_NOT_FOUND:
		return errors.New("the NVIDIA driver is not installed (libnvidia-ml.so.1 was not found): install it; the GPUs show up by themselves")
	case nvml.ERROR_DRIVER_NOT_LOADED:
		return errors.New("the NVIDIA driver is installed but not loaded: run nvidia-smi and look into the kernel log, or reboot the host")
	case nvml.ERROR_LIB_RM_VERSION_MISMATCH:
		return errors.New("the NVIDIA driver was updated while the old one is loaded: reboot the host")
	case nvml.ERROR_NO_PERMISSION:
		return errors.New("the NVIDIA driver refuses access to its devices: run the agent as root")
	}
	return fmt.Errorf("the NVIDIA driver does not start (%s): run nvidia-smi and look into the kernel log", nvml.ErrorString(ret))
}

// has reports whether the loaded library knows a function. Calling one that it
// lacks would end this process.
func (d *driver) has(symbol string) bool { return d.lib.Extensions().LookupSymbol(symbol) == nil }

// devices calls each with every GPU that answers. One that is lost does not
// hide the others.
func (d *driver) devices(each func(index int, device nvml.Device)) error {
	count, ret := d.lib.DeviceGetCount()
	if ret != nvml.SUCCESS {
		return explain(ret)
	}
	for i := range min(count, wire.MaxGPUs) {
		if device, ret := d.lib.DeviceGetHandleByIndex(i); ret == nvml.SUCCESS {
			each(i, device)
		}
	}
	return nil
}
