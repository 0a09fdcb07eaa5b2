package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// A listener is mosquitto_sub at a broker that has taken its subscriptions.
type listener struct {
	*exec.Cmd
	w    *world
	file string
}

// listen starts mosquitto_sub and returns when the broker has answered it.
func (w *world) listen(logName, args string) *listener {
	w.t.Helper()
	l := &listener{w: w, file: filepath.Join(w.dir, logName)}
	// -d says what the broker answers, and lines come at once.
	l.Cmd = w.start("client", logName, "sh", "-c", "exec stdbuf -oL mosquitto_sub -d "+args)
	eventually(w.t, 20*time.Second, "the broker answers a subscription", func() (string, bool) {
		out := tail(l.file)
		return out, strings.Contains(out, "received SUBACK")
	})
	return l
}

// heard returns what has come, without what mosquitto_sub says of its work.
func (l *listener) heard() string {
	l.w.t.Helper()
	b, err := os.ReadFile(l.file)
	if err != nil {
		l.w.t.Fatal(err)
	}
	var heard strings.Builder
	for line := range strings.Lines(string(b)) {
		if !strings.HasPrefix(line, "Client ") && !strings.HasPrefix(line, "Subscribed ") {
			heard.WriteString(line)
		}
	}
	return heard.String()
}

// until waits until all of want have been heard, gives what may come twice a
// second more, and ends.
func (l *listener) until(t *testing.T, want ...string) string {
	t.Helper()
	eventually(t, 60*time.Second, strings.Join(want, ", ")+" is heard", func() (string, bool) {
		out := l.heard()
		for _, s := range want {
			if !strings.Contains(out, s) {
				return out, false
			}
		}
		return out, true
	})
	time.Sleep(time.Second)
	l.w.end(l.Cmd, syscall.SIGTERM)
	return l.heard()
}
