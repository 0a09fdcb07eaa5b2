package ctr

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/remotegpu/remotegpu/edge-agent/gpu/wire"
	"github.com/remotegpu/remotegpu/protocol"
)

// needDriver skips a test that only a real GPU can pass.
func needDriver(t *testing.T) {
	t.Helper()
	if _, err := os.Stat("/dev/nvidiactl"); err != nil {
		t.Skip("this machine has no NVIDIA driver (no /dev/nvidiactl): make gpu-check runs this on one that has")
	}
}

// realGPUs asks bin/remotegpu-nvml, as the agent does, and has it describe the
// machine's GPUs to containers in dir.
func realGPUs(t *testing.T, dir string) []protocol.GPU {
	t.Helper()
	program, err := filepath.Abs("../../bin/remotegpu-nvml")
	if err != nil {
		t.Fatal(err)
	}
	child := exec.Command(program, "serve")
	child.Stderr = t.Output()
	in, err := child.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := child.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatalf("%v: 'make build' makes it", err)
	}
	defer child.Wait()
	defer in.Close()
	ask := func(r wire.Request) (reply wire.Reply) {
		stuck := time.AfterFunc(time.Minute, func() { child.Process.Kill() })
		defer stuck.Stop()
		if err := errors.Join(wire.Write(in, &r), wire.Read(out, &reply)); err != nil || reply.Error != "" {
			t.Fatalf("%s: %v %s", r.Op, err, reply.Error)
		}
		return reply
	}
	gpus := ask(wire.Request{ID: 1, Op: wire.OpInventory}).GPUs
	if len(gpus) == 0 {
		t.Fatal("the driver has no GPUs")
	}
	ask(wire.Request{ID: 2, Op: wire.OpCDI, CDIFile: filepath.Join(dir, "real.json"), Hook: program})
	return gpus
}

// pushGPURoot makes an image of which testdata/gpuroot.sh says what is in it.
func (r *registry) pushGPURoot(t *testing.T) {
	t.Helper()
	root := filepath.Join(t.TempDir(), "root")
	if out, err := exec.Command("testdata/gpuroot.sh", root).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	tar := exec.Command("tar", "-C", root, "-c", ".")
	pipe, err := tar.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := tar.Start(); err != nil {
		t.Fatal(err)
	}
	layer, err := io.ReadAll(pipe)
	if err := errors.Join(err, tar.Wait()); err != nil {
		t.Fatal(err)
	}
	r.push("test/gpu", "1", ocispec.ImageConfig{}, layer)
}

// librarySpec is what remotegpu-nvml writes for a driver outside of the system's
// folders: %[1]s has its library, %[2]s is the program.
const librarySpec = `{"cdiVersion":"0.5.0","kind":"nvidia.com/gpu","devices":[{"name":"GPU-1","containerEdits":{"deviceNodes":[{"path":"/dev/nvidia0","hostPath":"/dev/null"}]}}],
"containerEdits":{"hooks":[
{"hookName":"createContainer","path":"%[2]s","args":["remotegpu-nvml","create-symlinks","--link","libcuda.so.1::/usr/local/nvidia/lib64/libcuda.so"]},
{"hookName":"createContainer","path":"%[2]s","args":["remotegpu-nvml","enable-cuda-compat","--host-driver-version=570.124.06"]},
{"hookName":"createContainer","path":"%[2]s","args":["remotegpu-nvml","update-ldcache","--ldconfig-path","/sbin/ldconfig","--folder","/usr/local/nvidia/lib64"]},
{"hookName":"createContainer","path":"%[2]s","args":["remotegpu-nvml","disable-device-node-modification"]}],
"mounts":[{"hostPath":"%[1]s/libcuda.so.570.124.06","containerPath":"/usr/local/nvidia/lib64/libcuda.so.570.124.06","options":["ro","nosuid","nodev","rbind","rprivate"]}]}}`

// TestContainerFindsTheDriversLibrary has runc run the hooks of our program, so
// that the image's own loader finds a library of the host's, here an empty one.
func TestContainerFindsTheDriversLibrary(t *testing.T) {
	dir := t.TempDir()
	program := filepath.Join(dir, "remotegpu-nvml")
	for _, line := range []string{
		"CGO_ENABLED=1 go build -o " + program + " ../nvml",
		"echo 'int nothing;' | gcc -shared -fPIC -Wl,-soname,libcuda.so.1 -x c -o " + dir + "/libcuda.so.570.124.06 -",
	} {
		if out, err := exec.Command("sh", "-c", line).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "nvidia.json"), fmt.Appendf(nil, librarySpec, dir, program), 0o600); err != nil {
		t.Fatal(err)
	}
	hub.pushGPURoot(t)
	h := newHost(t, shared, func(c *Config) { c.CDIDirs = []string{dir} })
	h.up(shell("vectoradd", func(w *protocol.Workload) { w.Image, w.GPUs = "{control}/test/gpu:1", []string{"GPU-1"} }))
	h.ended()
	if out := h.output(); !strings.Contains(out, "libcuda.so.1 has no cuInit") {
		t.Errorf("the container's program says %q", out)
	}
}

// gpuScript works on a host with the driver where others have it, too.
const gpuScript = "PATH=$PATH:/usr/local/nvidia/bin; "

func TestContainerComputesOnItsRealGPU(t *testing.T) {
	needDriver(t)
	dir := t.TempDir()
	gpus := realGPUs(t, dir)
	hub.pushGPURoot(t)
	h := newHost(t, shared, func(c *Config) { c.CDIDirs = []string{dir} })
	h.up(shell(gpuScript+"ls -l /dev/nvidia*; nvidia-smi -L; echo smi $?; vectoradd", func(w *protocol.Workload) {
		w.Image, w.GPUs = "{control}/test/gpu:1", []string{gpus[0].UUID}
	}))
	c, out := h.ended(), ""
	out = h.output()
	t.Logf("in the container:\n%s", out)
	if *c.ExitCode != 0 || !strings.Contains(out, "sums on "+gpus[0].Name+" are right") {
		t.Errorf("the program ended with %d", *c.ExitCode)
	}
	if !strings.Contains(out, gpus[0].UUID) || !strings.Contains(out, "smi 0") || strings.Count(out, "GPU-") != 1 {
		t.Error("nvidia-smi does not see the one GPU")
	}
}

func TestContainerWithoutGPUsHasNone(t *testing.T) {
	needDriver(t)
	hub.pushGPURoot(t)
	h := newHost(t, shared)
	h.up(shell(gpuScript+"ls /dev; vectoradd && nvidia-smi -L", func(w *protocol.Workload) { w.Image = "{control}/test/gpu:1" }))
	c, out := h.ended(), h.output()
	t.Logf("in the container:\n%s", out)
	if *c.ExitCode == 0 || strings.Contains(out, "nvidia") || slices.Contains(strings.Fields(out), "right") {
		t.Errorf("it ended with %d", *c.ExitCode)
	}
}
