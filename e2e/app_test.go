package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

const starterImage = srvAddr + ":8443/default/starter:1"

// pushStarter puts the starter image into the registry.
func (p *plane) pushStarter() {
	p.w.t.Helper()
	images, err := filepath.Abs("../run/images")
	if err != nil {
		p.w.t.Fatal(err)
	}
	image := strings.Fields(p.w.must("sh", "-c", "mkdir -p "+images+" && ../deploy/images/build.sh starter "+images+" 2>/dev/null"))
	token := p.w.in("client", "remotegpu token create push")
	p.w.in("client", "skopeo copy -q --dest-tls-verify=false --dest-creds token:"+token+" oci:"+image[len(image)-1]+":latest docker://"+starterImage)
}

// opened is what remotegpu jupyter answers.
type opened struct {
	URL string
	App struct{ URL string }
}

func (p *plane) jupyter(env string) (o opened) {
	p.w.t.Helper()
	if err := json.Unmarshal([]byte(p.w.in("client", "remotegpu jupyter "+env+" -o json")), &o); err != nil {
		p.w.t.Fatal(err)
	}
	return o
}

// password returns the first admin's.
func (p *plane) password() (email, password string) {
	p.w.t.Helper()
	b, err := os.ReadFile(filepath.Join(p.w.dir, "srv/first-login.json"))
	if err != nil {
		p.w.t.Fatal(err)
	}
	var first struct{ Email, Password string }
	if err := json.Unmarshal(b, &first); err != nil {
		p.w.t.Fatal(err)
	}
	return first.Email, first.Password
}

// logIn opens an app in the browser and logs in by the page that comes.
func (p *plane) logIn(b *browser, app string) {
	b.t.Helper()
	email, password := p.password()
	b.do("goto", args{"url": app}, nil)
	var at any // false while a page loads
	if b.eval("return location.href", &at); !strings.HasPrefix(fmt.Sprint(at), p.url+"/apps/login?") {
		b.t.Fatalf("%s leads to %s, want the login page", app, at)
	}
	b.do("fill", args{"selector": "input[name=email]", "text": email}, nil)
	b.do("fill", args{"selector": "input[name=password]", "text": password}, nil)
	b.do("click", args{"selector": "button[type=submit]"}, nil)
	eventually(b.t, 60*time.Second, "the login leads to the app", func() (string, bool) {
		if fault := b.try("eval", args{"js": "return document.readyState === 'complete' && location.href"}, &at); fault != "" {
			return fault, false // between two pages
		}
		return fmt.Sprint(at), strings.HasPrefix(fmt.Sprint(at), app)
	})
}

// notebook is a notebook of one cell, open in the browser.
type notebook struct {
	*browser
	url string
}

func (p *plane) notebook(b *browser, app, name string) *notebook {
	b.t.Helper()
	n := &notebook{b, app + "notebooks/" + name}
	var status int
	b.eval(`const xsrf = document.cookie.match(/_xsrf=([^;]*)/)?.[1];
		const content = { nbformat: 4, nbformat_minor: 2, metadata: { kernelspec: { name: 'python3', display_name: 'Python 3', language: 'python' } },
			cells: [{ cell_type: 'code', source: '', metadata: {}, outputs: [], execution_count: null }] };
		const answer = await fetch('`+app+"api/contents/"+name+`', { method: 'PUT', headers: { 'X-XSRFToken': xsrf, 'Content-Type': 'application/json' },
			body: JSON.stringify({ type: 'notebook', content }) });
		return answer.status`, &status)
	if status != 201 {
		b.t.Fatalf("Jupyter makes no notebook: %d", status)
	}
	n.open()
	return n
}

// open loads the page and waits for the kernel.
func (n *notebook) open() {
	n.t.Helper()
	n.do("goto", args{"url": n.url}, nil)
	n.do("wait", args{"js": "const k = window.Jupyter?.notebook?.kernel; return k?.is_connected() && k.info_reply.status === 'ok'", "seconds": 90}, nil)
}

