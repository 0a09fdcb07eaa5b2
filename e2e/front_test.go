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

// TestFrontPage is a newcomer's way: log in on the front page, make the install
// line there, run it on a machine, and see the host.
func TestFrontPage(t *testing.T) {
	w := newWorld(t)
	p, m := w.newPlane(), w.machine()
	t.Cleanup(func() { m.dump(t) })
	file, err := os.ReadFile(filepath.Join(w.dir, "srv/first-login.json"))
	if err != nil {
		t.Fatal(err)
	}
	var first struct{ Email, Password string }
	if err := json.Unmarshal(file, &first); err != nil {
		t.Fatal(err)
	}
	b := w.browser("client")
	b.do("goto", args{"url": p.url + "/"}, nil)
	shown := func(selector, want string) {
		t.Helper()
		var got string
		if b.do("text", args{"selector": selector}, &got); !strings.Contains(got, want) {
			t.Errorf("%s says %q, want %q", selector, got, want)
		}
	}
	logIn := func(password string) {
		t.Helper()
		b.do("fill", args{"selector": "[name=email]", "text": first.Email}, nil)
		b.do("fill", args{"selector": "[name=password]", "text": password}, nil)
		b.do("click", args{"selector": "#login button"}, nil)
	}
	logIn("wrong")
	b.do("wait", args{"js": "return !document.getElementById('error').hidden"}, nil)
	shown("#error", "password")
	eventually(t, 2*time.Minute, "the right password lets in", func() (string, bool) { // the wrong one makes everybody wait who comes from there
		var answer any
		logIn(first.Password)
		b.do("wait", args{"js": "return !document.getElementById('fleet').hidden || !document.getElementById('error').hidden && document.getElementById('error').textContent"}, &answer)
		return fmt.Sprint(answer), answer == true
	})
	b.do("wait", args{"js": "return !document.getElementById('empty').hidden"}, nil)
	shown("#empty", "No host has joined yet.")
	b.do("click", args{"selector": "#join"}, nil)
	b.do("wait", args{"js": "return !document.getElementById('line').hidden"}, nil)
	var line string
	b.do("text", args{"selector": "#command"}, &line)
	m.must(strings.ReplaceAll(line, "| sudo sh", "| sh") + " --gpu-source sim:2xH100 --name first-box")
	b.do("wait", args{"js": "return document.querySelector('#hosts .online')", "seconds": 30}, nil)
	shown("#hosts", "first-box")
	shown("#hosts", "2 × NVIDIA H100")
	b.do("click", args{"selector": "#language"}, nil)
	shown("#fleet", "添加主机")
	b.do("screenshot", args{"file": filepath.Join(w.dir, "front.png")}, nil)
	if out := os.Getenv("RG_PICTURES"); out != "" {
		w.must("cp", filepath.Join(w.dir, "front.png"), out)
	}
	var said []string
	if b.do("said", nil, &said); len(said) > 1 { // the refused login is one
		t.Errorf("the page said %q", said)
	}
	eventually(t, 10*time.Second, "a reload logs out", func() (string, bool) {
		b.do("goto", args{"url": p.url + "/"}, nil)
		var hidden bool
		b.eval("return document.getElementById('fleet').hidden", &hidden)
		return "it shows the fleet", hidden
	})
}
