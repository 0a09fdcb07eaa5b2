package recording

import (
	"context"
	"io"
	"net/http"

	"github.com/remotegpu/remotegpu/control/auth"
	"github.com/remotegpu/remotegpu/control/web"
)

type workspaceInput struct {
	Workspace string `path:"workspace" doc:"Name or id"`
}

type policyInput struct {
	Workspace string `path:"workspace" doc:"Name or id"`
	Body      Policy
}

type listInput struct {
	Workspace   string `path:"workspace" doc:"Name or id"`
	Environment string `query:"environment" doc:"Name or id; empty: all"`
}

// Routes adds the module's routes.
func (s *Service) Routes(api *web.API) {
	const ws = "/api/v1/workspaces/{workspace}"
	web.Register(api, web.Route{Method: http.MethodGet, Path: ws + "/recording", Action: auth.WorkspaceRead, Summary: "What the workspace records"},
		func(ctx context.Context, c auth.Caller, in *workspaceInput) (Policy, error) {
			return s.PolicyOf(ctx, c, in.Workspace)
		})
	web.Register(api, web.Route{Method: http.MethodPut, Path: ws + "/recording", Action: auth.RecordingManage, Summary: "Change what the workspace records"},
		func(ctx context.Context, c auth.Caller, in *policyInput) (web.None, error) {
			return web.None{}, s.SetPolicy(ctx, c, in.Workspace, in.Body)
		})
	web.Register(api, web.Route{Method: http.MethodGet, Path: ws + "/recordings", Action: auth.RecordingRead, Summary: "List recordings, newest first"},
		func(ctx context.Context, c auth.Caller, in *listInput) (web.List[Recording], error) {
			all, err := s.List(ctx, c, in.Workspace, in.Environment)
			return web.Items(all), err
		})
	api.Raw(web.Route{Method: http.MethodGet, Path: ws + "/recordings/{id}", Action: auth.RecordingRead, Summary: "A recording as asciicast v2"},
		http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { s.serveCast(api, w, r) }))
}

func (s *Service) serveCast(api *web.API, w http.ResponseWriter, r *http.Request) {
	c := auth.From(r.Context())
	if c.Kind == auth.KindNobody {
		api.Fail(w, r, c.Require(mayRead, ""))
		return
	}
	_, file, err := s.Open(r.Context(), c, r.PathValue("workspace"), r.PathValue("id"))
	if err != nil {
		api.Fail(w, r, err)
		return
	}
	defer file.Close()
	w.Header().Set("Content-Type", "application/x-asciicast")
	if _, err := io.Copy(w, file); err != nil {
		panic(http.ErrAbortHandler) // so that a torn file is not taken for a whole one
	}
}
