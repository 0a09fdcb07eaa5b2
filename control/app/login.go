package app

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strings"

	"github.com/remotegpu/remotegpu/control/auth"
	"github.com/remotegpu/remotegpu/control/errs"
	"github.com/remotegpu/remotegpu/control/pg"
	"github.com/remotegpu/remotegpu/control/ticket"
	"github.com/remotegpu/remotegpu/control/web"
)

// Names of our cookies; an app sees none of them and sets none of them. Browsers
// keep names that begin so from being set by another host or without TLS.
const (
	ownHost    = "__Host-remotegpu-"   // where an origin is one app's, or ours
	ownPath    = "__Secure-remotegpu-" // where apps share one
	cookieApp  = "app"
	cookieMark = "state"           // which browser asked for a login
	cookieMain = ownHost + "login" // on the server's own origin
)

// Lives of passes, in seconds.
const (
	ticketLife = 30
	cookieLife = 7 * 24 * 3600
	loginLife  = 14 * 24 * 3600
	markLife   = 600
)

// reserved are the paths below an app's scope that are ours.
const reserved = ".remotegpu/"

// ownCookie returns the name of a cookie of ours for an app, and its path.
func (s *Service) ownCookie(a *App, which string) (name, path string) {
	if s.cfg.Places.Domain == "" {
		return ownPath + which, a.base()
	}
	return ownHost + which, "/"
}

// setCookie sets a cookie of ours for an app; a life of 0 takes it away.
func (s *Service) setCookie(w http.ResponseWriter, a *App, which, value string, life int) {
	name, path := s.ownCookie(a, which)
	set(w, name, path, value, life)
}

func set(w http.ResponseWriter, name, path, value string, life int) {
	if life == 0 {
		life = -1
	}
	http.SetCookie(w, &http.Cookie{Name: name, Path: path, Value: value, MaxAge: life, HttpOnly: true, Secure: true, SameSite: http.SameSiteLaxMode})
}

var markRule = regexp.MustCompile(`^([0-9a-f]{64})?$`)

// ticket returns the address that opens an app for c, once and within seconds,
// in the browser that has the cookie whose hash state is; back is the page.
func (s *Service) ticket(ctx context.Context, c auth.Caller, app, state, back string) (string, error) {
	if err := c.Require(auth.AppOpen, ""); err != nil {
		return "", err
	}
	r, ok := parseRef(app)
	if !ok || !markRule.MatchString(state) {
		return "", errUnknown
	}
	a, err := s.lookUp(ctx, r)
	if err != nil {
		return "", err
	}
	if !a.allows(c) {
		return "", errUnknown
	}
	origin := s.cfg.Places.origin(&a)
	if origin == "" {
		return "", errNoPlace
	}
	p := pass{User: c.ID, Login: c.Login, Token: c.Token, Environment: a.Environment, Detail: forApp{a.Name, state}}
	secret, err := s.issue(ctx, passTicket, p)
	if err != nil {
		return "", err
	}
	return origin + s.cfg.Places.scope(&a) + reserved + "login?" + url.Values{"ticket": {secret}, "return": {s.page(&a, back)}}.Encode(), nil
}

var errNoPlace = errs.E(errs.Unavailable, "This server has no place for apps in the browser: its admin starts it with --apps-domain or --apps-listen. Until then: remotegpu forward")

// page is where a login leads: back when it is a path of the app, else the
// app's first page. Nothing that back holds leads to another origin.
func (s *Service) page(a *App, back string) string {
	odd := strings.ContainsFunc(back, func(c rune) bool { return c < ' ' || c == '\\' || c == 0x7f })
	if odd || strings.HasPrefix(back, "//") || !strings.HasPrefix(back, s.cfg.Places.scope(a)) {
		return s.cfg.Places.root(a)
	}
	return back
}

// showLogin is the page on the server's own origin that an app without a
// cookie leads to. Who has logged in there before sees nothing of it.
func (s *Service) showLogin(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	if c, err := s.loggedIn(r); err == nil && !q.Has("denied") {
		to, err := s.ticket(r.Context(), c, q.Get("app"), q.Get("state"), q.Get("return"))
		if err != nil {
			q.Set("denied", "1")
			to = "/apps/login?" + q.Encode()
		}
		w.Header().Set("Cache-Control", "no-store")
		http.Redirect(w, r, to, http.StatusSeeOther)
		return
	}
	s.cfg.LoginPage.ServeHTTP(w, r)
}

// loggedIn is who has logged in on the server's own origin. It opens apps and
// nothing else: the API takes no cookies.
func (s *Service) loggedIn(r *http.Request) (auth.Caller, error) {
	for _, cookie := range r.CookiesNamed(cookieMain) {
		p, err := ticket.Find[forApp](r.Context(), s.pool, passLogin, cookie.Value)
		if err == nil {
			return s.cfg.Now(r.Context(), p.Caller(auth.From(r.Context()).Remote))
		}
	}
	return auth.Caller{}, errs.E(errs.Unauthenticated, "Log in first.")
}

type loginForm struct {
	Email, Password    string
	App, State, Return string
}

