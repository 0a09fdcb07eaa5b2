//go:build linux && cgo

package main

import (
	"github.com/NVIDIA/go-nvml/pkg/nvml"

	"github.com/remotegpu/remotegpu/edge-agent/gpu/wire"
	"github.com/remotegpu/remotegpu/protocol"
)

func (d *driver) sample(reply *wire.Reply) error {
	return d.devices(func(_ int, device nvml.Device) {
		uuid, ret := device.GetUUID()
		if ret != nvml.SUCCESS {
			return
		}
		s := wire.Sample{Usage: protocol.GPUUsage{UUID: uuid}}
		s.Usage.Healthy = d.readSample(&s, device)
		reply.Samples = append(reply.Samples, s)
	})
}

// readSample reports whether the GPU still works: it is lost once one reading
// says so, whatever the others do.
func (d *driver) readSample(s *wire.Sample, device nvml.Device) bool {
	works := true
	good := func(ret nvml.Return) bool {
		if ret == nvml.ERROR_GPU_IS_LOST || ret == nvml.ERROR_RESET_REQUIRED {
			works = false
		}
		return ret == nvml.SUCCESS
	}
	if v, ret := device.GetUtilizationRates(); good(ret) {
		s.Usage.Utilisation = float32(v.Gpu)
	}
	if v, ret := d.memoryUsed(device); good(ret) {
		s.Usage.MemoryUsed = v
	}
	if v, ret := device.GetTemperature(nvml.TEMPERATURE_GPU); good(ret) {
		s.Usage.Temperature = float32(v)
	}
	if v, ret := device.GetPowerUsage(); good(ret) {
		s.Usage.PowerWatts = float32(v) / 1000
	}
	if v, ret := device.GetFanSpeed(); good(ret) {
		s.Fan = float32(v)
	}
	if v, ret := device.GetClockInfo(nvml.CLOCK_SM); good(ret) {
		s.ClockSM = float32(v)
	}
	if v, ret := device.GetClockInfo(nvml.CLOCK_MEM); good(ret) {
		s.ClockMemory = float32(v)
	}
	return works
}

// memoryUsed is what programs use, as nvidia-smi has it. Drivers before 510
// count in what they keep for themselves: 615 MiB of an H200.
func (d *driver) memoryUsed(device nvml.Device) (uint64, nvml.Return) {
	if d.lib.Extensions().LookupSymbol("nvmlDeviceGetMemoryInfo_v2") == nil {
		v, ret := device.GetMemoryInfo_v2()
		return v.Used, ret
	}
	v, ret := device.GetMemoryInfo()
	return v.Used, ret
}
