package cli

import (
	"net"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra"
)

// offered runs what the shell runs when somebody presses Tab at the end of line.
func (w *world) offered(line string) string {
	w.t.Helper()
	out, code := w.run(append([]string{"__complete"}, strings.Split(line, " ")...)...)
	words, _, ok := strings.Cut(out, "Completion ended")
	if code != 0 || !ok {
		w.t.Errorf("%s: %s", line, out)
	}
	return strings.Join(strings.Fields(strings.ReplaceAll(words, "\n", " ; ")), " ")
}

// TestComplete: what the server has is what the shell offers.
func TestComplete(t *testing.T) {
	w := newWorld(t)
	w.join("gpu-1")
	for _, line := range []string{"workspace create lab", "env create box --wait=false", "-w lab env create other --wait=false", "app expose box 8000 --name demo", "token create laptop", "host join"} {
		if out, code := w.run(strings.Fields(line)...); code != 0 {
			t.Fatalf("%s: %s", line, out)
		}
	}
	for line, want := range map[string]string{
		"ssh ":                        `^box pending ; :4 ;$`,
		"ssh b":                       `^box pending ; :4 ;$`,
		"ssh x":                       `^:4 ;$`,
		"ssh other.":                  `^other.default ; other.lab ; other.library ; :4 ;$`,
		"-w lab attach ":              `^other pending ; :4 ;$`,
		"rdp ":                        `^box pending ; :4 ;$`,
		"rdp host:":                   `^host:gpu-1 offline ; :4 ;$`,
		"forward ":                    `^box pending ; :4 ;$`,
		"forward box ":                `^:4 ;$`,
		"env stop ":                   `^box pending ; :4 ;$`,
		"env create ":                 `^:4 ;$`,
		"env create x --host ":        `^gpu-1 offline ; :4 ;$`,
		"env create x --restart ":     `^always ; on-failure ; never ; :4 ;$`,
		"cp ":                         `^box: pending ; :2 ;$`,
		"cp train.py ":                `^box: pending ; :2 ;$`,
		"cp box:/tmp/":                `^:0 ;$`,
		"host drain ":                 `^gpu-1 offline ; :4 ;$`,
		"host label gpu-1 ":           `^:4 ;$`,
		"host revoke ":                `tok_\w+ 0 of 1 used ; .*:4 ;$`,
		"host ls --status ":           `^online ; offline ; maintenance ; error ; :4 ;$`,
		"app open box ":               `^demo ; :4 ;$`,
		"app rm box ":                 `^demo ; :4 ;$`,
		"token rm ":                   `^tok_\w+ laptop ; :4 ;$`,
		"-w ":                         `^default ; lab ; library ; :4 ;$`,
		"-o ":                         `^table ; json ; :4 ;$`,
		"env ls -o ":                  `^table ; json ; :4 ;$`,
		"scheduler ":                  `^first_fit ; best_fit ; least_loaded ; round_robin ; random ; :4 ;$`,
		"recording policy ":           `^off ; terminal ; all ; :4 ;$`,
		"recording ls --env ":         `^box pending ; :4 ;$`,
		"ssh box --share ":            `^none ; watch ; write ; :4 ;$`,
		"workspace add a@b --role ":   `^owner ; admin ; member ; viewer ; :4 ;$`,
		"workspace remove ":           `^admin@localhost owner ; :4 ;$`,
		"key add ":                    `^pub ; :8 ;$`,
		"server mosquitto x --host ":  `^:4 ;$`,
		"server mosquitto ":           `^:16 ;$`,
		"play ":                       `^:4 ;$`,
		"attach box ":                 `^:4 ;$`, // it does not run
		"host gpu maintenance gpu-1 ": `^:4 ;$`,
	} {
		if got := w.offered(line); !regexp.MustCompile(want).MatchString(got) {
			t.Errorf("%q offers %q, want %s", line, got, want)
		}
	}
}

// TestCompleteAlone: without a login, or a server that answers, nothing is
// offered, said or waited for.
func TestCompleteAlone(t *testing.T) {
	w := &world{t: t, config: t.TempDir() + "/none.json"}
	if got := w.offered("ssh "); got != ":4 ;" {
		t.Errorf("without a login: %q", got)
	}
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	a := &app{profile: w.config}
	if _, err := a.save(profile{URL: "https://" + silent.Addr().String(), Token: "rgt_x", Pin: "sha256//x"}); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	if got := w.offered("ssh "); got != ":4 ;" || time.Since(began) > completeWithin+5*time.Second {
		t.Errorf("a silent server: %q after %v", got, time.Since(began))
	}
}

// TestCompleteAll: each word in capitals of a usage line is completed, or is
// known to be something that nobody but the person has.
func TestCompleteAll(t *testing.T) {
	own := " NAME URL COMMAND KEY=VALUE PORT GROUP TAG "
	a := &app{profile: t.TempDir() + "/none.json"}
	words := a.arguments()
	var walk func(cmd *cobra.Command)
	walk = func(cmd *cobra.Command) {
		for i, usage := range strings.Fields(cmd.Use)[1:] {
			word := plainWord(usage)
			if word == "--" || strings.Contains(own, " "+word+" ") {
				continue
			}
			if cmd.ValidArgsFunction == nil || pick(words, cmd.Parent(), word) == nil {
				t.Errorf("%s: argument %d, %s, is not completed", cmd.CommandPath(), i+1, usage)
			}
		}
		for _, c := range cmd.Commands() {
			walk(c)
		}
	}
	walk(a.root())
}
