package e2e

import (
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf16"

	//lint:ignore SA1019 it is what NLA hashes passwords with
	"golang.org/x/crypto/md4"
)

const desktopImage = srvAddr + ":8443/default/desktop:1"

// newDesktop is a world with a host box and on it the environment desk, whose
// RDP server answers.
func newDesktop(t *testing.T) (*world, *plane, *machine) {
	t.Helper()
	w := newWorld(t)
	p, m := w.newPlane(), w.machine()
	t.Cleanup(func() { m.dump(t) })
	p.login()
	p.pushDesktop()
	p.join(m, "--name box")
	w.in("client", "remotegpu env create desk --wait=false --image "+desktopImage+" -- desktop")
	p.waitPhase("desk", "running", 3*time.Minute)
	eventually(t, 60*time.Second, "the RDP server listens", func() (string, bool) {
		out, err := w.try("client", "remotegpu ssh desk -- 'python3 -c \"import socket; socket.create_connection((\\\"127.0.0.1\\\", 3389))\"'")
		return out, err == nil
	})
	return w, p, m
}

// pushDesktop puts the desktop image into the registry.
func (p *plane) pushDesktop() {
	p.w.t.Helper()
	found, _ := filepath.Glob("../run/images/desktop-*")
	if len(found) != 1 {
		p.w.t.Fatal("the desktop image is not built: run make desktop-image")
	}
	image, err := filepath.Abs(found[0])
	if err != nil {
		p.w.t.Fatal(err)
	}
	token := p.w.in("client", "remotegpu token create push")
	p.w.in("client", "skopeo copy -q --dest-tls-verify=false --dest-creds token:"+token+" oci:"+image+":latest docker://"+desktopImage)
}

// inDesk runs a shell line as the desktop's user, in their X session.
func (w *world) inDesk(line string) string {
	w.t.Helper()
	out, err := w.tryInDesk(line)
	if err != nil {
		w.t.Fatalf("in the desktop: %s: %v %s", line, err, out)
	}
	return out
}

func (w *world) tryInDesk(line string) (string, error) {
	script := filepath.Join(w.dir, "line.sh")
	if err := os.WriteFile(script, []byte("export DISPLAY=:10 LANG=C.UTF-8\n"+line+"\n"), 0o644); err != nil {
		w.t.Fatal(err)
	}
	return w.try("client", "remotegpu ssh desk -- runuser -u user sh <"+script)
}

// shots is the folder of screenshots: RG_SHOTS, for people, or one that goes.
func (w *world) shots() string {
	if dir := os.Getenv("RG_SHOTS"); dir != "" {
		return dir
	}
	return w.dir
}

// desktopPage is a browser on the test page of the RDP client.
type desktopPage struct {
	*browser
	w   *world
	p   *plane
	api string // token of the API
}

func (p *plane) desktopPage() *desktopPage {
	p.w.t.Helper()
	d := &desktopPage{browser: p.w.browser("client"), w: p.w, p: p, api: p.w.in("client", "remotegpu token create page")}
	d.w.t.Cleanup(func() {
		if d.w.t.Failed() {
			var said []string
			d.try("said", nil, &said)
			d.w.t.Logf("the page said:\n%s", strings.Join(said[max(0, len(said)-40):], "\n"))
		}
	})
	d.do("grant", args{"origin": p.url, "permissions": []string{"clipboard-read", "clipboard-write"}}, nil)
	d.open()
	return d
}

// run is t.Run for a part of a test that uses the page.
func (d *desktopPage) run(name string, fn func()) {
	whole := d.t
	defer func() { d.t = whole }()
	whole.Run(name, func(t *testing.T) {
		d.t = t
		fn()
	})
}

// open loads the page anew, and with it the client.
func (d *desktopPage) open() {
	d.t.Helper()
	d.do("goto", args{"url": d.p.url + "/test-pages/rdp.html"}, nil)
	d.eval("await window.rdp.ready(); await new Promise((done) => setTimeout(done, 300))", nil) // the client's clipboard registers a moment later
}

