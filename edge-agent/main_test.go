package main

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"remotegpu-agent": main})
}

// TestScripts drives the program as people and install.sh do.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:       "testdata/script",
		Condition: func(name string) (bool, error) { return name == "root" && os.Getuid() == 0, nil },
		Setup: func(e *testscript.Env) error {
			e.Setenv("REMOTEGPU_ENV_FILE", filepath.Join(e.WorkDir, "agent.env"))
			e.Setenv("REMOTEGPU_DATA_DIR", filepath.Join(e.WorkDir, "data"))
			e.Setenv("REMOTEGPU_RUN_DIR", filepath.Join(e.WorkDir, "run"))
			e.Setenv("REMOTEGPU_LOG_DIR", filepath.Join(e.WorkDir, "log"))
			e.Setenv("REMOTEGPU_CONTAINERD", filepath.Join(e.WorkDir, "containerd.sock"))
			e.Setenv("BIN", filepath.SplitList(e.Getenv("PATH"))[0]) // where this program is, and nothing else
			return nil
		},
	})
}

func TestLoadEnv(t *testing.T) {
	path := filepath.Join(t.TempDir(), "agent.env")
	text := "# comment\nRGT_A='a b'\nRGT_B=\"b\"\n\nRGT_C=c=d\nRGT_SET=file\nRGT_EMPTY=''\nno assignment\n"
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("RGT_SET", "outside")
	want := map[string]string{"RGT_A": "a b", "RGT_B": "b", "RGT_C": "c=d", "RGT_SET": "outside", "RGT_EMPTY": ""}
	for name := range want {
		if name != "RGT_SET" {
			t.Setenv(name, "") // so that it is put back
			os.Unsetenv(name)
		}
	}
	if err := loadEnv(path); err != nil {
		t.Fatal(err)
	}
	for name, value := range want {
		if got := os.Getenv(name); got != value {
			t.Errorf("%s is %q, want %q", name, got, value)
		}
	}
	if err := loadEnv(path + "x"); err != nil {
		t.Errorf("without a file: %v", err)
	}
}

func FuzzAssignment(f *testing.F) {
	for _, s := range []string{"A=b", "A='", "='x'", "A=\"b\"", "# A=b", "A='b\""} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, line string) {
		if name, _, ok := assignment(line); ok && name == "" {
			t.Errorf("%q has an empty name", line)
		}
	})
}
