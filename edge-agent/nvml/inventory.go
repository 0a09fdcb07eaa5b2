//go:build linux && cgo

package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/NVIDIA/go-nvml/pkg/nvml"

	"github.com/remotegpu/remotegpu/edge-agent/gpu/wire"
	"github.com/remotegpu/remotegpu/protocol"
)

func (d *driver) inventory(reply *wire.Reply) error {
	version, ret := d.lib.SystemGetDriverVersion()
	if ret != nvml.SUCCESS {
		return explain(ret)
	}
	reply.Driver.Version = version
	if cuda, ret := d.lib.SystemGetCudaDriverVersion(); ret == nvml.SUCCESS {
		reply.Driver.CUDA = fmt.Sprintf("%d.%d", cuda/1000, cuda%1000/10)
	}
	var links []linkEnds
	err := d.devices(func(index int, device nvml.Device) {
		g, ok := d.describe(index, device)
		if !ok {
			return
		}
		reply.GPUs = append(reply.GPUs, g)
		links = append(links, d.linkEnds(device))
	})
	joinLinks(reply.GPUs, links)
	return err
}

// describe reads what does not change while the driver is loaded. What a GPU
// does not tell stays zero; one without a UUID cannot be named at all.
func (d *driver) describe(index int, device nvml.Device) (protocol.GPU, bool) {
	uuid, ret := device.GetUUID()
	if ret != nvml.SUCCESS {
		return protocol.GPU{}, false
	}
	g := protocol.GPU{Index: uint32(index), UUID: uuid, NUMANode: -1, Healthy: true}
	if v, ret := device.GetName(); ret == nvml.SUCCESS {
		g.Name = v
	}
	if v, ret := device.GetBrand(); ret == nvml.SUCCESS {
		g.Brand = brands[v]
	}
	if v, ret := device.GetMemoryInfo(); ret == nvml.SUCCESS {
		g.Memory = v.Total
	}
	if major, minor, ret := device.GetCudaComputeCapability(); ret == nvml.SUCCESS {
		g.Capability = fmt.Sprintf("%d.%d", major, minor)
	}
	if v, ret := device.GetEnforcedPowerLimit(); ret == nvml.SUCCESS {
		g.PowerLimit = float32(v) / 1000
	}
	if v, ret := device.GetTemperatureThreshold(nvml.TEMPERATURE_THRESHOLD_SLOWDOWN); ret == nvml.SUCCESS {
		g.TempLimit = float32(v)
	}
	if v, ret := device.GetPciInfo(); ret == nvml.SUCCESS {
		g.PCI = pciAddress(v)
		g.NUMANode = d.numaNode(g.PCI)
	}
	d.describeNewer(&g, device)
	return g, true
}

// describeNewer reads what libraries before driver 470 may lack.
func (d *driver) describeNewer(g *protocol.GPU, device nvml.Device) {
	if d.has("nvmlDeviceGetArchitecture") {
		if v, ret := device.GetArchitecture(); ret == nvml.SUCCESS {
			g.Architecture = architectures[v]
		}
	}
	if d.has("nvmlDeviceGetNumGpuCores") {
		if v, ret := device.GetNumGpuCores(); ret == nvml.SUCCESS {
			g.CUDACores = uint32(v)
		}
	}
	if d.has("nvmlDeviceGetMigMode") {
		if current, _, ret := device.GetMigMode(); ret == nvml.SUCCESS && current == nvml.DEVICE_MIG_ENABLE {
			g.MIG, g.Healthy = true, false
			g.HealthMessage = fmt.Sprintf("MIG mode is on and GPUs are given out whole: turn it off with nvidia-smi -i %d -mig 0", g.Index)
		}
	}
	if d.has("nvmlDeviceGetRemappedRows") {
		_, _, pending, failed, ret := device.GetRemappedRows()
		switch {
		case ret != nvml.SUCCESS:
		case failed:
			g.Healthy, g.HealthMessage = false, "a broken row of its memory could not be replaced by a spare one: have the GPU repaired"
		case pending && g.Healthy:
			g.HealthMessage = "a broken row of its memory is replaced at the next reset: reboot the host when nobody uses it"
		}
	}
}

// brands as the driver's own tools print them.
var brands = map[nvml.BrandType]string{
	nvml.BRAND_QUADRO: "Quadro", nvml.BRAND_TESLA: "Tesla", nvml.BRAND_NVS: "NVS", nvml.BRAND_GRID: "GRID",
	nvml.BRAND_GEFORCE: "GeForce", nvml.BRAND_TITAN: "Titan", nvml.BRAND_QUADRO_RTX: "Quadro RTX",
	nvml.BRAND_NVIDIA_RTX: "NVIDIA RTX", nvml.BRAND_NVIDIA: "NVIDIA", nvml.BRAND_GEFORCE_RTX: "GeForce RTX", nvml.BRAND_TITAN_RTX: "Titan RTX",
}

var architectures = map[nvml.DeviceArchitecture]string{
	nvml.DEVICE_ARCH_KEPLER: "Kepler", nvml.DEVICE_ARCH_MAXWELL: "Maxwell", nvml.DEVICE_ARCH_PASCAL: "Pascal",
	nvml.DEVICE_ARCH_VOLTA: "Volta", nvml.DEVICE_ARCH_TURING: "Turing", nvml.DEVICE_ARCH_AMPERE: "Ampere",
	nvml.DEVICE_ARCH_ADA: "Ada Lovelace", nvml.DEVICE_ARCH_HOPPER: "Hopper", nvml.DEVICE_ARCH_BLACKWELL: "Blackwell", nvml.DEVICE_ARCH_RUBIN: "Rubin",
}

// pciAddress is the device's name in /sys/bus/pci/devices; its function is
// always 0.
func pciAddress(p nvml.PciInfo) string {
	return fmt.Sprintf("%04x:%02x:%02x.0", p.Domain, p.Bus, p.Device)
}

// numaNode returns -1 where the system has or knows none.
func (d *driver) numaNode(pci string) int32 {
	text, err := os.ReadFile(filepath.Join(d.root, "sys/bus/pci/devices", pci, "numa_node"))
	if err != nil {
		return -1
	}
	node, err := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 32)
	if err != nil {
		return -1
	}
	return int32(node)
}