// post asks for a token; of is a path below /api/v1.
func (d *desktopPage) post(of, wish string) (token, answer string) {
	d.t.Helper()
	answer = d.w.in("client", "curl -sSk -X POST -H 'Authorization: Bearer "+d.api+"' -H 'Content-Type: application/json' -d '"+wish+"' "+d.p.url+"/api/v1/"+of)
	var ticket struct{ Token string }
	if err := json.Unmarshal([]byte(answer), &ticket); err != nil {
		d.t.Fatalf("%v: %s", err, answer)
	}
	return ticket.Token, answer
}

func (d *desktopPage) ticket(of, wish string) string {
	d.t.Helper()
	token, answer := d.post(of, wish)
	if token == "" {
		d.t.Fatalf("no token: %s", answer)
	}
	return token
}

const desk = "workspaces/default/environments/desk/rdp"

// connected is what the page says of a try to connect.
type connected struct {
	Connected float64 // ms
	Error     *struct {
		Kind, Status int
		Text         string
	}
}

func (d *desktopPage) attempt(token string, more args) (r connected) {
	d.t.Helper()
	arg := args{"address": "wss" + strings.TrimPrefix(d.p.url, "https") + "/api/v1/rdp", "token": token, "width": 1024, "height": 768}
	for name, v := range more {
		arg[name] = v
	}
	d.do("eval", args{"js": "return await window.rdp.connect(arg)", "arg": arg}, &r)
	return r
}

// connect opens a desktop and returns when its first frame came, in ms.
func (d *desktopPage) connect(token string, more args) (ms float64) {
	d.t.Helper()
	if r := d.attempt(token, more); r.Error != nil {
		var said []string
		d.do("said", nil, &said)
		d.t.Fatalf("connect: %+v\nthe page said: %q", *r.Error, said)
	}
	d.do("wait", args{"js": "return window.rdp.firstFrame()"}, &ms)
	return ms
}

func (d *desktopPage) shot(name string) {
	d.t.Helper()
	d.do("screenshot", args{"file": filepath.Join(d.w.shots(), "rdp-"+name+".png")}, nil)
}

// waitPage waits until js, the body of a function, returns something.
func (d *desktopPage) waitPage(js string) {
	d.t.Helper()
	d.do("wait", args{"js": js, "seconds": 30}, nil)
}

// terminal waits until the desktop's terminal is drawn and gives it the keys.
func (d *desktopPage) terminal() {
	d.t.Helper()
	eventually(d.t, 30*time.Second, "a terminal runs", func() (string, bool) {
		out, err := d.w.tryInDesk("pgrep -x xterm")
		return out, err == nil
	})
	d.waitPage("return window.rdp.pixels().colours > 20")
	eventually(d.t, 30*time.Second, "the terminal takes keys", func() (string, bool) {
		d.do("click", args{"x": 300, "y": 300}, nil)
		d.do("type", args{"text": "touch /tmp/takes\n"}, nil)
		return d.inDeskWithin(3*time.Second, "ls /tmp/takes && rm /tmp/takes", "/tmp/takes")
	})
}

// inDeskWithin reports what a line in the desktop prints, when that is want or
// the time is over.
func (d *desktopPage) inDeskWithin(most time.Duration, line, want string) (out string, ok bool) {
	d.t.Helper()
	for began := time.Now(); out != want && time.Since(began) < most; {
		out, _ = d.w.tryInDesk(line)
	}
	return out, out == want
}

// typed types a shell line that leaves a file, and waits for it.
func (d *desktopPage) typed(text string) {
	d.t.Helper()
	d.do("type", args{"text": "echo '" + text + "' >/tmp/typed\n"}, nil)
	eventually(d.t, 20*time.Second, "what was typed arrives", func() (string, bool) {
		out, _ := d.w.tryInDesk("cat /tmp/typed")
		return fmt.Sprintf("%q", out), out == text
	})
}

