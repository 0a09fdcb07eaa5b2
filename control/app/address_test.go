package app

import (
	"strings"
	"testing"
)

func TestLabels(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ env, app, want string }{
		{"box", "8888", "box--8888--0123456789"},
		{"my-env", "web", "my-env--web--0123456789"},
		{"ab", "80", "e-ab--80--0123456789"}, // hyphens in third and fourth place are IDNA's
		{"xn--q", "80", "e-xn--q--80--0123456789"},
		{"a--80--b", "80", "a--80--b--80--0123456789"},
		{strings.Repeat("x", 40), strings.Repeat("y", 20), strings.Repeat("x", 27) + "--" + strings.Repeat("y", 20) + "--0123456789"},
		{strings.Repeat("x", 26) + "-" + strings.Repeat("x", 13), strings.Repeat("y", 20), strings.Repeat("x", 26) + "--" + strings.Repeat("y", 20) + "--0123456789"},
	} {
		a := App{Environment: "env_0123456789abcdefghjk", EnvironmentName: c.env, Name: c.app}
		got := a.label()
		if got != c.want || len(got) > maxLabel || got[2:4] == "--" {
			t.Errorf("%s %s: %s, want %s", c.env, c.app, got, c.want)
		}
		if r, ok := parseLabel(got); !ok || r.app != c.app || r.key != "0123456789" {
			t.Errorf("%s is read as %+v, %v", got, r, ok)
		}
	}
}

func TestWithin(t *testing.T) {
	t.Parallel()
	p := Places{Domain: "apps.test"}
	for host, want := range map[string]string{"a.apps.test": "a", "A.Apps.Test:8443": "a", "a.apps.test.": "a", "a.b.apps.test": "a.b", "apps.test": "-", "apps.test.evil.test": "-", "xapps.test": "-", "gpu.test:8443": "-", "": "-"} {
		label, ok := p.within(host)
		if got := label; ok != (want != "-") || ok && got != want {
			t.Errorf("%q: %q, %v", host, label, ok)
		}
	}
}

func FuzzParseLabel(f *testing.F) {
	for _, text := range []string{"box--8888--0123456789", "e-ab--web--0123456789", "--80--0123456789", "a--80--b--80--0123456789"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		r, ok := parseLabel(text)
		if !ok {
			return
		}
		if _, valid := portOf(r.app); !valid || r.label != text || len(r.key) != keyLength || len(text) > maxLabel || strings.ContainsAny(text, "./%_ ") {
			t.Errorf("%q is read as %+v", text, r)
		}
		if again, ok := parseRef(r.String()); !ok || again != r {
			t.Errorf("%+v is written %q", r, r)
		}
	})
}

func FuzzParsePath(f *testing.F) {
	for _, text := range []string{"/apps/lab/box/8888/tree?x", "/apps/lab/box/8888", "/apps/lab/../box/80/", "/apps/l%61b/box/80/"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		r, rest, ok := parsePath(text)
		if !ok {
			return
		}
		if rest != "" && rest[0] != '/' || "/apps/"+r.String()+rest != text || strings.ContainsAny(r.String(), ".%_ ?") {
			t.Errorf("%q is read as %+v and %q", text, r, rest)
		}
		if again, ok := parseRef(r.String()); !ok || again != r {
			t.Errorf("%+v is written %q", r, r)
		}
	})
}

// FuzzConfineCookie: no cookie of ours, none for another host, none above the
// app's own path.
func FuzzConfineCookie(f *testing.F) {
	for _, text := range []string{"a=b", "a=b; Path=/; Domain=gpu.test; HttpOnly", "__Host-remotegpu-login=x; Path=/", "a; path=/x", " a = b ;PATH=//x;domain"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		const scope = "/apps/lab/box/8888/"
		out, ok := confineCookie(text, scope, "/apps/lab/box/8888")
		if !ok {
			return
		}
		parts := strings.Split(out, ";")
		name, _, _ := strings.Cut(parts[0], "=")
		paths := 0
		for _, part := range parts[1:] {
			key, value, _ := strings.Cut(part, "=")
			switch strings.ToLower(strings.TrimSpace(key)) {
			case "domain":
				t.Errorf("%q becomes %q", text, out)
			case "path":
				if paths++; !strings.HasPrefix(strings.TrimSpace(value), scope[:len(scope)-1]+"/") {
					t.Errorf("%q becomes %q", text, out)
				}
			}
		}
		if paths != 1 || ours(strings.TrimSpace(name)) {
			t.Errorf("%q becomes %q", text, out)
		}
	})
}
