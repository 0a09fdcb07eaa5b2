package app

import (
	"net/http"
	"net/url"
	"strings"
	"testing"
)

// TestLogin: an app leads to the login page and back to the page that was
// asked for, and the app learns nothing of it.
func TestLogin(t *testing.T) {
	t.Parallel()
	for name, places := range map[string]Places{"own hosts": ownHosts, "shared origin": shared} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorldAt(t, places)
			one, two := w.run("box", "8888", nil), w.run("box", "6006", nil)
			b := w.browser()
			p := b.login("bob", one+"tree/a%20b?x=1;y=2")
			if e := p.echo(t); e.Path != "/tree/a%20b" || e.Query != "x=1;y=2" || e.Header.Get("Cookie") != "" || e.Header.Get("Authorization") != "" {
				t.Errorf("the app was asked %+v", e)
			}
			if e := b.get(one+"again", "Cookie", "theme=dark").echo(t); e.Header.Get("Cookie") != "theme=dark" {
				t.Errorf("the app's own cookies arrive as %q", e.Header.Get("Cookie"))
			}
			if p := b.get(two); p.echo(t).Path != "/" { // without a password
				t.Errorf("the second app: %d %s", p.status, p.at)
			}
			first, second := b.cookies(one), b.cookies(two)
			if len(first) == 0 || len(second) == 0 || first[0] == second[0] {
				t.Errorf("cookies %q and %q", first, second)
			}
			for _, at := range []string{"https://other.apps.test:8443/", "https://gpu.test:8444/apps/lab/den/8888/"} {
				for _, c := range b.cookies(at) {
					if c == first[0] || c == second[0] {
						t.Errorf("the cookie of an app is sent to %s", at)
					}
				}
			}
		})
	}
}

// TestNoOpenRedirect: whatever the address of the login page holds, it leads to
// an app of this server.
func TestNoOpenRedirect(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	home := w.run("box", "8888", nil)
	b := w.browser()
	b.login("bob", home)
	state := markOf("x")
	for _, back := range []string{"https://evil.test/", "//evil.test/", "/\\evil.test/", "\\\\evil.test", "evil.test", "/\n/evil.test", "/\t/evil.test", "javascript:alert(1)", "@evil.test", ".evil.test", ":80@evil.test"} {
		q := url.Values{"app": {w.label("box", "8888")}, "state": {state}, "return": {back}}
		p := b.still().get(w.cfg.Places.Main + "/apps/login?" + q.Encode())
		to, err := url.Parse(p.header.Get("Location"))
		if err != nil || p.status != http.StatusSeeOther || origin(to.String()) != origin(home) || to.Query().Get("return") != "/" {
			t.Errorf("return=%q leads to %d %s", back, p.status, p.header.Get("Location"))
		}
		// The page on the app's side does not trust it either.
		q = to.Query()
		q.Set("return", back)
		p = b.still().get(origin(home)+"/.remotegpu/login?"+q.Encode(), "Cookie", "__Host-remotegpu-state=x")
		if p.status != http.StatusSeeOther || p.header.Get("Location") != "/" {
			t.Errorf("with a ticket, return=%q leads to %d %s", back, p.status, p.header.Get("Location"))
		}
	}
	for _, app := range []string{"evil.test", "https://evil.test", "box--8888--0123456789.evil.test", "lab/box/8888@evil.test", "lab/box/8888/../..", "", "lab/none/80", w.label("box", "8888") + "x", "x" + w.label("box", "8888")} {
		p := b.still().get(w.cfg.Places.Main + "/apps/login?" + url.Values{"app": {app}, "state": {state}}.Encode())
		if to := p.header.Get("Location"); p.status != http.StatusSeeOther || !strings.HasPrefix(to, "/apps/login?") || !strings.Contains(to, "denied=1") {
			t.Errorf("app=%q leads to %d %s", app, p.status, to)
		}
		if p := b.submit("bob", &url.URL{RawQuery: url.Values{"app": {app}}.Encode()}); p.status != http.StatusNotFound {
			t.Errorf("login for app=%q: %d %s", app, p.status, p.body)
		}
	}
}

func (w *world) label(env, name string) string {
	w.t.Helper()
	a, err := w.lookUp(w.t.Context(), ref{workspace: "lab", env: env, app: name})
	if err != nil {
		w.t.Fatal(err)
	}
	return a.label()
}

