package e2e

import (
	"fmt"
	"strings"
	"time"
)

// copyInDesk copies text in the desktop.
func (d *desktopPage) copyInDesk(text string) {
	d.t.Helper()
	d.w.inDesk("printf '%s' '" + text + "' | xclip -selection clipboard >/dev/null 2>&1")
}

func (d *desktopPage) pasteInPage() (text string) {
	d.t.Helper()
	d.eval("return await navigator.clipboard.readText().catch((e) => `failed: ${e}`)", &text)
	return text
}

func (d *desktopPage) copyInPage(text string) {
	d.t.Helper()
	d.do("eval", args{"js": "await navigator.clipboard.writeText(arg)", "arg": text}, nil)
}

func (d *desktopPage) pasteInDesk() string {
	out, _ := d.w.tryInDesk("timeout 3 xclip -selection clipboard -o")
	return out
}

// clipboards copies both ways.
func (d *desktopPage) clipboards() {
	d.t.Helper()
	d.do("click", args{"x": 300, "y": 300}, nil)
	d.arrives("the desktop's clipboard is the page's", "from the desktop: 世界 ✓", d.copyInDesk, d.pasteInPage)
	d.arrives("the page's clipboard is the desktop's", "from the page: größer 世界", d.copyInPage, d.pasteInDesk)
}

// arrives copies a text at one side until it is at the other. What is copied in
// the moment in which the other side's comes may be lost between client and xrdp;
// people copy again.
func (d *desktopPage) arrives(what, text string, copies func(string), paste func() string) {
	d.t.Helper()
	times := 0
	eventually(d.t, 30*time.Second, what, func() (got string, ok bool) {
		times++
		sent := fmt.Sprint(text, " ", times)
		copies(sent)
		for began := time.Now(); got != sent && time.Since(began) < 4*time.Second; {
			got = paste()
		}
		return got, got == sent
	})
	if times > 1 {
		d.t.Logf("%s: after %d copies", what, times)
	}
}

// policies copies both ways where a policy forbids one or both. What is allowed
// shows that the other would have come by now.
func (d *desktopPage) policies() {
	d.t.Helper()
	for _, c := range []struct {
		policy           string
		toHost, fromHost bool
	}{{"to-host", true, false}, {"from-host", false, true}, {"none", false, false}} {
		d.copyInPage("nothing yet")
		d.copyInDesk("nothing yet")
		d.open()
		d.connect(d.ticket(desk, `{"clipboard":"`+c.policy+`"}`), nil)
		d.waitPage("return window.rdp.pixels().colours > 20")
		d.do("click", args{"x": 300, "y": 300}, nil)
		secret := "secret of the desktop " + c.policy
		if c.fromHost {
			d.arrives(c.policy+": from the desktop", secret, d.copyInDesk, d.pasteInPage)
		} else {
			d.copyInDesk(secret)
			time.Sleep(3 * time.Second) // what is allowed takes a tenth of that
			if got := d.pasteInPage(); got != "nothing yet" {
				d.t.Errorf("%s: the page has %q", c.policy, got)
			}
		}
		secret = "secret of the page " + c.policy
		if c.toHost {
			d.arrives(c.policy+": from the page", secret, d.copyInPage, d.pasteInDesk)
		} else {
			d.copyInPage(secret)
			time.Sleep(3 * time.Second) // as above
			if got := d.pasteInDesk(); strings.Contains(got, "secret of the page") {
				d.t.Errorf("%s: the desktop has %q", c.policy, got)
			}
		}
	}
}