// run puts code into the cell and runs it.
func (n *notebook) run(code string) {
	n.t.Helper()
	n.do("eval", args{"js": "Jupyter.notebook.get_cell(0).set_text(arg); Jupyter.notebook.execute_cells([0])", "arg": code}, nil)
}

// await waits until the cell's output holds text, and returns it.
func (n *notebook) await(text string, seconds int) (output string) {
	n.t.Helper()
	n.do("wait", args{"js": "const t = document.querySelector('.output')?.innerText ?? ''; return t.includes(arg) && t", "arg": text, "seconds": seconds}, &output)
	return output
}

// save saves the notebook, which must not ask whether to overwrite what others
// changed.
func (n *notebook) save() {
	n.t.Helper()
	var asked string
	n.eval("await Jupyter.notebook.save_notebook(); return document.querySelector('.modal-title')?.innerText ?? ''", &asked)
	if asked != "" {
		n.t.Errorf("on saving, the notebook asks: %s", asked)
	}
}

// TestJupyter: Debian's Jupyter on a host behind two NATs, in Chromium. The
// person logs in by a page and never sees a token; a cell's output is there
// after a reload, what it prints while the server is dead comes after it, and
// what it prints when its tab is closed is there in another browser.
func TestJupyter(t *testing.T) {
	w := newWorld(t)
	p, m := w.newPlane("--listen", ":8443", "--apps-domain", "apps.localhost"), w.machine()
	t.Cleanup(func() { m.dump(t) })
	p.login()
	p.pushStarter()
	p.join(m, "--name box")
	w.in("client", "remotegpu env create lab --wait=false --image "+starterImage)
	p.waitPhase("lab", "running", 4*time.Minute)
	o := p.jupyter("lab")
	if !strings.HasPrefix(o.App.URL, "https://lab--jupyter--") || !strings.HasSuffix(o.App.URL, ".apps.localhost:8443/apps/default/lab/jupyter/") {
		t.Fatalf("Jupyter is at %s", o.App.URL)
	}
	if again := p.jupyter("lab"); again.App.URL != o.App.URL || again.URL == o.URL {
		t.Errorf("started again: %+v, before %+v", again, o)
	}
	w.nobodyElse(t)
	b := w.browser("srv") // where *.localhost is the server
	p.logIn(b, o.App.URL)
	n := p.notebook(b, o.App.URL, "test.ipynb")
	var cookies string
	if b.eval("return document.cookie", &cookies); strings.Contains(cookies, "remotegpu") {
		t.Errorf("the app's page sees %s", cookies)
	}
	n.run("import os\nprint('answer', 6 * 7, os.getcwd())")
	if got := n.await("answer 42", 60); !strings.Contains(got, "/gemini/code") {
		t.Errorf("output %q", got)
	}
	n.save()
	n.open()
	n.await("answer 42", 30)
	w.survives(t, p, n)
	w.closed(t, p, o.App.URL)
	w.streams(t, w.browser("srv"))
	w.byPath(t, p)
}

// nobodyElse: other users of the container do not get in where we do.
func (w *world) nobodyElse(t *testing.T) {
	t.Helper()
	out, err := w.try("client", `remotegpu ssh lab -- 's=$(ls -d /tmp/jupyter-*)/socket; curl -sS --unix-socket $s http://x/apps/default/lab/jupyter/api/status | cut -c 1-1;`+
		` setpriv --reuid 1234 --regid 1234 --clear-groups curl -sS --unix-socket $s http://x/ 2>&1; ss -ltn 2>/dev/null | grep -c 8888; true'`)
	if err != nil || !strings.HasPrefix(out, "{") || strings.Count(out, "{") != 1 || !strings.Contains(out, "curl: (7)") {
		t.Errorf("as root and as another user: %q, %v", out, err)
	}
}