// TestDesktopInTheBrowser drives a desktop behind two NATs with the real client
// in Chromium.
func TestDesktopInTheBrowser(t *testing.T) {
	w, p, _ := newDesktop(t)
	d := p.desktopPage()

	first := d.ticket(desk, "{}")
	t.Logf("first frame of a new session after %.0f ms", d.connect(first, nil))
	d.terminal()
	var before, after struct{ Sum, Colours int }
	d.eval("return window.rdp.pixels()", &before)
	d.typed("Hello World_1:2?")
	d.eval("return window.rdp.pixels()", &after)
	d.shot("typed")
	if before.Sum == after.Sum {
		t.Error("typing changes no pixel")
	}
	shell := w.inDesk("pgrep -o -x xterm")

	d.run("key to pixel", d.keyToPixel)
	d.run("clipboard", d.clipboards)
	d.run("resize", func() {
		d.eval("await window.rdp.resize(1200, 700)", nil)
		d.waitPage("const s = window.rdp.size(); return s.width === 1200 && s.height === 700")
		d.waitPage("return window.rdp.pixels().colours > 20")
		if out := w.inDesk("xrandr | grep '\\*'"); !strings.Contains(out, "1200x700") {
			d.t.Errorf("the X server has %s", out)
		}
		d.typed("after the resize")
		d.shot("resized")
	})
	d.run("reconnect", func() {
		for _, role := range []string{"nat1", "client"} {
			w.in(role, "ip link set wan down")
			time.Sleep(3 * time.Second) // the time that the line is cut
			w.in(role, "ip link set wan up")
			d.typed("over a cut of " + role)
		}
		p.kill()
		p.start()
		d.waitPage("return window.rdp.ended")
		eventually(d.t, 30*time.Second, "the host is back", func() (string, bool) {
			token, answer := d.post(desk, "{}")
			return answer, token != ""
		})
		d.soon("connect to first frame of a session that is there", 1500, d.firstFrames)
		if now := w.inDesk("pgrep -o -x xterm"); now != shell {
			d.t.Errorf("the session is another: terminal %s, was %s", now, shell)
		}
		d.do("click", args{"x": 300, "y": 300}, nil)
		d.typed("after the restart")
		d.shot("reconnected")
	})
	d.run("token used twice", func() {
		d.open()
		if r := d.attempt(first, nil); r.Error == nil || r.Error.Status != 401 {
			d.t.Errorf("%+v", r)
		}
		late := d.ticket(desk, "{}")
		p.sql("update tickets set expires_at = now() - interval '1 second'")
		if r := d.attempt(late, nil); r.Error == nil || r.Error.Status != 401 {
			d.t.Errorf("a token after its time: %+v", r)
		}
		if r := d.attempt("rgd_MADEUP", nil); r.Error == nil || r.Error.Status != 401 {
			d.t.Errorf("a token that was never given: %+v", r)
		}
	})
	d.run("keyboard layout", d.layouts)
	d.run("clipboard policy", d.policies)
	d.run("audit", d.audited)
	d.run("stopped", func() {
		w.in("client", "remotegpu env stop desk")
		p.waitPhase("desk", "stopped", 30*time.Second)
		if token, answer := d.post(desk, "{}"); token != "" || !strings.Contains(answer, "remotegpu env start desk") {
			d.t.Errorf("a stopped environment: %s", answer)
		}
	})
	d.run("started again", func() {
		w.in("client", "remotegpu env start desk") // its password is another one now, and nobody types it
		p.waitPhase("desk", "running", 60*time.Second)
		d.open()
		eventually(d.t, 60*time.Second, "the desktop is back", func() (string, bool) {
			r := d.attempt(d.ticket(desk, "{}"), nil)
			if r.Error != nil {
				d.open()
				return r.Error.Text, false
			}
			return "", true
		})
		d.terminal()
		d.typed("after the start")
	})
}

// soon measures until a median is not over most, three times at most: what else
// this machine does only adds.
func (d *desktopPage) soon(what string, most float64, measure func() []float64) {
	d.t.Helper()
	for range 3 {
		ms := slices.Sorted(slices.Values(measure()))
		median := ms[len(ms)/2]
		d.t.Logf("%s: median %.1f ms, p90 %.1f ms, of %d", what, median, ms[len(ms)*9/10], len(ms))
		if median <= most {
			return
		}
	}
	d.t.Errorf("%s: that is more than %.0f ms, three times", what, most)
}

// firstFrames opens a session that is there five times.
func (d *desktopPage) firstFrames() (ms []float64) {
	d.t.Helper()
	for range 5 {
		d.open()
		ms = append(ms, d.connect(d.ticket(desk, "{}"), nil))
		d.waitPage("return window.rdp.pixels().colours > 20")
	}
	return ms
}

