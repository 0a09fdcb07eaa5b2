package sshconfig

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestInstall: OpenSSH reads what was installed, what the person has written
// stays, and a second time changes nothing.
func TestInstall(t *testing.T) {
	home := t.TempDir()
	t.Setenv("HOME", home)
	config := filepath.Join(home, ".ssh", "config")
	if err := os.Mkdir(filepath.Dir(config), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(config, []byte("Host other\n  Port 7\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	block := Block("https://gpu.example.org", "lab", `"/opt/remote gpu" --config "c.json"`, "/known hosts")
	for range 2 {
		file, err := Install(block)
		if err != nil {
			t.Fatal(err)
		}
		b, err := os.ReadFile(config)
		if want := "Include remotegpu.conf\nHost other\n  Port 7\n"; err != nil || string(b) != want {
			t.Errorf("%q %v, want %q", b, err, want)
		}
		out, err := exec.CommandContext(t.Context(), "ssh", "-F", file, "-G", "box.rg").Output()
		if err != nil {
			t.Fatal(err)
		}
		for _, want := range []string{`proxycommand "/opt/remote gpu" --config "c.json" ssh-proxy`, "userknownhostsfile /known hosts", "stricthostkeychecking true"} {
			if !strings.Contains(string(out), want) {
				t.Errorf("ssh -G lacks %q:\n%s", want, out)
			}
		}
	}
}
