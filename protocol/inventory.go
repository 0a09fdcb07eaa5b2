package protocol

import "fmt"

const maxGPUs = 64

// Inventory is what the agent found on its host. Nobody types it in.
type Inventory struct {
	Hostname   string   `cbor:"1,keyasint" json:"hostname"`
	OS         string   `cbor:"2,keyasint" json:"os"`                             // "linux", "windows"
	OSVersion  string   `cbor:"3,keyasint,omitempty" json:"os_version,omitempty"` // "Debian GNU/Linux 12"
	Kernel     string   `cbor:"4,keyasint,omitempty" json:"kernel,omitempty"`
	Arch       string   `cbor:"5,keyasint" json:"arch"`                          // GOARCH
	Deployment string   `cbor:"6,keyasint" json:"deployment"`                    // "traditional", "kubernetes", "hybrid"
	Addresses  []string `cbor:"7,keyasint,omitempty" json:"addresses,omitempty"` // of the host's own interfaces
	CPUModel   string   `cbor:"8,keyasint,omitempty" json:"cpu_model,omitempty"`
	CPUs       uint32   `cbor:"9,keyasint" json:"cpus"`                         // logical cores
	Memory     uint64   `cbor:"10,keyasint" json:"memory"`                      // bytes
	Disk       uint64   `cbor:"11,keyasint" json:"disk"`                        // bytes, of the file system that holds containers
	Runtime    string   `cbor:"12,keyasint,omitempty" json:"runtime,omitempty"` // "containerd 1.6.20"
	Driver     string   `cbor:"13,keyasint,omitempty" json:"driver,omitempty"`  // NVIDIA driver
	CUDA       string   `cbor:"14,keyasint,omitempty" json:"cuda,omitempty"`    // highest CUDA version that the driver serves
	GPUs       []GPU    `cbor:"15,keyasint,omitempty" json:"gpus,omitempty"`
}

// GPU is one device as NVML describes it.
type GPU struct {
	Index         uint32   `cbor:"1,keyasint" json:"index"`
	UUID          string   `cbor:"2,keyasint" json:"uuid"` // "GPU-…"
	Name          string   `cbor:"3,keyasint" json:"name"` // "NVIDIA H100 80GB HBM3"
	Brand         string   `cbor:"4,keyasint,omitempty" json:"brand,omitempty"`
	Architecture  string   `cbor:"5,keyasint,omitempty" json:"architecture,omitempty"` // "Hopper"
	Memory        uint64   `cbor:"6,keyasint" json:"memory"`                           // bytes
	CUDACores     uint32   `cbor:"7,keyasint,omitempty" json:"cuda_cores,omitempty"`
	Capability    string   `cbor:"8,keyasint,omitempty" json:"capability,omitempty"`  // compute capability, "9.0"
	PowerLimit    float32  `cbor:"9,keyasint,omitempty" json:"power_limit,omitempty"` // watts
	TempLimit     float32  `cbor:"10,keyasint,omitempty" json:"temp_limit,omitempty"` // °C at which it slows down
	MIG           bool     `cbor:"11,keyasint,omitempty" json:"mig,omitempty"`        // mode enabled
	NUMANode      int32    `cbor:"12,keyasint" json:"numa_node"`                      // -1: unknown
	PCI           string   `cbor:"13,keyasint,omitempty" json:"pci,omitempty"`        // "0000:1b:00.0"
	Links         []uint32 `cbor:"14,keyasint,omitempty" json:"links,omitempty"`      // NVLink lanes to the GPU of each index
	Healthy       bool     `cbor:"15,keyasint" json:"healthy"`
	HealthMessage string   `cbor:"16,keyasint,omitempty" json:"health_message,omitempty"`
}

// Validate checks what a hostile host could send too much of. GPU UUIDs are unique.
func (inv *Inventory) Validate() error {
	if len(inv.GPUs) > maxGPUs || len(inv.Addresses) > 64 || anyTooLong(inv.Addresses) ||
		tooLong(inv.Hostname, inv.OS, inv.OSVersion, inv.Kernel, inv.Arch, inv.Deployment, inv.CPUModel, inv.Runtime, inv.Driver, inv.CUDA) ||
		tooMany(inv.Memory, inv.Disk) {
		return fmt.Errorf("inventory is over its limits")
	}
	seen := make(map[string]bool, len(inv.GPUs))
	for _, g := range inv.GPUs {
		if g.UUID == "" || len(g.Links) > maxGPUs || len(g.HealthMessage) > MaxText ||
			tooLong(g.UUID, g.Name, g.Brand, g.Architecture, g.Capability, g.PCI) ||
			!finite(g.PowerLimit, g.TempLimit) || tooMany(g.Memory) {
			return fmt.Errorf("inventory of GPU %.40q is over its limits", g.UUID)
		}
		if seen[g.UUID] {
			return fmt.Errorf("GPU %.80s stands twice in the inventory", g.UUID)
		}
		seen[g.UUID] = true
	}
	return nil
}
