package protocol

import "fmt"

const maxGPUs = 64

// Inventory is what the agent found on its host. Nobody types it in.
type Inventory struct {
	Hostname   string   `cbor:"1,keyasint"`
	OS         string   `cbor:"2,keyasint"`           // "linux", "windows"
	OSVersion  string   `cbor:"3,keyasint,omitempty"` // "Debian GNU/Linux 12"
	Kernel     string   `cbor:"4,keyasint,omitempty"`
	Arch       string   `cbor:"5,keyasint"`           // GOARCH
	Deployment string   `cbor:"6,keyasint"`           // "traditional", "kubernetes", "hybrid"
	Addresses  []string `cbor:"7,keyasint,omitempty"` // of the host's own interfaces
	CPUModel   string   `cbor:"8,keyasint,omitempty"`
	CPUs       uint32   `cbor:"9,keyasint"`            // logical cores
	Memory     uint64   `cbor:"10,keyasint"`           // bytes
	Disk       uint64   `cbor:"11,keyasint"`           // bytes, of the file system that holds containers
	Runtime    string   `cbor:"12,keyasint,omitempty"` // "containerd 1.6.20"
	Driver     string   `cbor:"13,keyasint,omitempty"` // NVIDIA driver
	CUDA       string   `cbor:"14,keyasint,omitempty"` // highest CUDA version that the driver serves
	GPUs       []GPU    `cbor:"15,keyasint,omitempty"`
}

// GPU is one device as NVML describes it.
type GPU struct {
	Index         uint32   `cbor:"1,keyasint"`
	UUID          string   `cbor:"2,keyasint"` // "GPU-…"
	Name          string   `cbor:"3,keyasint"` // "NVIDIA H100 80GB HBM3"
	Brand         string   `cbor:"4,keyasint,omitempty"`
	Architecture  string   `cbor:"5,keyasint,omitempty"` // "Hopper"
	Memory        uint64   `cbor:"6,keyasint"`           // bytes
	CUDACores     uint32   `cbor:"7,keyasint,omitempty"`
	Capability    string   `cbor:"8,keyasint,omitempty"`  // compute capability, "9.0"
	PowerLimit    float32  `cbor:"9,keyasint,omitempty"`  // watts
	TempLimit     float32  `cbor:"10,keyasint,omitempty"` // °C at which it slows down
	MIG           bool     `cbor:"11,keyasint,omitempty"` // mode enabled
	NUMANode      int32    `cbor:"12,keyasint"`           // -1: unknown
	PCI           string   `cbor:"13,keyasint,omitempty"` // "0000:1b:00.0"
	Links         []uint32 `cbor:"14,keyasint,omitempty"` // NVLink lanes to the GPU of each index
	Healthy       bool     `cbor:"15,keyasint"`
	HealthMessage string   `cbor:"16,keyasint,omitempty"`
}

// Validate checks what a hostile host could send too much of.
func (inv *Inventory) Validate() error {
	if len(inv.GPUs) > maxGPUs || len(inv.Addresses) > 64 || anyTooLong(inv.Addresses) ||
		tooLong(inv.Hostname, inv.OS, inv.OSVersion, inv.Kernel, inv.Arch, inv.Deployment, inv.CPUModel, inv.Runtime, inv.Driver, inv.CUDA) {
		return fmt.Errorf("inventory is over its limits")
	}
	for _, g := range inv.GPUs {
		if g.UUID == "" || len(g.Links) > maxGPUs || len(g.HealthMessage) > MaxText ||
			tooLong(g.UUID, g.Name, g.Brand, g.Architecture, g.Capability, g.PCI) {
			return fmt.Errorf("inventory of GPU %.40q is over its limits", g.UUID)
		}
	}
	return nil
}
