package app

import (
	"context"
	_ "embed"
	"fmt"
	"io"
	"net/http"
	"path"
	"strings"
	"time"

	"github.com/remotegpu/remotegpu/control/audit"
	"github.com/remotegpu/remotegpu/control/auth"
	"github.com/remotegpu/remotegpu/control/environment"
	"github.com/remotegpu/remotegpu/control/errs"
	"github.com/remotegpu/remotegpu/control/pg"
)

// jupyterName is the name of the app that Jupyter is.
const jupyterName = "jupyter"

// jupyterScript starts Jupyter on a unix socket that its user alone can open,
// without a password: who comes through us has shown one, and nobody else in
// the container, let alone its network, comes to the socket. It prints the
// folder of socket and log.
//
//go:embed jupyter.sh
var jupyterScript string

// jupyterExtension is the extension of Jupyter's server that keeps what cells
// print while no page is open.
//
//go:embed jupyter.py
var jupyterExtension string

// noJupyter is the script's exit status when the image has none.
const noJupyter = 3

// jupyterWait is how long Jupyter may take to answer: the caller's own patience
// is a minute.
const jupyterWait = 45 * time.Second

// Jupyter starts Jupyter in env, WORKSPACE/ENVIRONMENT, unless it runs, waits
// until it answers and returns its app.
func (s *Service) Jupyter(ctx context.Context, c auth.Caller, env string) (App, error) {
	e, err := s.environment(ctx, c, auth.EnvironmentAccess, env)
	if err != nil {
		return App{}, err
	}
	// Who asks twice, or two who ask at once, get the same one.
	result := s.starts.DoChan(e.ID, func() (any, error) {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), jupyterWait)
		defer cancel()
		return s.startJupyter(ctx, c, e)
	})
	select {
	case <-ctx.Done():
		return App{}, ctx.Err()
	case r := <-result:
		a, _ := r.Val.(App)
		a.URL = s.cfg.Places.url(&a)
		return a, r.Err
	}
}

func (s *Service) startJupyter(ctx context.Context, c auth.Caller, e environment.Environment) (App, error) {
	a, err := get(ctx, s.pool, e.ID, jupyterName)
	if err == nil && s.answers(ctx, &a) == nil {
		return a, nil
	}
	if err != nil && !pg.IsNone(err) {
		return a, err
	}
	ws, err := s.workspaceName(ctx, e)
	if err != nil {
		return a, err
	}
	base := (&App{WorkspaceName: ws, EnvironmentName: e.Name, Name: jupyterName}).base()
	line := strings.NewReplacer("@BASE@", base, "@EXTENSION@", jupyterExtension).Replace(jupyterScript)
	out, code, err := s.cfg.Exec(ctx, c, e, line)
	dir := strings.TrimSpace(out)
	switch {
	case err != nil:
		return a, err
	case code == noJupyter:
		return a, errs.Ef(errs.Conflict, "The image of environment %s has no Jupyter. Install it there (pip install jupyterlab, or apt-get install jupyter-notebook), or use the starter image.", e.Name)
	case code != 0 || !path.IsAbs(dir) || strings.ContainsAny(dir, "'\n\x00"):
		return a, errs.Ef(errs.Unavailable, "Jupyter could not be started in environment %s (status %d): %.200s", e.Name, code, dir)
	}
	if a, err = s.putJupyter(ctx, c, e, dir+"/socket"); err != nil {
		return a, err
	}
	return a, s.awaitJupyter(ctx, c, e, dir)
}

// workspaceName is the name of e's workspace, which is in paths.
func (s *Service) workspaceName(ctx context.Context, e environment.Environment) (string, error) {
	a, err := s.lookUp(ctx, ref{id: e.ID, app: "1"}) // any port will do
	return a.WorkspaceName, err
}

// putJupyter notes where Jupyter listens. Who may use it stays as it was.
func (s *Service) putJupyter(ctx context.Context, c auth.Caller, e environment.Environment, socket string) (App, error) {
	err := pg.InTx(ctx, s.pool, func(tx pg.Tx) error {
		_, err := get(ctx, tx, e.ID, jupyterName)
		if pg.IsNone(err) {
			err = put(ctx, tx, App{Environment: e.ID, Name: jupyterName, Socket: socket, BasePath: true, Visibility: Workspace, UserIDs: []string{}, Owner: c.ID})
		} else if err == nil {
			err = setSocket(ctx, tx, e.ID, jupyterName, socket)
		}
		if err != nil {
			return err
		}
		return audit.Record(ctx, tx, c, auth.EnvironmentAccess, e.ID, e.Workspace, map[string]any{"started": jupyterName})
	})
	if err != nil {
		return App{}, err
	}
	return get(ctx, s.pool, e.ID, jupyterName)
}

// awaitJupyter waits until Jupyter answers, and says what it wrote when it does
// not.
func (s *Service) awaitJupyter(ctx context.Context, c auth.Caller, e environment.Environment, dir string) error {
	a, err := get(ctx, s.pool, e.ID, jupyterName)
	if err != nil {
		return err
	}
	for {
		if err = s.answers(ctx, &a); err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			late, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
			defer cancel()
			said, _, _ := s.cfg.Exec(late, c, e, "tail -n 3 '"+dir+"/log'") // without it the sentence is shorter
			return errs.E(errs.Unavailable, strings.TrimSpace("Jupyter does not answer in environment "+e.Name+"; its log is "+dir+"/log there. "+said), err)
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// answers asks Jupyter whether it is there.
func (s *Service) answers(ctx context.Context, a *App) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+a.Environment+"."+a.Name+a.base()+"api/status", nil)
	if err != nil {
		return err
	}
	res, err := s.proxy.Transport.RoundTrip(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	_, _ = io.Copy(io.Discard, io.LimitReader(res.Body, 1<<20)) // so that the connection can be used again
	if res.StatusCode != http.StatusOK {
		return fmt.Errorf("Jupyter answers %s", res.Status)
	}
	return nil
}
