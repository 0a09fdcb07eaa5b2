package app

import (
	"cmp"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"strings"
	"time"

	"github.com/remotegpu/remotegpu/control/auth"
	"github.com/remotegpu/remotegpu/control/environment"
	"github.com/remotegpu/remotegpu/control/errs"
	"github.com/remotegpu/remotegpu/control/web"
)

// Handler serves the hosts of apps, and gives what is for another host to next.
func (s *Service) Handler(next http.Handler) http.Handler {
	paths := s.PathHandler()
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if label, ok := s.cfg.Places.within(r.Host); ok {
			named, _ := parseLabel(label) // a wrong one names nothing
			s.serve(w, r, named, r.URL.EscapedPath())
			return
		}
		if p := s.cfg.Places.Path; p != "" && p != s.cfg.Places.Main && strings.EqualFold("https://"+r.Host, p) {
			paths.ServeHTTP(w, r)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// PathHandler serves the apps that share an origin, by their paths. The origin
// must not be the console's.
func (s *Service) PathHandler() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		named, rest, ok := parsePath(r.URL.EscapedPath())
		switch {
		case !ok || s.cfg.Places.Domain != "":
			s.fail(w, r, errs.E(errs.NotFound, "Apps are at /apps/WORKSPACE/ENVIRONMENT/PORT/ here: see remotegpu app ls"))
		case rest == "":
			to := *r.URL
			to.Path, to.RawPath = to.Path+"/", ""
			http.Redirect(w, r, to.RequestURI(), http.StatusPermanentRedirect)
		default:
			s.serve(w, r, named, rest)
		}
	})
}

// request is one that has been let in.
type request struct {
	app    App
	caller auth.Caller
	strip  string // what the app is not told of its paths
}

type requestKey struct{}

func requestOf(ctx context.Context) *request {
	r, _ := ctx.Value(requestKey{}).(*request)
	return r
}

// serve answers a request for the app that named names; rest is its path there.
func (s *Service) serve(w http.ResponseWriter, r *http.Request, named ref, rest string) {
	a, err := s.lookUp(r.Context(), named)
	if err != nil && errs.KindOf(err) != errs.NotFound {
		s.fail(w, r, err)
		return
	}
	if err == nil && strings.HasPrefix(rest, "/"+reserved) {
		s.serveOwn(w, r, a, strings.TrimPrefix(rest, "/"+reserved))
		return
	}
	c, byCookie, whoErr := s.who(r, &a)
	switch {
	case whoErr != nil && errs.KindOf(whoErr) != errs.Unauthenticated:
		s.fail(w, r, whoErr)
	case err == nil && a.Visibility == Public: // whoever it is
		s.forwardTo(w, r, &request{app: a, caller: c})
	case whoErr != nil || c.Kind == auth.KindNobody: // whether it is there, is not for strangers
		if err != nil {
			a = App{WorkspaceName: named.workspace, EnvironmentName: named.env, Name: named.app}
		}
		s.askLogin(w, r, &a, named)
	case err != nil || !a.allows(c):
		s.fail(w, r, errUnknown)
	case byCookie && foreign(r):
		s.fail(w, r, errs.E(errs.Denied, "Another site asked for this in your name; it was refused. Open the app by itself."))
	default:
		s.forwardTo(w, r, &request{app: a, caller: c})
	}
}

// serveOwn answers the paths below an app that are ours.
func (s *Service) serveOwn(w http.ResponseWriter, r *http.Request, a App, path string) {
	switch {
	case path == "login" && r.Method == http.MethodGet:
		s.redeem(w, r, a)
	case path == "logout" && !foreign(r):
		s.logout(w, r, a)
	default:
		s.fail(w, r, errUnknown)
	}
}

// foreign reports whether another origin's page makes this request: the cookie
// comes along, and the person does not know. That one follows a link is all
// right; hosts of apps are the same site for a browser, so SameSite says little.
func foreign(r *http.Request) bool {
	reads := r.Method == http.MethodGet || r.Method == http.MethodHead
	if origin := r.Header.Get("Origin"); origin != "" && !strings.EqualFold(origin, "https://"+r.Host) {
		return true
	}
	switch r.Header.Get("Sec-Fetch-Site") {
	case "", "same-origin", "none":
		return false
	}
	return !reads || r.Header.Get("Sec-Fetch-Mode") != "navigate" || r.Header.Get("Sec-Fetch-Dest") != "document" || r.Header.Get("Upgrade") != ""
}

// navigates reports whether a person opens a page.
func navigates(r *http.Request) bool {
	if r.Method != http.MethodGet && r.Method != http.MethodHead || r.Header.Get("Upgrade") != "" {
		return false
	}
	if mode := r.Header.Get("Sec-Fetch-Mode"); mode != "" {
		return mode == "navigate" && r.Header.Get("Sec-Fetch-Dest") == "document"
	}
	return strings.Contains(r.Header.Get("Accept"), "text/html")
}

