//go:build linux && cgo

package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/NVIDIA/nvidia-container-toolkit/pkg/nvcdi"
	"github.com/sirupsen/logrus"
)

// writeCDI writes the specification of the host's GPUs, named by UUID, to
// file. The containers it is used for get the device nodes, the driver's
// libraries and programs, and hook as the program that puts them in order.
func (d *driver) writeCDI(file, hook string) error {
	if d.root == "/" {
		if err := loadUVM("/dev/nvidia-uvm"); err != nil {
			return err
		}
	}
	log := logrus.New()
	log.SetLevel(logrus.ErrorLevel) // it warns of every optional library that a driver lacks
	namer, err := nvcdi.NewDeviceNamer(nvcdi.DeviceNameStrategyUUID)
	if err != nil {
		return err
	}
	lib, err := nvcdi.New(
		nvcdi.WithLogger(log),
		nvcdi.WithNvmlLib(d.lib),
		nvcdi.WithMode(nvcdi.ModeNvml),
		nvcdi.WithDriverRoot(d.root),
		nvcdi.WithLibrarySearchPaths(libraryDirs()),
		nvcdi.WithDeviceNamers(namer),
		nvcdi.WithNVIDIACDIHookPath(hook),
		nvcdi.WithLdconfigPath(ldconfig(d.root)),
		// It would load the driver outside of this process, and obey variables that a tenant sets.
		nvcdi.WithDisabledHooks("apply-cuda-memory-limits"),
		// The sockets of the persistence and MPS daemons are the host's: tenants must not meet there.
		nvcdi.WithFeatureFlags(nvcdi.FeatureDisableIPCDiscoverer, nvcdi.FeatureDisableNvsandboxUtils),
	)
	if err != nil {
		return fmt.Errorf("prepare CDI specification: %w", err)
	}
	spec, err := lib.GetSpec("all")
	if err != nil {
		return fmt.Errorf("make CDI specification: %w", err)
	}
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return err
	}
	if err := spec.Save(file); err != nil {
		return fmt.Errorf("write CDI specification %s: %w", file, err)
	}
	return nil
}

// loadUVM has the driver's own program load the module whose device CUDA needs,
// and which nothing else loads on a machine without a screen.
func loadUVM(device string) error {
	_, err := os.Stat(device)
	if err == nil {
		return nil
	}
	why := exec.Command("nvidia-modprobe", "-c", "0", "-u").Run()
	if _, err = os.Stat(device); err == nil {
		return nil
	}
	return fmt.Errorf("%s is not there, without which nothing computes; start the host's agent again after: nvidia-modprobe -c 0 -u (it was tried: %v)", device, why)
}

// libraryDirs is where the driver's libraries are when that is none of the
// system's folders: beside the one that this process has loaded. Empty: in the
// system's folders, or in those that ldconfig knows.
func libraryDirs() []string {
	maps, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		return nil
	}
	for line := range strings.Lines(string(maps)) {
		i := strings.Index(line, "/")
		if i < 0 || !strings.HasPrefix(filepath.Base(line[i:]), "libnvidia-ml.so") {
			continue
		}
		if dir := filepath.Dir(line[i:]); !strings.HasPrefix(dir, "/usr/lib") && !strings.HasPrefix(dir, "/lib") {
			return []string{dir}
		}
	}
	return nil
}

// ldconfig is the real program: on Ubuntu /sbin/ldconfig is a script around it
// that works only in its own file system.
func ldconfig(root string) string {
	if _, err := os.Stat(filepath.Join(root, "sbin/ldconfig.real")); err == nil {
		return "/sbin/ldconfig.real"
	}
	return "/sbin/ldconfig"
}
