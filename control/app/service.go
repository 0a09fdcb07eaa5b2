package app

import (
	"context"
	"log/slog"
	"net/http"
	"net/http/httputil"
	"strings"

	"golang.org/x/sync/singleflight"

	"github.com/remotegpu/remotegpu/control/audit"
	"github.com/remotegpu/remotegpu/control/auth"
	"github.com/remotegpu/remotegpu/control/environment"
	"github.com/remotegpu/remotegpu/control/errs"
	"github.com/remotegpu/remotegpu/control/pg"
	"github.com/remotegpu/remotegpu/protocol"
	"github.com/remotegpu/remotegpu/protocol/tunnel"
)

// Config is what the module needs from others.
type Config struct {
	Places Places
	// Resolve finds a workspace by name or id, Get an environment in it, for a
	// caller; Find is Get for an id alone.
	Resolve func(ctx context.Context, workspace string) (id string, err error)
	Get     func(ctx context.Context, c auth.Caller, workspace, nameOrID string) (environment.Environment, error)
	Find    func(ctx context.Context, c auth.Caller, id string) (environment.Environment, error)
	// Dial connects with what listens in an environment.
	Dial func(ctx context.Context, c auth.Caller, e environment.Environment, t protocol.Target) (*tunnel.Conn, error)
	// Pass returns what waits until so many bytes of a user's request may pass, for
	// connections that many share.
	Pass func(ctx context.Context, user string) func(n int)
	// Exec runs a line by the shell of an environment.
	Exec func(ctx context.Context, c auth.Caller, e environment.Environment, line string) (out string, code int, err error)
	// Bearer finds out who shows an API token, Now who somebody is with the rights
	// of now, if they have any, Login opens a session for a password.
	Bearer     func(ctx context.Context, remote, secret string) (auth.Caller, error)
	Now        func(ctx context.Context, c auth.Caller) (auth.Caller, error)
	Login      func(ctx context.Context, c auth.Caller, email, password string) (auth.Caller, error)
	LoginPage  http.Handler // what /apps/login shows
	TrustProxy bool         // the address in X-Forwarded-For is the person's
}

// Service does everything with apps and forwards.
type Service struct {
	pool   *pg.Pool
	cfg    Config
	log    *slog.Logger
	proxy  *httputil.ReverseProxy
	visits visits
	live   live
	starts singleflight.Group // of Jupyter, by environment
}

// New returns the service.
func New(pool *pg.Pool, cfg Config, log *slog.Logger) *Service {
	s := &Service{pool: pool, cfg: cfg, log: log}
	s.visits = visits{pool: pool, log: log, uses: map[way]*use{}, idle: visitIdle}
	s.live = live{all: map[*watched]struct{}{}}
	s.proxy = s.newProxy()
	return s
}

// Close writes what is not yet in the audit log, when the server stops.
func (s *Service) Close() { s.visits.close() }

// environment returns WORKSPACE/ENVIRONMENT, by names or ids, if c may do action
// there.
func (s *Service) environment(ctx context.Context, c auth.Caller, action auth.Action, path string) (environment.Environment, error) {
	if c.Kind == auth.KindNobody { // who is told nothing of workspaces
		return environment.Environment{}, c.Require(action, "")
	}
	workspace, name, _ := strings.Cut(path, "/")
	ws, err := s.cfg.Resolve(ctx, workspace)
	if err != nil {
		return environment.Environment{}, err
	}
	if err := c.Require(action, ws); err != nil {
		return environment.Environment{}, err
	}
	return s.cfg.Get(ctx, c, ws, name)
}

// List returns the apps of a workspace that somebody has exposed, by
// environment and name.
func (s *Service) List(ctx context.Context, c auth.Caller, workspace string) ([]App, error) {
	ws, err := s.cfg.Resolve(ctx, workspace)
	if err != nil {
		return nil, err
	}
	if err := c.Require(auth.AppRead, ws); err != nil {
		return nil, err
	}
	all, err := list(ctx, s.pool, ws)
	for i := range all {
		all[i].URL = s.cfg.Places.url(&all[i])
	}
	return all, err
}

