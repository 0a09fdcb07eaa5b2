package e2e

import (
	"bufio"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"hash"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/creack/pty"
)

// survivor is the interactive program: it counts lines, and chains a checksum
// of all that it has read.
const survivor = `stty -echo; echo ready; n=0; s=; while read -r l; do n=$((n+1)); s=$(printf %s "$s$l" | sha256sum); s=${s%% *}; echo "$n $s"; done; exit 7`

// hurried is the pace of somebody who types faster than people do.
const hurried = 5 * time.Millisecond

// work is a person at a terminal, whose transcript is checked line by line.
type work struct {
	t    *testing.T
	cmd  *exec.Cmd
	tty  *os.File
	rnd  *rand.Rand
	pace time.Duration // least between two lines
	stop chan struct{} // closed: no more is typed
	quit chan struct{} // closed when nothing more is
	over chan struct{} // closed when nothing more comes

	mu    sync.Mutex // guards what follows
	typed int
	sum   string    // of all that was typed
	want  []string  // lines of the transcript that are to come
	got   int       // lines that have come
	bad   string    // the first that was not as it must be
	shown hash.Hash // of all that has come
}

// newWork starts remotegpu ssh at a terminal in the client's network.
func (w *world) newWork(t *testing.T, env string, seed uint64, pace time.Duration) *work {
	t.Helper()
	k := &work{t: t, rnd: rand.New(rand.NewPCG(seed, 1)), pace: pace, want: []string{"ready"}, shown: sha256.New(),
		stop: make(chan struct{}), quit: make(chan struct{}), over: make(chan struct{})}
	k.cmd = exec.Command("nsenter", "--net=/run/netns/"+w.ns("client"), filepath.Join(w.bin, "remotegpu"), "ssh", "-t", env, "--", survivor)
	k.cmd.Env = append(os.Environ(), "REMOTEGPU_CONFIG="+filepath.Join(w.dir, "cli.json"), "TERM=xterm")
	log, err := os.Create(filepath.Join(w.dir, "ssh-"+env+".log"))
	if err != nil {
		t.Fatal(err)
	}
	k.cmd.Stderr = log // what is said about the connection
	if k.tty, err = pty.Start(k.cmd); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		k.cmd.Process.Kill()
		k.tty.Close()
		if t.Failed() {
			t.Logf("remotegpu ssh %s said:\n%s", env, tail(log.Name()))
		}
	})
	go k.read()
	return k
}

// read checks the transcript; typing begins when the program is ready.
func (k *work) read() {
	defer close(k.over)
	in := bufio.NewReader(k.tty)
	for {
		line, err := in.ReadString('\n')
		if err != nil {
			return
		}
		if k.came(strings.TrimRight(line, "\r\n")) == 1 {
			go k.typing()
		}
	}
}

// came takes a line of the transcript and returns how many have come.
func (k *work) came(line string) int {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.got++
	io.WriteString(k.shown, line+"\r\n")
	want := "no more"
	if len(k.want) > 0 {
		want = k.want[0]
		k.want = k.want[1:]
	}
	if line != want && k.bad == "" {
		k.bad = fmt.Sprintf("line %d is %q, want %q", k.got, line, want)
	}
	return k.got
}

func (k *work) typing() {
	defer close(k.quit)
	for {
		select {
		case <-k.stop:
			fmt.Fprint(k.tty, "\x04")
			return
		case <-time.After(k.pace + time.Duration(k.rnd.Int64N(int64(8*k.pace)))):
		}
		raw := make([]byte, 1+k.rnd.IntN(60))
		for i := range raw {
			raw[i] = byte(k.rnd.Uint32())
		}
		line := hex.EncodeToString(raw)
		k.mu.Lock()
		k.typed++
		b := sha256.Sum256([]byte(k.sum + line))
		k.sum = hex.EncodeToString(b[:])
		k.want = append(k.want, fmt.Sprint(k.typed, " ", k.sum))
		k.mu.Unlock()
		fmt.Fprint(k.tty, line+"\n")
	}
}

// lines returns how many have come and what was wrong, empty if nothing.
func (k *work) lines() (n int, wrong string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.got, k.bad
}

// until waits for the transcript to have n lines, as eventually does.
func (k *work) until(n int, within time.Duration) {
	k.t.Helper()
	within *= slower
	for deadline := time.Now().Add(within); ; time.Sleep(time.Millisecond) {
		got, _ := k.lines()
		if got >= n {
			return
		}
		if time.Now().After(deadline) {
			k.t.Fatalf("the transcript has %d lines after %v, not %d", got, within, n)
		}
	}
}

// finish ends the program, of which every line must have come, and returns the
// checksum of what was shown, in hex.
func (k *work) finish() string {
	k.t.Helper()
	close(k.stop)
	<-k.quit
	err := k.cmd.Wait()
	if k.cmd.ProcessState.ExitCode() != 7 {
		k.t.Errorf("remotegpu ssh ended with %v, want the program's 7", err)
	}
	<-k.over
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.bad != "" {
		k.t.Error(k.bad)
	}
	if len(k.want) > 0 {
		k.t.Errorf("%d lines of the transcript have not come, the next is %q", len(k.want), k.want[0])
	}
	k.t.Logf("%d lines typed", k.typed)
	return hex.EncodeToString(k.shown.Sum(nil))
}
