package app

import (
	"context"
	"encoding/json"
	"net/http"

	"github.com/remotegpu/remotegpu/control/auth"
	"github.com/remotegpu/remotegpu/control/web"
)

type workspaceInput struct {
	Workspace string `path:"workspace" doc:"Name or id"`
}

type appInput struct {
	Workspace   string `path:"workspace" doc:"Name or id"`
	Environment string `path:"environment" doc:"Name or id"`
	App         string `path:"app" doc:"Its port, or a word of small letters and digits"`
}

type putInput struct {
	Workspace   string `path:"workspace" doc:"Name or id"`
	Environment string `path:"environment" doc:"Name or id"`
	App         string `path:"app" doc:"Its port, or a word of small letters and digits"`
	Body        Spec
}

type openInput struct {
	Body struct {
		App  string `json:"app" maxLength:"200" doc:"WORKSPACE/ENVIRONMENT/PORT-OR-NAME"`
		Path string `json:"path,omitempty" maxLength:"2000" doc:"Page to open; default: the first"`
	}
}

type openOutput struct {
	URL string `json:"url" doc:"Opens the app in the browser that opens it first, within 30 s; not to be passed on"`
}

type environmentInput struct {
	Workspace   string `path:"workspace" doc:"Name or id"`
	Environment string `path:"environment" doc:"Name or id"`
}

type jupyterOutput struct {
	URL string `json:"url" doc:"Opens Jupyter in the browser that opens it first, within 30 s; not to be passed on"`
	App App    `json:"app"`
}

const (
	workspacePath   = "/api/v1/workspaces/{workspace}"
	environmentPath = workspacePath + "/environments/{environment}"
)

// Routes adds the module's routes.
func (s *Service) Routes(api *web.API) {
	web.Register(api, web.Route{Method: http.MethodGet, Path: workspacePath + "/apps", Action: auth.AppRead, Summary: "List apps that were exposed"},
		func(ctx context.Context, c auth.Caller, in *workspaceInput) (web.List[App], error) {
			all, err := s.List(ctx, c, in.Workspace)
			return web.Items(all), err
		})
	web.Register(api, web.Route{Method: http.MethodPut, Path: environmentPath + "/apps/{app}", Action: auth.AppWrite, Summary: "Say who may use a port of an environment"},
		func(ctx context.Context, c auth.Caller, in *putInput) (App, error) {
			return s.Put(ctx, c, in.Workspace+"/"+in.Environment, in.App, in.Body)
		})
	web.Register(api, web.Route{Method: http.MethodDelete, Path: environmentPath + "/apps/{app}", Action: auth.AppWrite, Summary: "Take back what was said of a port"},
		func(ctx context.Context, c auth.Caller, in *appInput) (web.None, error) {
			return web.None{}, s.Remove(ctx, c, in.Workspace+"/"+in.Environment, in.App)
		})
	web.Register(api, web.Route{Method: http.MethodPost, Path: "/api/v1/apps/open", Action: auth.AppOpen, Summary: "A way into an app for a browser that has not logged in"},
		func(ctx context.Context, c auth.Caller, in *openInput) (openOutput, error) {
			to, err := s.ticket(ctx, c, in.Body.App, "", in.Body.Path)
			return openOutput{to}, err
		})
	web.Register(api, web.Route{Method: http.MethodPost, Path: environmentPath + "/jupyter", Action: auth.EnvironmentAccess, Summary: "Start Jupyter, unless it runs, and a way in for a browser"},
		func(ctx context.Context, c auth.Caller, in *environmentInput) (jupyterOutput, error) {
			a, err := s.Jupyter(ctx, c, in.Workspace+"/"+in.Environment)
			if err != nil {
				return jupyterOutput{}, err
			}
			to, err := s.ticket(ctx, c, a.WorkspaceName+"/"+a.EnvironmentName+"/"+a.Name, "", "")
			return jupyterOutput{to, a}, err
		})
	api.Raw(web.Route{Method: http.MethodGet, Path: environmentPath + "/dial", Action: auth.EnvironmentAccess, Summary: "A WebSocket with the bytes of ?network=tcp|udp|unix&address=… in an environment"},
		http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { s.forward(api, w, r) }))
	s.loginRoutes(api)
}

// loginRoutes are for browsers that come from an app.
func (s *Service) loginRoutes(api *web.API) {
	api.Raw(web.Route{Method: http.MethodGet, Path: "/apps/login", Action: auth.HealthRead, Summary: "Page that logs in to an app"}, http.HandlerFunc(s.showLogin))
	api.Raw(web.Route{Method: http.MethodPost, Path: "/apps/login", Action: auth.SessionCreate, Summary: "What that page sends"},
		http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			to, err := s.takeLogin(w, r)
			if err != nil {
				api.Fail(w, r, err)
				return
			}
			w.Header().Set("Content-Type", "application/json")
			_ = json.NewEncoder(w).Encode(openOutput{to}) // the peer may be gone
		}))
}
