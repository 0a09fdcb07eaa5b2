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
	fromHost := "from the desktop: 世界 ✓"
	d.copyInDesk(fromHost)
	eventually(d.t, 20*time.Second, "the desktop's clipboard is the page's", func() (string, bool) {
		got := d.pasteInPage()
		return got, got == fromHost
	})
	// What is copied in the moment in which the other side's comes may be lost
	// between client and xrdp; people copy again.
	copies := 0
	eventually(d.t, 30*time.Second, "the page's clipboard is the desktop's", func() (string, bool) {
		copies++
		toHost := fmt.Sprintf("from the page: größer 世界 %d", copies)
		d.copyInPage(toHost)
		var got string
		for began := time.Now(); time.Since(began) < 4*time.Second; {
			if got = d.pasteInDesk(); got == toHost {
				return got, true
			}
		}
		return got, false
	})
	if copies > 1 {
		d.t.Logf("what was copied in the page came after %d copies", copies)
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
		d.copyInDesk(secret)
		if c.fromHost {
			eventually(d.t, 20*time.Second, c.policy+": from the desktop", func() (string, bool) {
				got := d.pasteInPage()
				return got, got == secret
			})
		} else {
			time.Sleep(3 * time.Second) // what is allowed takes a tenth of that
			if got := d.pasteInPage(); got != "nothing yet" {
				d.t.Errorf("%s: the page has %q", c.policy, got)
			}
		}
		secret = "secret of the page " + c.policy
		d.copyInPage(secret)
		if c.toHost {
			eventually(d.t, 20*time.Second, c.policy+": from the page", func() (string, bool) {
				got := d.pasteInDesk()
				return got, got == secret
			})
		} else {
			time.Sleep(3 * time.Second) // as above
			if got := d.pasteInDesk(); strings.Contains(got, "secret of the page") {
				d.t.Errorf("%s: the desktop has %q", c.policy, got)
			}
		}
	}
}
