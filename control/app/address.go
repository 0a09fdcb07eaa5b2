package app

import (
	"net"
	"net/url"
	"strings"
)

// Places says where browsers reach apps. A domain of its own gives every app a
// host of its own; with Path alone they share one origin, which is never the
// console's.
type Places struct {
	Main   string // origin of console and API, https://gpu.example.org:8443
	Domain string // apps.example.org: apps are at ENV--APP--KEY.apps.example.org, on Main's port; empty: no such hosts
	Path   string // origin of https://gpu.example.org:8444/apps/…; empty: none
}

// keyLength is how much of an environment's id is in a host name: 50 bits, and
// a name that does not fit is refused.
const keyLength = 10

// maxLabel is the longest part of a host name (RFC 1035).
const maxLabel = 63

// label is the first part of the host name of a: ENV--APP--KEY. ENV is for
// people, and cut when it is long.
func (a *App) label() string {
	key := strings.TrimPrefix(a.Environment, "env_")
	tail := "--" + a.Name + "--" + key[:min(keyLength, len(key))]
	env := a.EnvironmentName
	env = strings.TrimRight(env[:min(len(env), maxLabel-len(tail)-2)], "-")
	if label := env + tail; label[2:4] != "--" { // which is IDNA's
		return label
	}
	return "e-" + env + tail
}

// origin is where a browser finds a; empty: nowhere.
func (p Places) origin(a *App) string {
	if p.Domain == "" {
		return p.Path
	}
	origin := "https://" + a.label() + "." + p.Domain
	if u, err := url.Parse(p.Main); err == nil && u.Port() != "" && u.Port() != "443" {
		origin += ":" + u.Port()
	}
	return origin
}

// root is the path of a below its origin, with a slash at its end.
func (p Places) root(a *App) string {
	if p.Domain == "" || a.BasePath {
		return a.base()
	}
	return "/"
}

// scope is the path that a has for itself: its cookies lead no further.
func (p Places) scope(a *App) string {
	if p.Domain == "" {
		return a.base()
	}
	return "/"
}

func (p Places) url(a *App) string {
	if origin := p.origin(a); origin != "" {
		return origin + p.root(a)
	}
	return ""
}

// ref is how an app is named: by key and name in a host, by names in a path, or
// by id between ourselves.
type ref struct {
	app            string
	label, key     string // label is the whole
	workspace, env string
	id             string // of the environment
}

// String is what the login page is given, and parseRef reads.
func (r ref) String() string {
	if r.label != "" {
		return r.label
	}
	return r.workspace + "/" + r.env + "/" + r.app
}

func parseRef(text string) (ref, bool) {
	if !strings.Contains(text, "/") {
		return parseLabel(text)
	}
	r, rest, ok := parsePath("/apps/" + text + "/")
	return r, ok && rest == "/"
}

// parseLabel reads what label writes. What comes before the last two parts is
// compared later, with the whole.
func parseLabel(label string) (ref, bool) {
	rest, key, ok := cutLast(label, "--")
	if !ok {
		return ref{}, false
	}
	env, name, ok := cutLast(rest, "--")
	if _, valid := portOf(name); !ok || !valid || !plain(env) || len(key) != keyLength || !plain(key) || len(label) > maxLabel {
		return ref{}, false
	}
	return ref{label: label, key: key, app: name}, true
}

// parsePath reads /apps/WORKSPACE/ENV/APP/rest of an escaped path; rest begins
// with a slash, or is empty when the path ends before it.
func parsePath(escaped string) (r ref, rest string, ok bool) {
	path, ok := strings.CutPrefix(escaped, "/apps/")
	if !ok {
		return ref{}, "", false
	}
	parts := strings.SplitN(path, "/", 4)
	if len(parts) < 3 {
		return ref{}, "", false
	}
	r = ref{workspace: parts[0], env: parts[1], app: parts[2]}
	if _, valid := portOf(r.app); !valid || !plain(r.workspace) || !plain(r.env) {
		return ref{}, "", false
	}
	if len(parts) == 4 {
		rest = "/" + parts[3]
	}
	return r, rest, true
}

// plain reports whether text is of the letters that names have.
func plain(text string) bool {
	for _, c := range []byte(text) {
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' {
			return false
		}
	}
	return text != "" && text[0] != '-' && len(text) <= maxLabel
}

func cutLast(text, sep string) (before, after string, found bool) {
	i := strings.LastIndex(text, sep)
	if i < 0 {
		return text, "", false
	}
	return text[:i], text[i+len(sep):], true
}

// hostOf returns the name in a Host header, in small letters.
func hostOf(host string) string {
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	return strings.ToLower(strings.TrimSuffix(host, "."))
}

// within reports whether host is below the domain of apps, and its label.
func (p Places) within(host string) (label string, ok bool) {
	if p.Domain == "" {
		return "", false
	}
	return strings.CutSuffix(hostOf(host), "."+p.Domain)
}
