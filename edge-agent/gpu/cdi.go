package gpu

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"tags.cncf.io/container-device-interface/specs-go"

	"github.com/remotegpu/remotegpu/protocol"
)

// cdiKind is NVIDIA's own vendor and class, so that other tools find the
// devices where they look for them.
const cdiKind = "nvidia.com/gpu"

// cdiFile is the specification of the real GPUs: one per host.
const cdiFile = "remotegpu-nvidia.json"

// writeSimCDI writes a specification that gives a container /dev/null in place
// of each GPU. Its name holds the seed: several simulated hosts may share a machine.
func writeSimCDI(dir, seed string, gpus []protocol.GPU) error {
	spec := specs.Spec{Version: "0.5.0", Kind: cdiKind}
	for _, g := range gpus {
		spec.Devices = append(spec.Devices, specs.Device{
			Name: g.UUID,
			ContainerEdits: specs.ContainerEdits{
				Env:         []string{"REMOTEGPU_SIMULATED=1"},
				DeviceNodes: []*specs.DeviceNode{{Path: fmt.Sprintf("/dev/nvidia%d", g.Index), HostPath: "/dev/null"}},
			},
		})
	}
	body, err := json.MarshalIndent(spec, "", "  ")
	if err != nil {
		return err
	}
	sum := sha256.Sum256([]byte(seed))
	return replaceFile(filepath.Join(dir, fmt.Sprintf("remotegpu-sim-%x.json", sum[:6])), body)
}

// RemoveCDI removes every specification in dir that this package wrote.
func RemoveCDI(dir string) error {
	entries, err := os.ReadDir(dir)
	if os.IsNotExist(err) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), "remotegpu-") && strings.HasSuffix(e.Name(), ".json") {
			if err := os.Remove(filepath.Join(dir, e.Name())); err != nil && !os.IsNotExist(err) {
				return err
			}
		}
	}
	return nil
}

// replaceFile writes body to path in one step, and leaves a file that already
// says the same alone: runtimes watch the folder.
func replaceFile(path string, body []byte) error {
	if old, err := os.ReadFile(path); err == nil && bytes.Equal(old, body) {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	temp, err := os.CreateTemp(filepath.Dir(path), ".remotegpu-*.tmp")
	if err != nil {
		return err
	}
	defer os.Remove(temp.Name()) // fails after the rename, as it should
	_, err = temp.Write(body)
	if err == nil {
		err = temp.Chmod(0o644)
	}
	if closeErr := temp.Close(); err == nil {
		err = closeErr
	}
	if err != nil {
		return err
	}
	return os.Rename(temp.Name(), path)
}