// layouts presses keys of which letters differ between layouts.
func (d *desktopPage) layouts() {
	d.t.Helper()
	for layout, want := range map[string]string{"1033": "yz", "1031": "zy"} { // English (US), German
		d.open()
		d.connect(d.ticket(desk, `{"layout":`+layout+`}`), nil)
		d.waitPage("return window.rdp.pixels().colours > 20")
		eventually(d.t, 20*time.Second, "layout "+layout, func() (string, bool) { return d.layoutIs(want) })
	}
}

// layoutIs types two letters into a terminal of their own.
func (d *desktopPage) layoutIs(want string) (seen string, ok bool) {
	d.t.Helper()
	d.w.inDesk("pkill -f '^sh -c read line'; rm -f /tmp/layout; setsid xterm -e sh -c 'read line; echo $line >/tmp/layout' >/dev/null 2>&1 </dev/null &")
	eventually(d.t, 20*time.Second, "a terminal waits for a line", func() (string, bool) {
		out, err := d.w.tryInDesk("pgrep -f '^sh -c read line'")
		return out, err == nil
	})
	d.do("move", args{"x": 900, "y": 650}, nil) // the client takes keys while the pointer is over it
	time.Sleep(time.Second)                     // until the terminal has them; nothing tells that, so it is tried again
	d.do("type", args{"text": "yz\n"}, nil)
	return d.inDeskWithin(3*time.Second, "cat /tmp/layout", want)
}

// audited looks for a desktop's beginning and end in the audit log.
func (d *desktopPage) audited() {
	d.t.Helper()
	eventually(d.t, 10*time.Second, "a desktop's beginning and end are in the audit log", func() (string, bool) {
		out := d.w.in("client", "curl -sSk -H 'Authorization: Bearer "+d.api+"' '"+d.p.url+"/api/v1/audit?limit=500'")
		var log struct {
			Items []struct {
				Action string
				Detail struct {
					Via, Clipboard, Kind string
					Browser              bool
					Seconds              float64 `json:"ended_after_s"`
					Out                  int64   `json:"bytes_out"`
				}
			}
		}
		if err := json.Unmarshal([]byte(out), &log); err != nil {
			return err.Error() + out, false
		}
		began, ended := false, false
		for _, e := range log.Items {
			began = began || e.Action == "environment.access" && e.Detail.Via == "rdp" && e.Detail.Browser && e.Detail.Clipboard == "to-host"
			ended = ended || e.Action == "environment.access" && e.Detail.Kind == "rdp" && e.Detail.Seconds > 0 && e.Detail.Out > 1000
		}
		return fmt.Sprintf("began %v, ended %v", began, ended), began && ended
	})
}

func (d *desktopPage) keyToPixel() {
	d.t.Helper()
	d.soon("key to pixel", 50, d.keys)
	d.do("press", args{"key": "Enter"}, nil)
}

// keys measures from a key's event in the page to the next drawing.
func (d *desktopPage) keys() (times []float64) {
	d.t.Helper()
	d.do("click", args{"x": 300, "y": 300}, nil)
	for i := range 30 {
		d.eval(`window.pressed = 0; addEventListener('keydown', () => { window.pressed ||= performance.now() }, { capture: true, once: true });
			await new Promise((done) => setTimeout(done, 150))`, nil)
		d.do("press", args{"key": string(rune('a' + i%26))}, nil)
		var ms float64
		d.do("wait", args{"js": "const at = window.pressed && window.rdp.drawnAfter(window.pressed); return at ? at - window.pressed : 0"}, &ms)
		times = append(times, ms)
	}
	return times
}

// display is the name of the nth X display of this run of the tests.
func display(n int) string { return fmt.Sprintf(":%d", 100+os.Getpid()%5000*4+n) }

// ntHash is what a server that asks for NLA keeps of a password.
func ntHash(password string) string {
	h := md4.New()
	for _, u := range utf16.Encode([]rune(password)) {
		h.Write([]byte{byte(u), byte(u >> 8)})
	}
	return hex.EncodeToString(h.Sum(nil))
}

