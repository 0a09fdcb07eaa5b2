package workspace

import (
	"context"
	"net/http"

	"github.com/remotegpu/remotegpu/control/auth"
	"github.com/remotegpu/remotegpu/control/web"
)

type createInput struct {
	Body struct {
		Name  string `json:"name" maxLength:"40"`
		Owner string `json:"owner,omitempty" maxLength:"254" doc:"E-mail address or id; empty: the caller"`
	}
}

type pathInput struct {
	Workspace string `path:"workspace" doc:"Name or id"`
}

type memberPath struct {
	Workspace string `path:"workspace" doc:"Name or id"`
	User      string `path:"user" doc:"E-mail address or id"`
}

type memberInput struct {
	Workspace string `path:"workspace" doc:"Name or id"`
	User      string `path:"user" doc:"E-mail address or id"`
	Body      struct {
		Role auth.Role `json:"role" enum:"owner,admin,member,viewer"`
	}
}

// Routes adds the module's routes.
func (s *Service) Routes(api *web.API) {
	web.Register(api, web.Route{Method: http.MethodGet, Path: "/api/v1/workspaces", Action: auth.WorkspaceList, Summary: "List workspaces"},
		func(ctx context.Context, c auth.Caller, _ *struct{}) (web.List[Workspace], error) {
			all, err := s.List(ctx, c)
			return web.Items(all), err
		})
	web.Register(api, web.Route{Method: http.MethodPost, Path: "/api/v1/workspaces", Action: auth.WorkspaceCreate, Summary: "Make a workspace", Status: http.StatusCreated},
		func(ctx context.Context, c auth.Caller, in *createInput) (Workspace, error) {
			owner := in.Body.Owner
			if owner == "" {
				owner = c.ID
			}
			return s.Create(ctx, c, in.Body.Name, owner)
		})
	web.Register(api, web.Route{Method: http.MethodGet, Path: "/api/v1/workspaces/{workspace}", Action: auth.WorkspaceRead, Summary: "Show a workspace"},
		func(ctx context.Context, c auth.Caller, in *pathInput) (Workspace, error) {
			return s.Find(ctx, c, in.Workspace)
		})
	web.Register(api, web.Route{Method: http.MethodGet, Path: "/api/v1/workspaces/{workspace}/members", Action: auth.WorkspaceRead, Summary: "List members"},
		func(ctx context.Context, c auth.Caller, in *pathInput) (web.List[Membership], error) {
			all, err := s.Members(ctx, c, in.Workspace)
			return web.Items(all), err
		})
	web.Register(api, web.Route{Method: http.MethodPut, Path: "/api/v1/workspaces/{workspace}/members/{user}", Action: auth.MemberWrite, Summary: "Add a member or change their role"},
		func(ctx context.Context, c auth.Caller, in *memberInput) (web.None, error) {
			return web.None{}, s.SetMember(ctx, c, in.Workspace, in.User, in.Body.Role)
		})
	web.Register(api, web.Route{Method: http.MethodDelete, Path: "/api/v1/workspaces/{workspace}/members/{user}", Action: auth.MemberWrite, Summary: "Remove a member"},
		func(ctx context.Context, c auth.Caller, in *memberPath) (web.None, error) {
			return web.None{}, s.RemoveMember(ctx, c, in.Workspace, in.User)
		})
}
