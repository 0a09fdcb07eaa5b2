package e2e

import (
	"encoding/json"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestDesktopByFreeRDP opens a desktop behind two NATs with the RDP client of
// the system, as remotegpu rdp starts it.
func TestDesktopByFreeRDP(t *testing.T) {
	w, p, _ := newDesktop(t)
	p.pushBusybox()
	w.in("client", "remotegpu env create plain --image "+busyboxImage)
	screen := display(2)
	onScreen := "DISPLAY=" + screen + " "
	w.start("client", "xvfb.log", "Xvfb", screen, "-screen", "0", "1280x900x24")
	shot := func(name string) string { return filepath.Join(w.shots(), name+".png") }

	t.Run("bad input", func(t *testing.T) {
		for _, tt := range []struct{ name, line, want string }{
			{"no RDP server", "remotegpu rdp plain", "its image has no RDP server"},
			{"no such environment", "remotegpu rdp nothing", "nothing"},
			{"no such host", "remotegpu rdp host:nowhere", "nowhere"},
			{"host without a server", "remotegpu rdp host:box", "nothing listens there"},
		} {
			out, err := w.try("client", tt.line)
			if err == nil || !strings.Contains(out, tt.want) || strings.Contains(out, "\n") {
				t.Errorf("%s: %v, %s", tt.name, err, out)
			}
		}
	})

	cmd := w.start("client", "rdp.log", "env", "DISPLAY="+screen, "HOME="+w.dir, "REMOTEGPU_CONFIG="+filepath.Join(w.dir, "cli.json"), w.bin+"/remotegpu", "rdp", "desk")
	began := time.Now()
	eventually(t, 60*time.Second, "the desktop is on the screen", func() (string, bool) {
		out, err := w.try("client", onScreen+"import -window root "+shot("freerdp")+" && identify -format %k "+shot("freerdp"))
		var colours int
		_, scan := fmt.Sscan(out, &colours)
		return out, err == nil && scan == nil && colours >= 20
	})
	t.Logf("xfreerdp shows the desktop %.1f s after the command", time.Since(began).Seconds())
	typed := "By FreeRDP: 1_2!"
	eventually(t, 60*time.Second, "what is typed arrives", func() (string, bool) {
		w.in("client", onScreen+"xdotool mousemove 300 300 click 1 sleep 0.5 type --delay 30 \"echo '"+typed+"' >/tmp/typed\"; "+onScreen+"xdotool key Return")
		time.Sleep(time.Second) // the next try would be typed over this one
		out, _ := w.tryInDesk("cat /tmp/typed")
		return out, out == typed
	})
	w.in("client", onScreen+"import -window root "+shot("freerdp-typed"))
	w.inDesk("printf 'from the desktop' | xclip -selection clipboard >/dev/null 2>&1")
	eventually(t, 20*time.Second, "the desktop's clipboard is the screen's", func() (string, bool) {
		out, _ := w.try("client", onScreen+"timeout 3 xclip -selection clipboard -o")
		return out, out == "from the desktop"
	})
	w.in("client", "printf 'from the screen' | "+onScreen+"xclip -selection clipboard >/dev/null 2>&1")
	eventually(t, 20*time.Second, "the screen's clipboard is the desktop's", func() (string, bool) {
		out, _ := w.tryInDesk("timeout 3 xclip -selection clipboard -o")
		return out, out == "from the screen"
	})
	t.Run("browser", func(t *testing.T) { browserInDesk(t, w, onScreen, shot("freerdp-browser")) })
	t.Run("arguments tell no password", func(t *testing.T) {
		_, password, _ := strings.Cut(w.in("client", "remotegpu ssh desk -- cat /run/desktop/credentials"), "\n")
		if out, err := exec.Command("ps", "-ewwo", "args").Output(); err != nil || len(password) < 20 || strings.Contains(string(out), password) {
			t.Errorf("password %q is seen by all, %v", password, err)
		}
	})
	_, _ = w.tryInDesk("openbox --exit") // it takes the session with it
	ended := make(chan struct{})
	go func() { cmd.Wait(); close(ended) }()
	select {
	case <-ended:
	case <-time.After(20 * time.Second):
		t.Error("the command goes on after its client has ended")
	}
	t.Run("no launch", func(t *testing.T) { noLaunch(t, w) })
	t.Run("offline", func(t *testing.T) { offlineDesktop(t, p) })
}

// browserInDesk starts the image's browser in the session, with a green page that
// is to be seen on the screen of who has the desktop.
func browserInDesk(t *testing.T, w *world, onScreen, shot string) {
	began := time.Now()
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(w.tryInDesk("cat /tmp/firefox.log"))
		}
	})
	w.inDesk("echo '<body bgcolor=lime>' >/tmp/page.html; setsid firefox-esr --kiosk file:///tmp/page.html >/tmp/firefox.log 2>&1 </dev/null &")
	eventually(t, 60*time.Second, "the browser shows its page", func() (string, bool) {
		out, err := w.try("client", onScreen+"import -window root "+shot+" && convert "+shot+" -crop 1x1+640+450 -format '%[fx:r<0.2&&g>0.8&&b<0.2] %[pixel:u]' info:")
		return out, err == nil && strings.HasPrefix(out, "1 ")
	})
	t.Logf("the browser shows its page %.1f s after the command", time.Since(began).Seconds())
	w.inDesk("pkill -f firefox-esr")
}