// TestDesktopOfAHost shows the desktop of the host itself, whose server asks
// for NLA: the browser does CredSSP, the agent TLS 1.2.
func TestDesktopOfAHost(t *testing.T) {
	w := newWorld(t)
	p, m := w.newPlane(), w.machine()
	t.Cleanup(func() { m.dump(t) })
	p.login()
	p.join(m, "--name box")
	d := p.desktopPage()
	if r := d.attempt(d.ticket("hosts/box/rdp", "{}"), nil); r.Error == nil || r.Error.Status != 503 {
		t.Errorf("without a server: %+v", r)
	}
	if out, err := w.try("client", "remotegpu rdp host:box --no-launch"); err == nil || !strings.Contains(out, "nothing listens there") {
		t.Errorf("without a server: %v %s", err, out)
	}
	d.run("servers that are of no use", func() { d.refusals(m) })
	sam := filepath.Join(w.dir, "sam")
	if err := os.WriteFile(sam, []byte("lab:::"+ntHash("Geheim 1")+":::\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	screen := display(0)
	m.must("setsid Xvfb " + screen + " -screen 0 1024x768x24 >/var/log/xvfb.log 2>&1 </dev/null & " +
		"for i in $(seq 300); do DISPLAY=" + screen + " xdpyinfo >/dev/null 2>&1 && break; sleep 0.1; done; " +
		"DISPLAY=" + screen + " setsid xclock -update 1 -geometry 500x500+100+100 >/dev/null 2>&1 </dev/null & " +
		"HOME=/root DISPLAY=" + screen + " setsid $(command -v freerdp-shadow-cli3 || echo freerdp-shadow-cli) /port:3389 /sec:nla /sam-file:" + sam + " >/var/log/shadow.log 2>&1 </dev/null &")
	t.Cleanup(func() { // it ends with the machine and leaves them
		os.Remove("/tmp/.X" + screen[1:] + "-lock")
		os.Remove("/tmp/.X11-unix/X" + screen[1:])
	})
	t.Cleanup(func() {
		if t.Failed() {
			out, _ := m.sh("tail -n 40 /var/log/shadow.log /var/log/xvfb.log")
			t.Log(out)
		}
	})
	eventually(t, 20*time.Second, "the RDP server listens", func() (string, bool) {
		out, err := m.sh("ss -Hltn 'sport = :3389' | grep -q .")
		return out, err == nil
	})
	if r := d.attempt(d.ticket("hosts/box/rdp", "{}"), args{"username": "lab", "password": "wrong"}); r.Error == nil {
		t.Error("a wrong password is let in")
	}
	d.open()
	t.Logf("first frame with NLA after %.0f ms", d.connect(d.ticket("hosts/box/rdp", "{}"), args{"username": "lab", "password": "Geheim 1"}))
	d.waitPage("return window.rdp.pixels().colours > 1")
	d.shot("nla")

	w.start("client", "rdp.log", "sh", "-c", "REMOTEGPU_CONFIG="+filepath.Join(w.dir, "cli.json")+" exec "+w.bin+"/remotegpu rdp host:box --no-launch --port 13389 -o json >"+w.dir+"/rdp.json")
	here := display(1)
	w.start("client", "xvfb2.log", "Xvfb", here, "-screen", "0", "1280x900x24")
	eventually(t, 20*time.Second, "the command listens", func() (string, bool) {
		out, err := w.try("client", "grep 127.0.0.1:13389 "+w.dir+"/rdp.json")
		return out, err == nil
	})
	w.start("client", "xfreerdp.log", "env", "DISPLAY="+here, "HOME="+w.dir, "sh", "-c", `exec $(command -v xfreerdp3 || echo xfreerdp) "$@"`, "sh", "/v:127.0.0.1:13389", "/u:lab", "/p:Geheim 1", "/cert:ignore", "/sec:nla")
	shot := filepath.Join(w.shots(), "freerdp-nla.png")
	eventually(t, 30*time.Second, "xfreerdp shows the host's desktop", func() (string, bool) {
		out, err := w.try("client", "DISPLAY="+here+" import -window root "+shot+" && identify -format %k "+shot)
		return out, err == nil && out != "1"
	})
}
