//go:build linux && cgo

package main

import (
	"github.com/NVIDIA/go-nvml/pkg/nvml"

	"github.com/remotegpu/remotegpu/protocol"
)

// linkEnds is where the NVLink lanes of one GPU end.
type linkEnds struct {
	direct   map[string]uint32 // lanes by the PCI address of the other GPU
	switched uint32            // lanes that end at an NVSwitch, which joins all GPUs of the host
}

// linkEnds counts the lanes that are up. The first link that the GPU does not
// know is past its last.
func (d *driver) linkEnds(device nvml.Device) linkEnds {
	ends := linkEnds{direct: make(map[string]uint32)}
	if !d.has("nvmlDeviceGetNvLinkState") || !d.has("nvmlDeviceGetNvLinkRemotePciInfo_v2") {
		return ends
	}
	typed := d.has("nvmlDeviceGetNvLinkRemoteDeviceType")
	for link := range nvml.NVLINK_MAX_LINKS {
		state, ret := device.GetNvLinkState(link)
		if ret == nvml.ERROR_INVALID_ARGUMENT || ret == nvml.ERROR_NOT_SUPPORTED {
			break
		}
		if ret != nvml.SUCCESS || state != nvml.FEATURE_ENABLED {
			continue
		}
		if typed {
			if kind, ret := device.GetNvLinkRemoteDeviceType(link); ret == nvml.SUCCESS && kind == nvml.NVLINK_DEVICE_TYPE_SWITCH {
				ends.switched++
				continue
			}
		}
		if remote, ret := device.GetNvLinkRemotePciInfo(link); ret == nvml.SUCCESS {
			ends.direct[pciAddress(remote)]++
		}
	}
	return ends
}

// joinLinks fills Links: lanes to the GPU of each index. Two GPUs at a switch
// have as many as the one with fewer.
func joinLinks(gpus []protocol.GPU, ends []linkEnds) {
	size := 0
	for _, g := range gpus {
		size = max(size, int(g.Index)+1)
	}
	for i := range gpus {
		lanes, any := make([]uint32, size), false
		for j, other := range gpus {
			if i == j {
				continue
			}
			n := ends[i].direct[other.PCI] + min(ends[i].switched, ends[j].switched)
			lanes[other.Index] = n
			any = any || n > 0
		}
		if any {
			gpus[i].Links = lanes
		}
	}
}