// noLaunch lets the person start a client.
func noLaunch(t *testing.T, w *world) {
	w.start("client", "rdp2.log", "sh", "-c", "REMOTEGPU_CONFIG="+filepath.Join(w.dir, "cli.json")+" exec "+w.bin+"/remotegpu rdp desk --no-launch --port 13389 -o json >"+w.dir+"/rdp.json")
	var row struct{ Address, User, Password, File string }
	eventually(t, 30*time.Second, "the command says where it listens", func() (string, bool) {
		out, _ := w.try("client", "cat "+w.dir+"/rdp.json")
		err := json.Unmarshal([]byte(out), &row)
		return fmt.Sprint(out, err), err == nil
	})
	if row.Address != "127.0.0.1:13389" || row.User != "user" || len(row.Password) < 20 {
		t.Errorf("%+v", row)
	}
	file := w.in("client", "cat "+row.File+" && stat -c %a "+row.File)
	if !strings.Contains(file, "full address:s:127.0.0.1:13389") || strings.Contains(file, row.Password) || !strings.HasSuffix(file, "600") {
		t.Errorf("the file is %s", file)
	}
	if out := w.in("client", `(printf '\003\000\000\023\016\340\000\000\000\000\000\001\000\010\000\003\000\000\000'; sleep 3) | timeout 10 busybox nc 127.0.0.1 13389 | od -An -tx1 | cut -c1-18`); !strings.HasPrefix(strings.TrimSpace(out), "03 00 00 13 0e d0") {
		t.Errorf("what listens answers %q", out)
	}
}

// offlineDesktop asks for a desktop whose host is away, and for a stopped one.
func offlineDesktop(t *testing.T, p *plane) {
	w, ssh := p.w, p.sshKey()
	w.in("client", "remotegpu env stop plain")
	eventually(t, 30*time.Second, "stopped is told", func() (string, bool) {
		out, err := w.try("client", "remotegpu rdp plain")
		return out, err != nil && strings.Contains(out, "remotegpu env start plain")
	})
	w.in("nat1", "ip link set wan down")
	defer w.in("nat1", "ip link set wan up")
	eventually(t, 90*time.Second, "the host is offline", func() (string, bool) {
		out := w.in("client", "remotegpu host ls")
		return out, strings.Contains(out, "offline")
	})
	offline(t, p, "desk", ssh)
}