// survives: the server is killed while a cell prints.
func (w *world) survives(t *testing.T, p *plane, n *notebook) {
	t.Helper()
	const lines = 40
	n.run(fmt.Sprintf("import time\nfor i in range(%d):\n  print('line', i, flush=True)\n  time.sleep(.5)\nprint('the end')", lines))
	n.await("line 5\n", 60)
	p.kill()
	time.Sleep(5 * time.Second) // for the cell to print to nobody
	p.start()
	got := n.await("the end", 120)
	missing := 0
	for i := range lines {
		if !strings.Contains(got, fmt.Sprintf("line %d\n", i)) {
			missing++
		}
	}
	// A line that was in flight when the server died is nobody's any more.
	if missing > 1 {
		t.Errorf("%d of %d lines are missing:\n%s", missing, lines, got)
	}
	n.save()
}

// closed: the tab is closed while a cell prints, twice, and another browser
// opens the notebook: after the end, and before.
func (w *world) closed(t *testing.T, p *plane, app string) {
	t.Helper()
	const lines = 20
	code := fmt.Sprintf("import time\nfor i in range(%d):\n  print('line', i, flush=True)\n  time.sleep(.5)\nprint('the end')", lines)
	leave := func(n *notebook) {
		n.run(code)
		n.save()
		n.await("line 2\n", 60)
		n.do("close", nil, nil)
	}
	whole := func(n *notebook) {
		t.Helper()
		got := n.await("the end", 30)
		for i := range lines {
			if !strings.Contains(got, fmt.Sprintf("line %d\n", i)) {
				t.Errorf("line %d is missing:\n%s", i, got)
			}
		}
	}
	another := func(app string) *notebook {
		b := w.browser("srv")
		p.logIn(b, app)
		return &notebook{b, app + "notebooks/closed.ipynb"}
	}
	b := w.browser("srv")
	p.logIn(b, app)
	leave(p.notebook(b, app, "closed.ipynb"))
	eventually(t, 2*time.Minute, "the file has the output", func() (string, bool) {
		out, err := w.try("client", "remotegpu ssh lab -- cat /gemini/code/closed.ipynb")
		return out, err == nil && strings.Contains(out, `"the end\n"`)
	})
	n := another(app)
	n.open()
	whole(n)
	n.run("print('saved')")
	n.await("saved", 60)
	n.save()
	leave(n)
	n = another(app)
	n.open()
	n.await("line 2\n", 30) // what came so far
	n.do("wait", args{"js": "return (await (await fetch(arg + Jupyter.notebook.kernel.id)).json()).execution_state === 'idle'", "arg": app + "api/kernels/", "seconds": 60}, nil)
	n.open()
	whole(n)
}

// byPath: the same Jupyter, still running, on a server without a domain for
// apps: they share an origin, which is not the console's.
func (w *world) byPath(t *testing.T, p *plane) {
	t.Helper()
	p.kill()
	p.args = p.args[:len(p.args)-2]
	p.start()
	var o opened
	eventually(t, 60*time.Second, "Jupyter is reached again", func() (string, bool) {
		out, err := w.try("client", "remotegpu jupyter lab -o json")
		return out, err == nil && json.Unmarshal([]byte(out), &o) == nil
	})
	if want := "https://" + srvAddr + ":8444/apps/default/lab/jupyter/"; o.App.URL != want {
		t.Fatalf("Jupyter is at %s, want %s", o.App.URL, want)
	}
	b := w.browser("client")
	p.logIn(b, o.App.URL)
	n := &notebook{b, o.App.URL + "notebooks/test.ipynb"}
	n.open()
	n.run("print('still', 6 * 7)")
	n.await("still 42", 60)
	var status int
	if b.eval("return (await fetch('"+p.url+"/api/v1/account', { credentials: 'include', mode: 'no-cors' })).status", &status); status != 0 {
		t.Errorf("a page of an app reads the API: %d", status)
	}
}

