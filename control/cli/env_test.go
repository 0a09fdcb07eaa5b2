package cli

import (
	"context"
	"encoding/json"
	"encoding/pem"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/remotegpu/remotegpu/control/environment"
)

// TestCreateAsks: what the API lets one ask for of a host has a flag each.
func TestCreateAsks(t *testing.T) {
	a := &app{out: io.Discard, errOut: io.Discard}
	fl := a.envCreate().Flags()
	var want []string
	for f := range reflect.TypeFor[environment.Resources]().Fields() {
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		want = append(want, name)
		if name == "milli_cpu" {
			name = "cpus"
		}
		if fl.Lookup(strings.ReplaceAll(name, "_", "-")) == nil {
			t.Errorf("env create has no flag for %s", name)
		}
	}
	body, err := createFlags{gpus: 1, gpuModel: "H100", gpuMemory: "1G", cpus: 1, memory: "1G", disk: "1G", shm: "1G", pids: 1}.body("box", nil)
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(want)
	if d := cmp.Diff(want, slices.Sorted(maps.Keys(body["resources"].(map[string]any)))); d != "" {
		t.Error(d)
	}
}

// TestCreateBody: what was not said is not sent, so that the server's defaults
// hold.
func TestCreateBody(t *testing.T) {
	for _, c := range []struct {
		flags createFlags
		want  string
	}{
		{createFlags{}, `{"name":"box"}`},
		{createFlags{pids: 64, shm: "8GiB", disk: "20G", gpuMemory: "40GiB"}, `{"name":"box","resources":{"disk":21474836480,"gpu_memory":42949672960,"pids":64,"shm":8589934592}}`},
		{createFlags{gpus: 2, cpus: 0.5, memory: "1GiB", preferRegion: "eu", host: "a", user: "1000:1000", mounts: map[string]string{"/data": "d", "/a": "b"}},
			`{"affinity":{"host":"a"},"mounts":[{"target":"/a","volume":"b"},{"target":"/data","volume":"d"}],"name":"box","prefer":{"region":"eu"},` +
				`"resources":{"gpus":2,"memory":1073741824,"milli_cpu":500},"user":"1000:1000"}`},
	} {
		body, err := c.flags.body("box", nil)
		if err != nil {
			t.Fatal(err)
		}
		if got, _ := json.Marshal(body); string(got) != c.want {
			t.Errorf("%s\nwant %s", got, c.want)
		}
	}
	if _, err := (createFlags{disk: "much"}).body("box", nil); err == nil {
		t.Error("a size that is none")
	}
}

// TestServerSizes: a rate that is 0 is no cap, also where one was said before.
func TestServerSizes(t *testing.T) {
	for text, want := range map[string]int{"0": 0, "50MiB": 50 << 20, "1.5K": 1536, "-1": -1, "much": -1} {
		n := 7
		if err := sizeInto(&n)(text); err != nil {
			n = -1
		}
		if n != want {
			t.Errorf("%s is %d, want %d", text, n, want)
		}
	}
}

// TestFollowNothing: who follows a log ends it, also before it has a line.
func TestFollowNothing(t *testing.T) {
	ctx, interrupt := context.WithCancel(t.Context())
	silent := httptest.NewTLSServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		interrupt()
		<-r.Context().Done()
	}))
	defer silent.Close()
	ca := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: silent.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("REMOTEGPU_URL", silent.URL)
	t.Setenv("REMOTEGPU_TOKEN", "rgt_x")
	t.Setenv("REMOTEGPU_CA", ca)
	w := &world{t: t, config: filepath.Join(t.TempDir(), "none.json")}
	if out, code := w.runCtx(ctx, "-w", "lab", "env", "logs", "box", "-f"); code != 0 || out != "" {
		t.Errorf("status %d: %s", code, out)
	}
}
