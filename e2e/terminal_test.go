package e2e

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"
)

// page is the browser's terminal.
type page struct {
	*browser
	origin, base, token string
}

// open starts a program in the page's terminal, or joins a session.
func (g *page) open(t *testing.T, with args) (session string) {
	t.Helper()
	with["base"], with["token"] = g.base, g.token
	js, err := json.Marshal(with)
	if err != nil {
		t.Fatal(err)
	}
	g.eval("return term.open("+string(js)+")", &session)
	return session
}

// wait waits until a condition on the page's terminal holds.
func (g *page) wait(js string) {
	g.t.Helper()
	g.do("wait", args{"js": "return " + js, "seconds": 60 * slower}, nil)
}

// TestBrowserTerminal drives xterm.js over console/terminal.js in Chromium.
func TestBrowserTerminal(t *testing.T) {
	w := newWorld(t)
	p, m := w.newPlane(), w.machine()
	t.Cleanup(func() { m.dump(t) })
	p.login()
	p.pushBusybox()
	p.join(m, "--name box")
	w.in("client", "remotegpu env create one --image "+busyboxImage)
	b := w.browser("client")
	b.do("goto", args{"url": p.url + "/test-pages/terminal.html"}, nil)
	g := &page{b, p.url, "/api/v1/workspaces/default/environments/one", w.in("client", "remotegpu token create browser")}
	t.Run("shell", func(t *testing.T) { g.shell(t) })
	t.Run("survives", func(t *testing.T) { g.survives(t, p, m) })
	t.Run("a reader that stands still", func(t *testing.T) { g.standsStill(t) })
	t.Run("a large paste", func(t *testing.T) { g.pastes(t) })
	t.Run("another page", func(t *testing.T) { g.reloads(t, p) })
	t.Run("a recording", func(t *testing.T) { g.plays(t, w) })
}

// shell types with the keyboard, and resizes the window.
func (g *page) shell(t *testing.T) {
	g.open(t, args{})
	g.do("click", args{"x": 400, "y": 300}, nil)
	g.do("type", args{"text": "echo $((6*7)) $TERM; stty size\n"}, nil)
	g.wait("/\\n42 xterm-256color\\n\\d+ \\d+/.test(term.screen())")
	var before string
	g.eval("return term.size()", &before)
	g.do("viewport", args{"width": 900, "height": 600}, nil)
	g.wait("term.size() !== '" + before + "'")
	g.do("type", args{"text": "stty size; printf '\\e[1;32mgreen\\e[0m\\n'; exit 3\n"}, nil)
	g.wait("term.end() && /\\ngreen/.test(term.screen())") // xterm.js shows a little later
	var screen string
	var end struct{ Code int }
	g.eval("return term.screen()", &screen)
	g.eval("return term.end()", &end)
	if end.Code != 3 {
		t.Errorf("the shell ended with %d, want 3", end.Code)
	}
	sizes := 0
	last := ""
	for line := range strings.SplitSeq(screen, "\n") {
		var rows, cols int
		if n, _ := fmt.Sscanf(line, "%d %d", &rows, &cols); n == 2 && rows > 9 {
			if sizes++; line == last {
				t.Errorf("the size is %s before and after the window has another", line)
			}
			last = line
		}
	}
	if sizes != 2 {
		t.Errorf("%d sizes on the screen, want 2:\n%s", sizes, screen)
	}
}

// survives cuts all there is to cut while lines are typed.
func (g *page) survives(t *testing.T, p *plane, m *machine) {
	g.open(t, args{"command": survivor})
	g.wait("term.output().includes('ready')")
	var lines []string
	for i := range 600 {
		lines = append(lines, fmt.Sprintf("line-%d-%s", i, strings.Repeat("x", i%50)))
	}
	js, err := json.Marshal(lines)
	if err != nil {
		t.Fatal(err)
	}
	g.eval("term.work("+string(js)+").then(() => { window.typed = true; })", nil)
	for range 3 {
		p.w.reset("client")
		time.Sleep(700 * time.Millisecond) // of work, between two cuts
		p.w.reset("host")
		time.Sleep(700 * time.Millisecond)
	}
	p.kill()
	p.start()
	m.kill(t, "remotegpu-agent run")
	p.w.end(p.cmd, syscall.SIGTERM)
	p.start()
	g.wait("window.typed")
	g.eval("term.type('\\x04')", nil)
	g.wait("term.end()")
	var got string
	var end struct{ Code int }
	g.eval("return term.output()", &got)
	g.eval("return term.end()", &end)
	want, sum := "ready\n", ""
	for i, line := range lines {
		b := sha256.Sum256([]byte(sum + line))
		sum = hex.EncodeToString(b[:])
		want += fmt.Sprintln(i+1, sum)
	}
	if got = strings.ReplaceAll(got, "\r\n", "\n"); got != want || end.Code != 7 {
		t.Errorf("status %d, want 7; the transcript has %d bytes, want %d, and is another", end.Code, len(got), len(want))
	}
	var states []bool
	if g.eval("return term.states()", &states); len(states) < 4 {
		t.Errorf("the page was told of %d changes of its connection", len(states))
	}
}

