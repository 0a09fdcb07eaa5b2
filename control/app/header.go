package app

import (
	"encoding/base64"
	"net/http"
	"net/url"
	"strings"
)

// ours reports whether a cookie is one of ours.
func ours(name string) bool {
	return strings.HasPrefix(name, ownHost) || strings.HasPrefix(name, ownPath)
}

// Prefixes of the secrets that account gives out.
var secretPrefixes = []string{"rgt_", "rgs_"}

// ownBearer returns the API token or session secret in a header.
func ownBearer(h http.Header) (string, bool) {
	scheme, secret, ok := strings.Cut(h.Get("Authorization"), " ")
	return secret, ok && strings.EqualFold(scheme, "Bearer") && holdsSecret(secret)
}

func holdsSecret(text string) bool {
	for _, p := range secretPrefixes {
		if strings.Contains(text, p) {
			return true
		}
	}
	return false
}

// clean takes out of a request what an app must not see, how the person proved
// themselves to us, and what it must not believe, what others say of who asks.
func clean(h http.Header) {
	kept := h["Authorization"][:0:0]
	for _, value := range h["Authorization"] {
		_, coded, _ := strings.Cut(value, " ")
		plain, _ := base64.StdEncoding.DecodeString(strings.TrimSpace(coded))
		if !holdsSecret(value) && !holdsSecret(string(plain)) {
			kept = append(kept, value)
		}
	}
	replace(h, "Authorization", kept)
	var cookies []string
	for _, line := range h["Cookie"] {
		for pair := range strings.SplitSeq(line, ";") {
			pair = strings.TrimSpace(pair)
			name, _, _ := strings.Cut(pair, "=")
			if pair != "" && !ours(strings.TrimSpace(name)) {
				cookies = append(cookies, pair)
			}
		}
	}
	if len(cookies) > 0 {
		cookies = []string{strings.Join(cookies, "; ")}
	}
	replace(h, "Cookie", cookies)
	for name := range h {
		// CGI and WSGI make one variable of both signs.
		as := strings.ToLower(strings.ReplaceAll(name, "_", "-"))
		if strings.HasPrefix(as, "x-remotegpu-") || strings.HasPrefix(as, "x-forwarded-") || as == "x-real-ip" || as == "forwarded" {
			delete(h, name)
		}
	}
	if strings.Contains(h.Get("Referer"), "/"+reserved) { // it may hold a ticket, used as it is
		delete(h, "Referer")
	}
}

func replace(h http.Header, name string, values []string) {
	if len(values) == 0 {
		delete(h, name)
		return
	}
	h[name] = values
}

// confine changes an app's answer so that it reaches no further than the app:
// its cookies stay on its host and below scope, its redirects lead to where it
// is reached. strip is what the app is not told of its paths.
func confine(h http.Header, origin, scope, strip string) {
	var cookies []string
	for _, line := range h["Set-Cookie"] {
		if line, ok := confineCookie(line, scope, strip); ok {
			cookies = append(cookies, line)
		}
	}
	replace(h, "Set-Cookie", cookies)
	for _, name := range []string{"Location", "Content-Location"} {
		if to := h.Get(name); to != "" {
			h.Set(name, confineURL(to, origin, strip))
		}
	}
	h.Del("Clear-Site-Data") // it reaches the whole site, other apps and the console too
	if scope != "/" {
		h.Del("Service-Worker-Allowed") // as above
	}
}

// confineCookie changes one Set-Cookie; ok says whether it may be set at all.
func confineCookie(line, scope, strip string) (string, bool) {
	parts := strings.Split(line, ";")
	name, _, named := strings.Cut(parts[0], "=")
	name = strings.TrimSpace(name)
	if !named || name == "" || ours(name) || scope != "/" && strings.HasPrefix(strings.ToLower(name), "__host-") {
		return "", false
	}
	kept, path := parts[:1], ""
	for _, part := range parts[1:] {
		key, value, _ := strings.Cut(part, "=")
		switch strings.ToLower(strings.TrimSpace(key)) {
		case "domain":
		case "path":
			path = strings.TrimSpace(value)
		default:
			kept = append(kept, part)
		}
	}
	switch {
	case scope == "/" && path != "":
		kept = append(kept, " Path="+path)
	case scope == "/":
	case strings.HasPrefix(path, scope):
		kept = append(kept, " Path="+path)
	case strip != "" && strings.HasPrefix(path, "/"):
		kept = append(kept, " Path="+strip+path)
	default:
		kept = append(kept, " Path="+scope)
	}
	return strings.Join(kept, ";"), true
}

// confineURL changes where an app redirects to when it means itself, by the
// name or the paths that it knows.
func confineURL(to, origin, strip string) string {
	u, err := url.Parse(to)
	if err != nil {
		return to
	}
	own, err := url.Parse(origin)
	if err != nil {
		return to
	}
	switch {
	case u.Host != "" && strings.EqualFold(u.Host, own.Host) && (u.Scheme == "http" || u.Scheme == "https" || u.Scheme == ""):
		u.Scheme = own.Scheme
	case u.Host != "" || u.Scheme != "" || !strings.HasPrefix(u.Path, "/"):
		return to
	}
	if strip != "" && !strings.HasPrefix(u.Path, strip+"/") {
		u.Path = strip + u.Path
		if u.RawPath != "" {
			u.RawPath = strip + u.RawPath
		}
	}
	return u.String()
}