// TestForward: TCP, UDP and a socket of an environment on the client's
// loopback, over a killed server.
func TestForward(t *testing.T) {
	w := newWorld(t)
	p, m := w.newPlane(), w.machine()
	t.Cleanup(func() { m.dump(t) })
	p.login()
	p.pushStarter()
	p.join(m, "--name box")
	w.in("client", "remotegpu env create lab --wait=false --image "+starterImage)
	p.waitPhase("lab", "running", 4*time.Minute)
	serve := filepath.Join(w.dir, "serve.py")
	if err := os.WriteFile(serve, []byte(`
import http.server, os, socket, socketserver, threading
def run(server): threading.Thread(target=server.serve_forever).start()
class Echo(socketserver.BaseRequestHandler):
    def handle(self):
        data, s = self.request
        s.sendto(data.upper(), self.client_address)
os.chdir('/etc')
run(http.server.ThreadingHTTPServer(('127.0.0.1', 8000), http.server.SimpleHTTPRequestHandler))
run(socketserver.ThreadingUDPServer(('127.0.0.1', 5300), Echo))
class Unix(socketserver.StreamRequestHandler):
    def handle(self): self.wfile.write(self.rfile.read()[::-1])
run(socketserver.ThreadingUnixStreamServer('/tmp/a.sock', Unix))
`), 0o644); err != nil {
		t.Fatal(err)
	}
	w.in("client", "remotegpu ssh lab -- 'cat >/tmp/serve.py; setsid python3 /tmp/serve.py >/dev/null 2>&1 </dev/null &' <"+serve)
	t.Setenv("REMOTEGPU_CONFIG", filepath.Join(w.dir, "cli.json"))
	w.start("client", "forward.log", filepath.Join(w.bin, "remotegpu"), "forward", "lab", "18000:8000", "15300:5300/udp", "19000:/tmp/a.sock", "17000:7000")
	read := func() string {
		b, _ := os.ReadFile(filepath.Join(w.dir, "forward.log"))
		return string(b)
	}
	eventually(t, 20*time.Second, "says what is where", func() (string, bool) {
		said := read()
		return said, strings.Contains(said, "127.0.0.1:15300   udp    127.0.0.1:5300")
	})
	all := func() (string, bool) {
		for line, want := range map[string]string{
			"curl -sS -m 20 http://127.0.0.1:18000/hostname": "lab",
			`python3 -c "import socket; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.settimeout(5); s.sendto(b'abc', ('127.0.0.1', 15300)); print(s.recv(99).decode())"`:                            "ABC",
			`python3 -c "import socket; s = socket.create_connection(('127.0.0.1', 19000)); s.sendall(b'x' * 100000 + b'cba'); s.shutdown(1); print(b''.join(iter(lambda: s.recv(65536), b''))[:5].decode())"`: "abcxx",
		} {
			if out, err := w.try("client", line); err != nil || out != want {
				return fmt.Sprintf("%s: %q, %v", line, out, err), false
			}
		}
		return "", true
	}
	eventually(t, 30*time.Second, "everything is reached", all)
	if out, err := w.try("client", "curl -sS -m 20 http://127.0.0.1:17000/"); err == nil || !strings.Contains(read(), "Nothing listens on 127.0.0.1:7000") {
		t.Errorf("a port without a program: %s; said %s", out, read())
	}
	p.kill()
	done := make(chan string, 1)
	go func() { // it waits for the server, for a while, and comes again
		out, _ := w.try("client", "for i in $(seq 8); do t=$(date +%s); curl -s -m 60 http://127.0.0.1:18000/hostname && exit; [ $(($(date +%s) - t)) -ge 10 ] || exit 1; done")
		done <- out
	}()
	eventually(t, 20*time.Second, "says that the server is away", func() (string, bool) {
		said := read()
		return said, strings.Contains(said, "new connections wait for it")
	})
	p.start()
	if out := <-done; out != "lab" {
		t.Errorf("who came while the server was away got %q; said %s", out, read())
	}
	eventually(t, 30*time.Second, "everything is reached again", all)
	if !strings.Contains(read(), "connections to lab work again") {
		t.Errorf("said %s", read())
	}
}