// forwardTo hands a request to the app.
func (s *Service) forwardTo(w http.ResponseWriter, r *http.Request, q *request) {
	a := &q.app
	if s.cfg.Places.Domain == "" && !a.BasePath {
		q.strip = strings.TrimSuffix(a.base(), "/")
	}
	if a.BasePath && r.URL.Path == "/" {
		http.Redirect(w, r, a.base(), http.StatusFound)
		return
	}
	q.caller.Remote = web.Remote(r, s.cfg.TrustProxy)
	v, err := s.visits.begin(r.Context(), q.caller, environment.Environment{ID: a.Environment, Workspace: a.Workspace}, "app", a.Name)
	if err != nil {
		s.fail(w, r, err)
		return
	}
	defer v.end()
	ctx, cancel := context.WithCancel(context.WithValue(r.Context(), requestKey{}, q))
	defer cancel()
	v.pass = s.cfg.Pass(ctx, cmp.Or(q.caller.ID, q.caller.Remote))
	credentials := r.Clone(context.WithoutCancel(ctx))
	defer s.live.add(&watched{cancel: cancel, again: func() error { return s.again(credentials, *a) }})()
	if r.Body != nil && r.Body != http.NoBody {
		r.Body = struct {
			io.Reader
			io.Closer
		}{countingReader{r.Body, func(n int64) { v.add(n, 0) }}, r.Body}
	}
	s.proxy.ServeHTTP(&counted{ResponseWriter: w, visit: v}, r.WithContext(ctx))
}

// newProxy carries requests to apps. It has no time-outs: a program may think
// for hours before it answers.
func (s *Service) newProxy() *httputil.ReverseProxy {
	return &httputil.ReverseProxy{
		Transport: &http.Transport{
			DialContext: s.dial, DisableCompression: true, MaxIdleConnsPerHost: 8, IdleConnTimeout: time.Minute,
			WriteBufferSize: 64 << 10, ReadBufferSize: 32 << 10,
		},
		FlushInterval:  -1,
		Rewrite:        s.rewrite,
		ModifyResponse: s.answer,
		ErrorHandler:   s.broken,
		ErrorLog:       slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
	}
}

// rewrite makes the request that the app gets. Hop-by-hop headers and all
// X-Forwarded ones are gone already.
func (s *Service) rewrite(p *httputil.ProxyRequest) {
	q := requestOf(p.In.Context())
	clean(p.Out.Header)
	p.Out.URL.Scheme = "http"
	p.Out.URL.Host = q.app.Environment + "." + q.app.Name // what dial is asked for
	p.Out.URL.RawQuery = p.In.URL.RawQuery                // as it came: nothing was decided by it
	p.Out.URL.Path = strings.TrimPrefix(p.In.URL.Path, q.strip)
	if p.In.URL.RawPath != "" {
		p.Out.URL.RawPath = strings.TrimPrefix(p.In.URL.RawPath, q.strip)
	}
	h := p.Out.Header
	h.Set("X-Forwarded-For", q.caller.Remote)
	h.Set("X-Forwarded-Host", p.In.Host)
	h.Set("X-Forwarded-Proto", "https")
	if q.strip != "" {
		h.Set("X-Forwarded-Prefix", q.strip)
	}
	if h.Get("User-Agent") == "" {
		h.Set("User-Agent", "") // or Go adds its own
	}
}

// answer changes what the app answers.
func (s *Service) answer(res *http.Response) error {
	q := requestOf(res.Request.Context())
	confine(res.Header, s.cfg.Places.origin(&q.app), s.cfg.Places.scope(&q.app), q.strip)
	return nil
}

// dial connects with the app that addr names: ENVIRONMENT.APP:80.
func (s *Service) dial(ctx context.Context, _, addr string) (net.Conn, error) {
	host, _, _ := net.SplitHostPort(addr)
	env, name, _ := strings.Cut(host, ".")
	e, err := s.cfg.Find(ctx, auth.System("app"), env)
	if err != nil {
		return nil, err
	}
	a, err := s.lookUp(ctx, ref{id: env, app: name})
	if err != nil {
		return nil, err
	}
	// Connections are shared by who uses the app: how many there are is capped per
	// app, what passes is per user, in forwardTo.
	as := auth.System(host)
	var first error
	for _, t := range a.targets() {
		conn, err := s.cfg.Dial(ctx, as, e, t)
		if err == nil {
			return conn, nil
		}
		if first == nil {
			first = err
		}
	}
	return nil, first
}

// broken says why the app did not answer.
func (s *Service) broken(w http.ResponseWriter, r *http.Request, err error) {
	q := requestOf(r.Context())
	if r.Context().Err() != nil {
		panic(http.ErrAbortHandler) // the browser has left, or its right to be here
	}
	if op, ok := errors.AsType[*url.Error](err); ok {
		err = op.Err
	}
	if errs.KindOf(err) == errs.Internal {
		s.log.Info("app did not answer", "env", q.app.Environment, "app", q.app.Name, "err", err)
		s.write(w, r, http.StatusBadGateway, "The program behind "+q.app.Name+" in environment "+q.app.EnvironmentName+" ended the connection before it had answered, or does not speak HTTP. Look at its log.")
		return
	}
	s.fail(w, r, err)
}
