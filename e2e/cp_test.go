package e2e

import (
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// copies moves files with remotegpu cp, to the environment one and back.
func copies(t *testing.T, p *plane) {
	w := p.w
	src := filepath.Join(w.dir, "cp", "src")
	back := filepath.Join(w.dir, "cp", "back")
	w.in("client", "mkdir -p "+src+"/sub/empty "+back+" && cd "+src+" && head -c 5000000 /dev/urandom >big && echo small >'sub/a b' && : >nothing && ln -s 'sub/a b' link && "+
		"for i in $(seq 100); do echo $i >sub/$i; done && chmod 640 big && chmod 700 'sub/a b' && chmod 555 sub/empty && find . ! -type l -exec touch -d 2020-02-03T04:05:06Z {} +")
	list := func(dir string) string {
		return w.in("client", "cd "+dir+" && find . -printf '%p %y %m %l ' \\( -type l -o -printf '%T@' \\) -printf '\\n' | sort && find . -type f -exec sha256sum {} + | sort")
	}
	t.Run("a folder", func(t *testing.T) {
		out := w.in("client", "remotegpu cp "+src+" one:/tmp/new && remotegpu cp one.default:/tmp/new "+back)
		if !strings.Contains(out, "Copied 104 files (4.8 MiB) to one:/tmp/new\n") {
			t.Errorf("it says %q", out)
		}
		if got, want := list(back+"/new"), list(src); got != want {
			t.Errorf("there and back it is\n%s\nwas\n%s", got, want)
		}
	})
	t.Run("streams", func(t *testing.T) {
		if out, err := w.try("client", "cat "+src+"/big | remotegpu cp - one:/tmp/streamed && remotegpu cp one:/tmp/streamed - | cmp - "+src+"/big && remotegpu cp one:/tmp/streamed one:/tmp/again && remotegpu ssh one -- sha256sum /tmp/again"); err != nil || !strings.Contains(out, strings.Fields(w.must("sha256sum", src+"/big"))[0]) {
			t.Errorf("%v: %s", err, out)
		}
	})
	t.Run("interrupted", func(t *testing.T) {
		w.in("client", "remotegpu ssh one -- 'echo old >/tmp/huge' && truncate -s 8G "+src+".huge") // more than any machine copies meanwhile
		up := w.start("client", "cp.log", "env", "REMOTEGPU_CONFIG="+filepath.Join(w.dir, "cli.json"), filepath.Join(w.bin, "remotegpu"), "cp", src+".huge", "one:/tmp/huge")
		eventually(t, 20*time.Second, "some of it is there", func() (string, bool) {
			out, _ := w.try("client", "remotegpu ssh one -- 'ls -a /tmp'")
			return out, strings.Contains(out, ".rgcp-")
		})
		w.end(up, syscall.SIGINT)
		if out := w.in("client", "remotegpu ssh one -- 'cat /tmp/huge; ls -a /tmp'"); !strings.HasPrefix(out, "old\n") || strings.Contains(out, ".rgcp-") || up.ProcessState.ExitCode() != 1 {
			t.Errorf("%v; it leaves %s", up.ProcessState, out)
		}
	})
	t.Run("errors", func(t *testing.T) {
		for line, want := range map[string]string{
			"remotegpu cp one:/none .":                   "remotegpu: one:/none: there is no such file or folder",
			"remotegpu cp " + src + "/big one:/none/x":   "remotegpu: one:/none: there is no such folder; make it first",
			"remotegpu cp none:/x .":                     "There is no environment none",
			"remotegpu cp " + src + ".huge one:/dev/shm": "remotegpu: one:/dev/shm/src.huge: the disk is full; free some of it, or copy to another folder",
		} {
			if out, err := w.try("client", line); err == nil || !strings.Contains(out, want) {
				t.Errorf("%s: %v %s", line, err, out)
			}
		}
		if out := w.in("client", "remotegpu ssh one -- ls -a /dev/shm"); out != ".\n.." {
			t.Errorf("what did not fit leaves %s", out)
		}
	})
}