// standsStill: the program waits for a reader that takes nothing, and goes on.
func (g *page) standsStill(t *testing.T) {
	g.eval("term.hold()", nil)
	g.open(t, args{"command": "yes 0123456789"})
	g.wait("term.bytes() > 1000000")
	var before, after int
	eventually(t, 20*time.Second, "the output stands still", func() (string, bool) {
		g.eval("return term.bytes()", &before)
		time.Sleep(500 * time.Millisecond)
		g.eval("return term.bytes()", &after)
		return fmt.Sprint(after-before, " bytes came"), after == before
	})
	if after > 3<<20 {
		t.Errorf("%d bytes came before the program stood still, the window is 2 MiB", after)
	}
	g.eval("term.release()", nil)
	g.wait(fmt.Sprintf("term.bytes() > %d", after+4<<20))
	g.eval("term.close()", nil)
}

// pastes sends more than any window holds to a program that is slow to read.
func (g *page) pastes(t *testing.T) {
	const size = 8 << 20
	g.open(t, args{"command": "sleep 2; sha256sum", "plain": true})
	g.eval(fmt.Sprintf("return term.paste({ letter: 'z', size: %d })", size), nil)
	g.wait("term.end()")
	var got string
	g.eval("return term.output()", &got)
	if sum := sha256.Sum256([]byte(strings.Repeat("z", size))); !strings.HasPrefix(got, hex.EncodeToString(sum[:])) {
		t.Errorf("the program has read something else: %q", got)
	}
}

// reloads leaves a session with the page and joins it from the next.
func (g *page) reloads(t *testing.T, p *plane) {
	session := g.open(t, args{})
	g.eval("term.type('echo before\\n')", nil)
	g.wait("/\\nbefore/.test(term.screen())")
	g.do("goto", args{"url": p.url + "/test-pages/terminal.html"}, nil)
	g.open(t, args{"id": session})
	g.wait("/\\nbefore/.test(term.screen())")
	g.eval("term.type('echo after; exit\\n')", nil)
	g.wait("term.end() && /\\nafter/.test(term.screen())")
}

// plays shows in the page what another session has shown.
func (g *page) plays(t *testing.T, w *world) {
	w.in("client", "remotegpu recording policy terminal")
	g.open(t, args{})
	g.eval("term.type('i=0; while [ $i -lt 3 ]; do i=$((i+1)); echo shown $i; sleep 0.2; done; exit\\n')", nil)
	g.wait("term.end()")
	var all struct {
		Items []struct {
			ID      string
			EndedAt *time.Time `json:"ended_at"`
		}
	}
	eventually(t, 20*time.Second, "the recording is whole", func() (string, bool) {
		out := w.in("client", "remotegpu recording ls -o json")
		err := json.Unmarshal([]byte(out), &all)
		return out, err == nil && len(all.Items) == 1 && all.Items[0].EndedAt != nil
	})
	g.do("goto", args{"url": "about:blank"}, nil)
	g.do("goto", args{"url": g.origin + "/test-pages/terminal.html"}, nil)
	var duration float64
	g.eval(fmt.Sprintf("return term.replay({ url: '/api/v1/workspaces/default/recordings/%s', token: '%s', speed: 4 })", all.Items[0].ID, g.token), &duration)
	if duration < 0.3 || duration > 20 {
		t.Errorf("the recording is %v s long", duration)
	}
	g.wait("/\\nshown 1\\nshown 2\\nshown 3/.test(term.screen())")
}
