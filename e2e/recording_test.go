package e2e

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

// recordingsOn makes the server's store for recordings a small disk, and
// returns its folder and the server's flags.
func (w *world) recordingsOn(size string) (dir string, flags []string) {
	w.t.Helper()
	dir = filepath.Join(w.dir, "recordings")
	w.must("sh", "-c", "mkdir "+dir+" && mount -t tmpfs -o size="+size+" tmpfs "+dir)
	w.t.Cleanup(func() { w.must("umount", "-l", dir) })
	return dir, []string{"--blob-url", "file://" + dir}
}

// recordingStoreFull fills that disk. Where sessions are to be recorded, none
// goes on without; the person reads why, and all is well when there is room.
func recordingStoreFull(t *testing.T, p *plane, dir, ssh string) {
	w := p.w
	ssh = strings.Replace(ssh, "-o LogLevel=ERROR", "", 1)
	begin := map[string]string{
		"ssh":           ssh + " keep.default@" + srvAddr + " 'echo begun'",
		"a terminal":    ssh + " -tt keep.default@" + srvAddr + " 'echo begun' </dev/null",
		"sftp":          "echo 'ls /bin/busybox' | " + strings.NewReplacer("ssh -F", "sftp -F", "-p 2222", "-P 2222").Replace(ssh) + " -b - keep.default@" + srvAddr + " && echo begun",
		"remotegpu ssh": "remotegpu ssh keep -- echo begun",
	}
	works := func(when string) {
		t.Helper()
		for name, line := range begin {
			if out, err := w.try("client", line); err != nil || !strings.Contains(out, "begun") {
				t.Errorf("%s %s: %v %s", name, when, err, out)
			}
		}
	}
	w.in("client", "remotegpu recording policy all")
	works("while there is room")
	var id string
	eventually(t, 20*time.Second, "it is recorded", func() (string, bool) {
		out := w.in("client", "remotegpu recording ls -o json")
		for _, id = range regexp.MustCompile(`rec_[0-9a-z]{20}`).FindAllString(out, -1) {
			if played, _ := w.try("client", "remotegpu play --speed 100 "+id); strings.Contains(played, "begun") {
				return out, true
			}
		}
		return out, false
	})

	under := w.start("client", "recorded.log", "sh", "-c", ssh+" keep.default@"+srvAddr+" 'while :; do echo on and on; sleep 0.2; done' 2>&1")
	eventually(t, 20*time.Second, "a session is under way", func() (string, bool) {
		said := tail(filepath.Join(w.dir, "recorded.log"))
		return said, strings.Contains(said, "on and on")
	})
	w.must("sh", "-c", "cat /dev/zero >"+dir+"/filler 2>/dev/null || true")
	const why = "the store for recordings takes no more"
	ended := make(chan error, 1)
	go func() { ended <- under.Wait() }()
	select {
	case err := <-ended:
		if said := tail(filepath.Join(w.dir, "recorded.log")); err == nil || !strings.Contains(said, why) {
			t.Errorf("the session under way ends with %v, %q", err, said)
		}
	case <-time.After(90 * time.Second):
		t.Error("a session that is not recorded goes on")
	}
	for name, line := range begin {
		began := time.Now()
		out, err := w.try("client", line)
		if err == nil || strings.Contains(out, "begun") || !strings.Contains(out, why) {
			t.Errorf("%s, while the store is full: %v %s", name, err, out)
		}
		if took := time.Since(began); took > atOnce {
			t.Errorf("%s: it is said after %v", name, took)
		}
	}
	if out, err := w.try("client", "remotegpu env ls && remotegpu play --speed 100 "+id); err != nil || !strings.Contains(out, "begun") {
		t.Errorf("what needs no room: %v %s", err, out)
	}
	if err := os.Remove(filepath.Join(dir, "filler")); err != nil {
		t.Fatal(err)
	}
	works("when there is room again")
	w.in("client", "remotegpu recording policy off")
}
