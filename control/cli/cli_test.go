package cli

import (
	"context"
	"encoding/json"
	"strings"
	"testing"
	"time"
)

// TestMistakes: a wrong command line does nothing, says what is right, and ends
// with 2; what the server refuses ends with 1.
func TestMistakes(t *testing.T) {
	w := newWorld(t)
	for _, c := range []struct {
		line string
		code int
		says string
	}{
		{"-o xml env create box --wait=false", 2, "use table or json"},
		{"env show box", 1, "There is no environment box"},
		{"app expose box 8000 --public --private", 2, "none of the others can be"},
		{"attach box ses_zzzz", 2, "remotegpu sessions box"},
		{"env create box --gpus two", 2, `"--gpus" flag: invalid syntax`},
		{"recording policy all --keep -5", 1, "keep_days"},
		{"env lst", 2, `has no command "lst"`},
		{"env create box --gpus 99", 1, "resources.gpus: expected number <= 64"},
	} {
		out, code := w.run(strings.Fields(c.line)...)
		if code != c.code || !strings.Contains(out, c.says) || strings.Contains(out, "validation") {
			t.Errorf("%s: status %d, want %d with %q:\n%s", c.line, code, c.code, c.says, out)
		}
	}
}

// TestEmptyName: what a script makes of a variable that is not set is no name.
func TestEmptyName(t *testing.T) {
	w := &world{t: t, config: "unused"}
	for _, line := range [][]string{{"env", "rm", ""}, {"ssh", "", "--", "true"}, {"cp", "", "box:/tmp"}, {"host", "retire", ""}} {
		if out, code := w.run(line...); code != 2 || !strings.Contains(out, "an empty word") {
			t.Errorf("%q: status %d: %s", line, code, out)
		}
	}
}

// TestPortInUse: a second server on a port says what to do.
func TestPortInUse(t *testing.T) {
	w := newWorld(t)
	ctx, stop := context.WithTimeout(t.Context(), time.Minute)
	defer stop()
	out, code := w.runCtx(ctx, "server", "--data-dir", t.TempDir(), "--database-url", w.database, "--listen", strings.TrimPrefix(w.client.URL, "https://"), "--ssh-listen", freeAddress(t))
	if code != 1 || !strings.Contains(out, "address already in use; end what listens there, or choose another address") {
		t.Errorf("status %d: %s", code, out)
	}
}

// TestJSON: what has nothing to show but that it is done says so in JSON too.
func TestJSON(t *testing.T) {
	w := newWorld(t)
	w.join("gpu-1")
	for _, line := range []string{"env create box --wait=false", "app expose box 8000", "app rm box 8000", "host label gpu-1 a=b", "host tag gpu-1 x",
		"workspace add admin@localhost --role owner", "host cordon gpu-1", "env rm box"} {
		out, code := w.run(append([]string{"-o", "json"}, strings.Fields(line)...)...)
		if i := strings.IndexByte(out, '{'); code != 0 || i < 0 || !json.Valid([]byte(out[i:])) { // before it is what stderr says of waiting
			t.Errorf("%s: status %d: %s", line, code, out)
		}
	}
}

// TestStopWaiting: who does not wait any longer for an environment is told that
// it goes on, and where to look.
func TestStopWaiting(t *testing.T) {
	w := newWorld(t)
	w.join("gpu-1")
	ctx, stop := context.WithTimeout(t.Context(), 5*time.Second)
	defer stop()
	out, code := w.runCtx(ctx, "env", "create", "box")
	if code != 1 || !strings.Contains(out, "environment box is pending and goes on by itself: remotegpu env events box") {
		t.Errorf("status %d: %s", code, out)
	}
}

// TestHelpNames: the variables stand in the help, and their values do not.
func TestHelpNames(t *testing.T) {
	t.Setenv("REMOTEGPU_CONFIG", "/somewhere/cli.json")
	t.Setenv("REMOTEGPU_DATABASE_URL", "postgres://remotegpu:secret@db/remotegpu")
	w := &world{t: t, config: "unused"}
	for _, command := range []string{"server", "server mosquitto"} {
		if out, _ := w.run(append(strings.Fields(command), "--help")...); !strings.Contains(out, "$REMOTEGPU_DATABASE_URL") || strings.Contains(out, "secret") {
			t.Error(out)
		}
	}
	if out, _ := w.run("env", "ls", "--help"); !strings.Contains(out, "$REMOTEGPU_CONFIG") || strings.Contains(out, "somewhere") {
		t.Error(out)
	}
	if out, _ := w.run("env", "create", "--help"); strings.Contains(out, "[]") || !strings.Contains(out, "--mount /path/in/it=NAME") {
		t.Error(out)
	}
}
