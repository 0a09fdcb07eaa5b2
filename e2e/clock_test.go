package e2e

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
)

// skewFile says by how many seconds a machine's clock is off, for programs that
// skewed has built.
const skewFile = "/run/clock-skew"

// skewSource reads that file: before main begins, and then ten times a second.
const skewSource = `package main

import (
	"os"
	"strconv"
	"strings"
	"time"
)

func init() {
	read := func() {
		b, _ := os.ReadFile("` + skewFile + `")
		time.Skew, _ = strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64)
	}
	read()
	go func() {
		for {
			time.Sleep(100 * time.Millisecond)
			read()
		}
	}()
}
`

// skewed builds a program that is as built but for time.Now, and returns where
// it lies: programs that shift the clock from outside reach only those that use
// the C library.
func (w *world) skewed(folder string) string {
	w.t.Helper()
	dir := filepath.Join(w.dir, "skewed-"+filepath.Base(folder))
	root := strings.TrimSpace(w.must("go", "env", "GOROOT"))
	clock := filepath.Join(root, "src/time/time.go")
	source, err := os.ReadFile(clock)
	if err != nil {
		w.t.Fatal(err)
	}
	const reading = "sec, nsec, mono := runtimeNow()\n"
	if !strings.Contains(string(source), reading) {
		w.t.Fatal("time.Now of this Go reads the clock in another way")
	}
	folder, err = filepath.Abs(folder)
	if err != nil {
		w.t.Fatal(err)
	}
	overlay, err := json.Marshal(map[string]any{"Replace": map[string]string{clock: dir + "/time.go", folder + "/skew.go": dir + "/skew.go"}})
	if err != nil {
		w.t.Fatal(err)
	}
	w.must("mkdir", dir)
	for name, content := range map[string]string{
		"time.go":      strings.ReplaceAll(string(source), reading, reading+"\tsec += Skew\n") + "\n// Skew is in seconds.\nvar Skew int64\n",
		"skew.go":      skewSource,
		"overlay.json": string(overlay),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o644); err != nil {
			w.t.Fatal(err)
		}
	}
	w.must("sh", "-c", "CGO_ENABLED=0 go build -trimpath -buildvcs=false -overlay "+dir+"/overlay.json -o "+dir+"/program "+folder)
	return dir + "/program"
}
