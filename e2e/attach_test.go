package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/creack/pty"
)

// seat is somebody at a terminal where remotegpu runs.
type seat struct {
	t   *testing.T
	cmd *exec.Cmd
	tty *os.File

	mu    sync.Mutex // guards shown
	shown string
	over  chan struct{} // closed when nothing more comes
}

// sit starts remotegpu at a terminal in the client's network, with a login.
func (w *world) sit(t *testing.T, login string, args ...string) *seat {
	t.Helper()
	s := &seat{t: t, over: make(chan struct{})}
	s.cmd = exec.Command("nsenter", append([]string{"--net=/run/netns/" + w.ns("client"), filepath.Join(w.bin, "remotegpu")}, args...)...)
	s.cmd.Env = append(os.Environ(), "REMOTEGPU_CONFIG="+filepath.Join(w.dir, login), "TERM=xterm")
	var err error
	if s.tty, err = pty.Start(s.cmd); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		s.cmd.Process.Kill()
		s.tty.Close()
	})
	go func() {
		defer close(s.over)
		for buf := make([]byte, 4096); ; {
			n, err := s.tty.Read(buf)
			s.mu.Lock()
			s.shown += string(buf[:n])
			s.mu.Unlock()
			if err != nil {
				return
			}
		}
	}()
	return s
}

func (s *seat) screen() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.shown
}

func (s *seat) types(text string) { fmt.Fprint(s.tty, text) }

// sees waits until a text is on the screen.
func (s *seat) sees(text string) {
	s.t.Helper()
	eventually(s.t, 20*time.Second, fmt.Sprintf("%q on the screen of %q", text, s.cmd.Args[2:]), func() (string, bool) {
		screen := s.screen()
		return screen, strings.Contains(screen, text)
	})
}

// ends waits until the program has, with a status.
func (s *seat) ends(status int) {
	s.t.Helper()
	late := time.AfterFunc(20*time.Second, func() { s.cmd.Process.Kill() })
	defer late.Stop()
	s.cmd.Wait()
	<-s.over
	if got := s.cmd.ProcessState.ExitCode(); got != status {
		s.t.Errorf("%q ended with %d, want %d:\n%s", s.cmd.Args[2:], got, status, s.screen())
	}
}

// attaches: a member of the workspace watches, or types into, what its owner
// shares, and nothing else; the owner leaves a session and comes back.
func attaches(t *testing.T, p *plane) {
	w := p.w
	w.in("client", "echo 'correct horse battery' | remotegpu user create second@example.org && remotegpu workspace add second@example.org && "+
		"echo 'correct horse battery' | REMOTEGPU_CONFIG="+w.dir+"/second.json remotegpu login "+p.url+` --email second@example.org --password-stdin --pin "$(sed -n 's/.*"pin": "\(.*\)".*/\1/p' `+w.dir+`/cli.json)"`)
	second := "REMOTEGPU_CONFIG=" + w.dir + "/second.json remotegpu "
	w.in("client", "remotegpu ssh one -- yes | head -1 && for _ in $(seq 100); do remotegpu sessions one | grep -q ' yes$' || exit 0; sleep 0.1; done; echo yes, whose output nobody reads, runs on; exit 1")
	for _, share := range []string{"none", "watch", "write"} {
		t.Run(share, func(t *testing.T) {
			owner := w.sit(t, "cli.json", "ssh", "one", "--share", share)
			owner.types("echo first $((6*7))\n")
			owner.sees("first 42")
			if share == "none" {
				if out, err := w.try("client", second+"attach one; echo status $?"); err != nil || !strings.Contains(out, "no session that you may attach to runs in one") || !strings.HasSuffix(out, "status 1") {
					t.Errorf("%v %s", err, out)
				}
				owner.types("exit 4\n")
				owner.ends(4)
				return
			}
			other := w.sit(t, "second.json", "attach", "one")
			other.sees("first 42") // what was there before
			if out := w.in("client", second+"sessions one"); !strings.Contains(out, share) || strings.Count(out, "ses_") != 1 {
				t.Errorf("sessions: %s", out)
			}
			other.types("echo typed $((7*7))\n")
			if share == "write" {
				owner.sees("typed 49") // or both would type into one line
			}
			owner.types("echo second $((8*8))\n")
			other.sees("second 64")
			other.types("\n~.")
			other.ends(255)
			owner.types("echo third $((9*9))\n")
			owner.sees("third 81")
			owner.types("~d")
			owner.ends(0)
			again := w.sit(t, "cli.json", "attach", "one")
			again.sees("third 81")
			again.types("exit 5\n")
			again.ends(5)
			if all := owner.screen() + again.screen(); share == "watch" && strings.Contains(all, "typed") {
				t.Errorf("who may only watch has typed:\n%s", all)
			}
		})
	}
}