// TestLoginForm: the page's answer is for the page alone.
func TestLoginForm(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.run("box", "8888", nil)
	at := &url.URL{RawQuery: url.Values{"app": {w.label("box", "8888")}}.Encode()}
	for _, origin := range []string{"https://evil.test", "https://" + w.label("box", "8888") + ".apps.test:8443", "null", "http://gpu.test:8443", "https://gpu.test"} {
		b := w.browser()
		if p := b.submit("bob", at, "Origin", origin); p.status != http.StatusForbidden || len(b.cookies(w.cfg.Places.Main)) > 0 {
			t.Errorf("a form of %s: %d %s", origin, p.status, p.body)
		}
	}
	b := w.browser()
	if p := b.ask(http.MethodPost, w.cfg.Places.Main+"/apps/login", `{"email":"bob@example.org","password":"wrong wrong"}`, "Origin", w.cfg.Places.Main); p.status != http.StatusUnauthorized {
		t.Errorf("a wrong password: %d %s", p.status, p.body)
	}
	if p := b.ask(http.MethodPost, w.cfg.Places.Main+"/apps/login", "{", "Origin", w.cfg.Places.Main); p.status != http.StatusUnprocessableEntity {
		t.Errorf("half a form: %d %s", p.status, p.body)
	}
	if p := b.submit("eve", at); p.status != http.StatusNotFound {
		t.Errorf("a stranger: %d %s", p.status, p.body)
	}
	if len(b.cookies(w.cfg.Places.Main)) != 1 {
		t.Error("who has logged in is not known")
	}
	// The cookie of the login opens apps that are the person's, and no API.
	if p := b.get(w.cfg.Places.Main + "/api/v1/workspaces/lab/apps"); p.status != http.StatusUnauthorized {
		t.Errorf("the API takes a cookie: %d %s", p.status, p.body)
	}
}

// TestTickets: each is good once, for seconds, for one app, in one browser.
func TestTickets(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	home := w.run("box", "8888", nil)
	other := w.run("den", "8888", nil)
	ticket := func() string {
		t.Helper()
		_, body := w.api("bob", "POST", "/api/v1/apps/open", `{"app":"lab/box/8888","path":"/x"}`)
		_, to, ok := strings.Cut(body, `"url":"`)
		if !ok {
			t.Fatal(body)
		}
		to, _, _ = strings.Cut(to, `"`)
		return strings.ReplaceAll(to, `\u0026`, "&")
	}
	b := w.browser()
	once := ticket()
	if p := b.get(once); p.echo(t).Path != "/x" {
		t.Errorf("opens %s", p.at)
	}
	if p := w.browser().get(once); p.status != http.StatusUnauthorized || !strings.Contains(p.body, "was used already") {
		t.Errorf("used twice: %d %s", p.status, p.body)
	}
	late := ticket()
	if _, err := w.pool.Exec(t.Context(), "update tickets set expires_at = now() - interval '1 second' where kind = 'app ticket'"); err != nil {
		t.Fatal(err)
	}
	if p := w.browser().get(late); p.status != http.StatusUnauthorized {
		t.Errorf("too late: %d %s", p.status, p.body)
	}
	moved := strings.Replace(ticket(), origin(home), origin(other), 1)
	if p := w.browser().get(moved); p.status != http.StatusNotFound {
		t.Errorf("at another app: %d %s", p.status, p.body)
	}
	if p := w.browser().get(ticket(), "Sec-Fetch-Site", "cross-site"); p.status != http.StatusForbidden {
		t.Errorf("a page leads there: %d %s", p.status, p.body)
	}
	// One that a browser asked for is for that browser.
	at := w.browser().get(home).at
	p := w.browser().submit("bob", at)
	_, to, _ := strings.Cut(p.body, `"url":"`)
	to, _, _ = strings.Cut(to, `"`)
	if p := w.browser().get(strings.ReplaceAll(to, `\u0026`, "&")); p.status != http.StatusForbidden || !strings.Contains(p.body, "another browser") {
		t.Errorf("in another browser: %d %s", p.status, p.body)
	}
	for _, bad := range []string{"", "?ticket=", "?ticket=x"} {
		if p := w.browser().get(origin(home) + "/.remotegpu/login" + bad); p.status != http.StatusUnauthorized {
			t.Errorf("%q: %d", bad, p.status)
		}
	}
}

// TestRevoked: what a browser shows ends with the session or token that it was
// got with, with the right itself, and with a logout from the app.
func TestRevoked(t *testing.T) {
	t.Parallel()
	for name, revoke := range map[string]func(w *world, b *browser, home string) error{
		"session": func(w *world, _ *browser, _ string) error {
			_, err := w.pool.Exec(t.Context(), "delete from sessions")
			return err
		},
		"session expired": func(w *world, _ *browser, _ string) error {
			_, err := w.pool.Exec(t.Context(), "update sessions set expires_at = now()")
			return err
		},
		"disabled": func(w *world, _ *browser, _ string) error {
			_, err := w.pool.Exec(t.Context(), "update users set disabled = true where email like 'bob@%'")
			return err
		},
		"logout": func(_ *world, b *browser, home string) error {
			b.get(origin(home) + "/.remotegpu/logout")
			_, err := b.w.pool.Exec(t.Context(), "delete from tickets where kind = 'app login'")
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			home := w.run("box", "8888", nil)
			b := w.browser()
			b.login("bob", home)
			b.get(home).echo(t)
			if err := revoke(w, b, home); err != nil {
				t.Fatal(err)
			}
			if p := b.get(home); p.at.Path != "/apps/login" || p.at.Query().Has("denied") {
				t.Errorf("%d %s", p.status, p.at)
			}
			if p := b.get(home+"data", "Accept", "application/json"); p.status != http.StatusUnauthorized {
				t.Errorf("%d %s", p.status, p.at)
			}
		})
	}
}
