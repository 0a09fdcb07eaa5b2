package installers

import (
	"os/exec"
	"strings"
	"testing"
)

// TestReleaseBuilds: make release builds the programs of both architectures,
// and the CLI for other systems, before it signs them.
func TestReleaseBuilds(t *testing.T) {
	cmd := exec.Command("make", "-n", "release")
	cmd.Dir = ".."
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	before, _, _ := strings.Cut(string(out), "sign.sh")
	for _, arch := range []string{"amd64", "arm64"} {
		for _, program := range []string{"remotegpu", "remotegpu-agent", "remotegpu-helper", "remotegpu-nvml"} {
			if !strings.Contains(before, "-o dist/"+arch+"/"+program+" ") {
				t.Errorf("%s is not built for %s", program, arch)
			}
		}
	}
	for _, program := range []string{"darwin-amd64/remotegpu", "darwin-arm64/remotegpu", "windows-amd64/remotegpu.exe"} {
		if !strings.Contains(before, "-o dist/cli/"+program+" ") {
			t.Errorf("%s is not built", program)
		}
	}
}