// Put says who may use an app of env, WORKSPACE/ENVIRONMENT, and where it is when its name is a word.
func (s *Service) Put(ctx context.Context, c auth.Caller, env, name string, spec Spec) (App, error) {
	e, err := s.environment(ctx, c, auth.AppWrite, env)
	if err != nil {
		return App{}, err
	}
	err = pg.InTx(ctx, s.pool, func(tx pg.Tx) error {
		a, err := s.merge(ctx, tx, e, name, spec)
		if err != nil {
			return err
		}
		var unknown string
		if a.UserIDs, unknown, err = userIDs(ctx, tx, spec.Users); err != nil {
			return err
		}
		if unknown != "" {
			return errs.Ef(errs.Invalid, "There is no user with the address %.100s.", unknown)
		}
		if a.Environment, a.Owner = e.ID, c.ID; a.UserIDs == nil {
			a.UserIDs = []string{}
		}
		if err := put(ctx, tx, a); err != nil {
			return err
		}
		detail := map[string]any{"app": name, "port": a.Port, "visibility": a.Visibility, "users": spec.Users}
		if err := audit.Record(ctx, tx, c, auth.AppWrite, e.ID, e.Workspace, detail); err != nil {
			return err
		}
		return pg.Notify(ctx, tx, Changed, e.ID)
	})
	if pg.IsUnique(err, "apps_port") {
		return App{}, errs.Ef(errs.Conflict, "Another app of environment %s has this port already: see remotegpu app ls", e.Name)
	} else if err != nil {
		return App{}, err
	}
	a, err := get(ctx, s.pool, e.ID, name)
	a.URL = s.cfg.Places.url(&a)
	return a, err
}

// merge is the app that spec makes. Of what we started ourselves only who may
// use it can be changed.
func (s *Service) merge(ctx context.Context, tx pg.Tx, e environment.Environment, name string, spec Spec) (App, error) {
	if name != jupyterName {
		return spec.app(name)
	}
	a, err := get(ctx, tx, e.ID, name)
	if pg.IsNone(err) {
		return a, errs.Ef(errs.NotFound, "Jupyter was not started in environment %s yet; do so: remotegpu jupyter %s", e.Name, e.Name)
	} else if err != nil {
		return a, err
	}
	return a, spec.share(&a)
}

// Remove makes an app what every port is: open to those who may have a shell.
func (s *Service) Remove(ctx context.Context, c auth.Caller, env, name string) error {
	e, err := s.environment(ctx, c, auth.AppWrite, env)
	if err != nil {
		return err
	}
	return pg.InTx(ctx, s.pool, func(tx pg.Tx) error {
		there, err := remove(ctx, tx, e.ID, name)
		if err != nil {
			return err
		}
		if !there {
			return errs.Ef(errs.NotFound, "Environment %s has no app %.40s that was exposed: see remotegpu app ls", e.Name, name)
		}
		if err := audit.Record(ctx, tx, c, auth.AppWrite, e.ID, e.Workspace, map[string]any{"app": name, "removed": true}); err != nil {
			return err
		}
		return pg.Notify(ctx, tx, Changed, e.ID)
	})
}

// errUnknown is what somebody who has logged in is told of an app that is not
// there or not for them: which of the two is secret.
var errUnknown = errs.E(errs.NotFound, "There is no such app, or you may not use it. Ask who gave you the address, or see: remotegpu app ls")

// lookUp returns the app that a request names; errUnknown: there is none.
func (s *Service) lookUp(ctx context.Context, r ref) (App, error) {
	all, err := find(ctx, s.pool, r)
	if err != nil {
		return App{}, err
	}
	for _, a := range all {
		if a.Name == "" {
			a.Port, _ = portOf(r.app)
			a.Name, a.Visibility = r.app, Workspace
		}
		named := a.Name == r.app && (a.Port > 0 || a.Socket != "")
		if named && (r.label == "" || a.label() == r.label) {
			return a, nil
		}
	}
	return App{}, errUnknown
}