// takeLogin is what that page sends: a password, for a way into the app.
func (s *Service) takeLogin(w http.ResponseWriter, r *http.Request) (to string, err error) {
	if r.Header.Get("Origin") != s.cfg.Places.Main {
		return "", errs.E(errs.Denied, "This page is not the login page of this server.")
	}
	var f loginForm
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, 16<<10)).Decode(&f); err != nil {
		return "", errs.E(errs.Invalid, "The form cannot be read; reload the page.", err)
	}
	c, err := s.cfg.Login(r.Context(), auth.From(r.Context()), f.Email, f.Password)
	if err != nil {
		return "", err
	}
	secret, err := s.issue(r.Context(), passLogin, pass{User: c.ID, Login: c.Login})
	if err != nil {
		return "", err
	}
	set(w, cookieMain, "/", secret, loginLife)
	return s.ticket(r.Context(), c, f.App, f.State, f.Return)
}

// redeem makes a ticket a cookie for the app, on the app's own origin.
func (s *Service) redeem(w http.ResponseWriter, r *http.Request, a App) {
	q := r.URL.Query()
	p, err := ticket.Take[forApp](r.Context(), s.pool, passTicket, q.Get("ticket"))
	switch {
	case pg.IsNone(err):
		err = errs.Ef(errs.Unauthenticated, "This way in was used already, or is older than %d seconds. Open the app anew.", ticketLife)
	case err != nil:
	case p.Environment != a.Environment || p.Detail.App != a.Name:
		err = errUnknown
	case !s.began(r, &a, p.Detail.State):
		err = errs.E(errs.Denied, "This login was begun in another browser, or by another page. Open the app anew.")
	}
	if err != nil {
		s.fail(w, r, err)
		return
	}
	p.Detail.State = ""
	secret, err := s.issue(r.Context(), passCookie, p)
	if err != nil {
		s.fail(w, r, err)
		return
	}
	s.setCookie(w, &a, cookieApp, secret, cookieLife)
	s.setCookie(w, &a, cookieMark, "", 0)
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("Referrer-Policy", "no-referrer")
	http.Redirect(w, r, s.page(&a, q.Get("return")), http.StatusSeeOther)
}

// began reports whether the person at this browser asked for the login, so that
// nobody can log others in as themselves. A ticket without a mark comes from
// the command line: then no page may have led here.
func (s *Service) began(r *http.Request, a *App, state string) bool {
	if state == "" {
		site := r.Header.Get("Sec-Fetch-Site")
		return site == "" || site == "none"
	}
	name, _ := s.ownCookie(a, cookieMark)
	return slices.ContainsFunc(r.CookiesNamed(name), func(c *http.Cookie) bool { return markOf(c.Value) == state })
}

func markOf(secret string) string {
	sum := sha256.Sum256([]byte(secret))
	return hex.EncodeToString(sum[:])
}

// askLogin sends a browser to the login page; what is not a page that a person
// opens gets an answer that says so.
func (s *Service) askLogin(w http.ResponseWriter, r *http.Request, a *App, named ref) {
	if !navigates(r) {
		s.fail(w, r, errs.E(errs.Unauthenticated, "Log in first: open the app in a browser, or send an API token as bearer."))
		return
	}
	name, _ := s.ownCookie(a, cookieMark)
	secret := rand.Text()
	if had, err := r.Cookie(name); err == nil && len(had.Value) == len(secret) {
		secret = had.Value // of another tab that is on its way
	}
	s.setCookie(w, a, cookieMark, secret, markLife)
	w.Header().Set("Cache-Control", "no-store")
	q := url.Values{"app": {named.String()}, "state": {markOf(secret)}, "return": {r.URL.RequestURI()}}
	http.Redirect(w, r, s.cfg.Places.Main+"/apps/login?"+q.Encode(), http.StatusSeeOther)
}

// who finds out who asks for a: by API token, or by a cookie that was given for
// a alone. Nobody is no error.
func (s *Service) who(r *http.Request, a *App) (c auth.Caller, byCookie bool, err error) {
	if secret, ok := ownBearer(r.Header); ok {
		c, err = s.cfg.Bearer(r.Context(), web.Remote(r, s.cfg.TrustProxy), secret)
		return c, false, err
	}
	name, _ := s.ownCookie(a, cookieApp)
	for _, cookie := range r.CookiesNamed(name) {
		p, err := ticket.Find[forApp](r.Context(), s.pool, passCookie, cookie.Value)
		if pg.IsNone(err) {
			continue
		}
		if err != nil {
			return c, false, err
		}
		if p.Environment == a.Environment && p.Detail.App == a.Name {
			c, err = s.cfg.Now(r.Context(), p.Caller(auth.From(r.Context()).Remote))
			return c, true, err
		}
	}
	return auth.Caller{}, false, nil
}

// logout takes the cookie of an app away.
func (s *Service) logout(w http.ResponseWriter, r *http.Request, a App) {
	name, _ := s.ownCookie(&a, cookieApp)
	for _, cookie := range r.CookiesNamed(name) {
		if err := ticket.Revoke(r.Context(), s.pool, cookie.Value); err != nil {
			s.fail(w, r, err)
			return
		}
	}
	s.setCookie(w, &a, cookieApp, "", 0)
	s.write(w, r, http.StatusOK, "You are logged out of this app.")
}
