package environment

import (
	"context"
	"io"
	"net/http"
	"strconv"
	"time"

	"github.com/remotegpu/remotegpu/control/auth"
	"github.com/remotegpu/remotegpu/control/errs"
	"github.com/remotegpu/remotegpu/control/scheduler"
	"github.com/remotegpu/remotegpu/control/web"
)

type listInput struct {
	Workspace string `path:"workspace" doc:"Name or id"`
}

type createInput struct {
	Workspace string `path:"workspace" doc:"Name or id"`
	Body      Spec
}

type pathInput struct {
	Workspace   string `path:"workspace" doc:"Name or id"`
	Environment string `path:"environment" doc:"Name or id"`
}

type showInput struct {
	Workspace   string `path:"workspace" doc:"Name or id"`
	Environment string `path:"environment" doc:"Name or id"`

	While string `query:"while" doc:"Wait while this is its phase, and nothing of it changes"`
	Wait  int    `query:"wait" minimum:"0" maximum:"30" doc:"Seconds to wait at most"`
}

type eventsInput struct {
	Workspace   string `path:"workspace" doc:"Name or id"`
	Environment string `path:"environment" doc:"Name or id"`

	After int64 `query:"after" doc:"Only events after the one with this id"`
	Wait  int   `query:"wait" minimum:"0" maximum:"30" doc:"Seconds to wait for an event when there is none yet"`
}

const root = "/api/v1/workspaces/{workspace}/environments"

// Routes adds the module's routes.
func (s *Service) Routes(api *web.API) {
	web.Register(api, web.Route{Method: http.MethodGet, Path: root, Action: auth.EnvironmentRead, Summary: "List environments"},
		func(ctx context.Context, c auth.Caller, in *listInput) (web.List[Environment], error) {
			all, err := s.List(ctx, c, in.Workspace)
			return web.Items(all), err
		})
	web.Register(api, web.Route{Method: http.MethodPost, Path: root, Action: auth.EnvironmentWrite, Summary: "Create an environment and start it", Status: http.StatusCreated},
		func(ctx context.Context, c auth.Caller, in *createInput) (Environment, error) {
			return s.Create(ctx, c, in.Workspace, in.Body)
		})
	web.Register(api, web.Route{Method: http.MethodGet, Path: root + "/{environment}", Action: auth.EnvironmentRead, Summary: "Show an environment"},
		func(ctx context.Context, c auth.Caller, in *showInput) (Environment, error) {
			return s.await(ctx, c, in)
		})
	web.Register(api, web.Route{Method: http.MethodDelete, Path: root + "/{environment}", Action: auth.EnvironmentWrite, Summary: "Delete an environment and its files"},
		func(ctx context.Context, c auth.Caller, in *pathInput) (web.None, error) {
			return web.None{}, s.Delete(ctx, c, in.Workspace, in.Environment)
		})
	s.verb(api, opStart, "Start an environment that is stopped or has ended")
	s.verb(api, opStop, "Stop an environment; its files stay")
	s.verb(api, opRestart, "Give an environment a new container; its volumes stay")
	web.Register(api, web.Route{Method: http.MethodGet, Path: root + "/{environment}/events", Action: auth.EnvironmentRead, Summary: "What happened to an environment, oldest first"},
		func(ctx context.Context, c auth.Caller, in *eventsInput) (web.List[Event], error) {
			all, err := s.Events(ctx, c, in.Workspace, in.Environment, in.After, time.Duration(in.Wait)*time.Second)
			return web.Items(all), err
		})
	web.Register(api, web.Route{Method: http.MethodGet, Path: root + "/{environment}/placements", Action: auth.PlacementRead, Summary: "How its host was chosen, newest first"},
		func(ctx context.Context, c auth.Caller, in *pathInput) (web.List[scheduler.Placement], error) {
			all, err := s.Placements(ctx, c, in.Workspace, in.Environment)
			return web.Items(all), err
		})
	api.Raw(web.Route{Method: http.MethodGet, Path: root + "/{environment}/logs", Action: auth.EnvironmentRead, Summary: "What its command has written, as text"},
		http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { s.serveLogs(api, w, r) }))
}

func (s *Service) verb(api *web.API, op operation, summary string) {
	web.Register(api, web.Route{Method: http.MethodPost, Path: root + "/{environment}/" + string(op), Action: auth.EnvironmentWrite, Summary: summary},
		func(ctx context.Context, c auth.Caller, in *pathInput) (Environment, error) {
			return s.change(ctx, c, in.Workspace, in.Environment, op)
		})
}

func (s *Service) serveLogs(api *web.API, w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	tail, err := strconv.Atoi(q.Get("tail"))
	if q.Get("tail") == "" {
		tail, err = 100, nil
	}
	if err != nil || tail < 0 || tail > 1e6 {
		api.Fail(w, r, errs.E(errs.Invalid, "tail must be a number of lines, at most a million."))
		return
	}
	logs, err := s.Logs(r.Context(), auth.From(r.Context()), r.PathValue("workspace"), r.PathValue("environment"), tail, q.Get("follow") == "true")
	if err != nil {
		api.Fail(w, r, err)
		return
	}
	defer logs.Close()
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	_, _ = io.Copy(flusher{w, http.NewResponseController(w)}, logs) // the reader may have gone
}

// flusher sends what it is given at once: a log is followed as it grows.
type flusher struct {
	io.Writer
	c *http.ResponseController
}

func (f flusher) Write(b []byte) (int, error) {
	n, err := f.Writer.Write(b)
	if err == nil {
		err = f.c.Flush()
	}
	return n, err
}
