package installers

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// sign runs sign.sh over one folder of programs.
func sign(t *testing.T, key, dir, programs string) {
	t.Helper()
	cmd := exec.Command("sh", "sign.sh", dir, "linux-amd64="+programs)
	cmd.Env = append(os.Environ(), "RELEASE_KEY="+key)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("sign.sh: %v\n%s", err, out)
	}
}

func newKey(t *testing.T, file string) string {
	t.Helper()
	if out, err := exec.Command("openssl", "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", file).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func modTime(t *testing.T, file string) int64 {
	t.Helper()
	st, err := os.Stat(file)
	if err != nil {
		t.Fatal(err)
	}
	return st.ModTime().UnixNano()
}

func TestSign(t *testing.T) {
	dir, programs := t.TempDir(), t.TempDir()
	key := newKey(t, filepath.Join(t.TempDir(), "key"))
	write := func(name, text string) {
		if err := os.WriteFile(filepath.Join(programs, name), []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	verify := func() {
		t.Helper()
		check := exec.Command("sh", "-c", "sha256sum -c --quiet SHA256SUMS && openssl dgst -sha256 -verify release.pub -signature SHA256SUMS.sig SHA256SUMS")
		check.Dir = dir
		if out, err := check.CombinedOutput(); err != nil {
			t.Errorf("verify: %v\n%s", err, out)
		}
	}
	write("remotegpu-agent", "agent 1")
	write("remotegpu-helper", "helper 1")
	write("remotegpu.exe", "cli 1")
	sign(t, key, dir, programs) // the key itself, as a CI secret is
	verify()

	sig, agent := modTime(t, filepath.Join(dir, "SHA256SUMS.sig")), modTime(t, filepath.Join(dir, "linux-amd64/remotegpu-agent"))
	sign(t, key, dir, programs)
	if sig != modTime(t, filepath.Join(dir, "SHA256SUMS.sig")) || agent != modTime(t, filepath.Join(dir, "linux-amd64/remotegpu-agent")) {
		t.Error("a second run wrote what was right already")
	}

	write("remotegpu-agent", "agent 2")
	sign(t, key, dir, programs)
	verify()

	file := filepath.Join(t.TempDir(), "other")
	newKey(t, file)
	sign(t, file, dir, programs) // another key, as a file
	verify()
}

func TestSignRefusesWrongKey(t *testing.T) {
	cmd := exec.Command("sh", "sign.sh", t.TempDir(), "linux-amd64="+t.TempDir())
	cmd.Env = append(os.Environ(), "RELEASE_KEY=/dev/null")
	if out, err := cmd.CombinedOutput(); err == nil {
		t.Errorf("a key that is none was taken:\n%s", out)
	}
}
