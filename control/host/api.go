package host

import (
	"context"
	"net/http"
	"time"

	"github.com/remotegpu/remotegpu/control/auth"
	"github.com/remotegpu/remotegpu/control/web"
	"github.com/remotegpu/remotegpu/protocol"
)

type listInput struct {
	Status string `query:"status" enum:"online,offline,maintenance,error"`
	Search string `query:"search" maxLength:"100" doc:"Text in name, hostname, address or GPU"`
	Label  string `query:"label" maxLength:"200" doc:"key=value, or key"`
	After  string `query:"after" maxLength:"100" doc:"Name of the last host of the page before"`
	Limit  int    `query:"limit" default:"100" minimum:"1" maximum:"1000"`
}

type hostPath struct {
	Host string `path:"host" doc:"Name or id"`
}

type eventsInput struct {
	Host  string `path:"host" doc:"Name or id"`
	After int64  `query:"after" doc:"Only events with a greater id"`
}

type changeInput struct {
	Host string `path:"host" doc:"Name or id"`
	Body Change
}

type gpuInput struct {
	Host string `path:"host" doc:"Name or id"`
	GPU  string `path:"gpu" doc:"UUID or index"`
	Body struct {
		Maintenance bool `json:"maintenance" doc:"Nothing new gets it; who has it keeps it"`
	}
}

type enrollInput struct {
	Body protocol.Enroll
}

type joinInput struct {
	Body struct {
		Uses     int               `json:"uses,omitempty" default:"1" minimum:"1" maximum:"10000"`
		Hours    int               `json:"hours,omitempty" default:"24" minimum:"1" maximum:"8760" doc:"Until it expires"`
		Approval bool              `json:"approval,omitempty"`
		Labels   map[string]string `json:"labels,omitempty"`
	}
}

type tokenOutput struct {
	JoinToken
	Token   string `json:"token" doc:"Shown once"`
	Command string `json:"command" doc:"The line to run on the machine"`
}

type tokenPath struct {
	ID string `path:"id"`
}

// Routes adds the module's routes.
func (s *Service) Routes(api *web.API) {
	web.Register(api, web.Route{Method: http.MethodPost, Path: "/api/v1/agent/enroll", Action: auth.HostEnroll, Summary: "Join as a host"},
		func(ctx context.Context, c auth.Caller, in *enrollInput) (protocol.Enrolled, error) {
			return s.Enroll(ctx, c, in.Body)
		})
	web.Register(api, web.Route{Method: http.MethodGet, Path: "/api/v1/hosts", Action: auth.HostList, Summary: "List hosts by name"},
		func(ctx context.Context, c auth.Caller, in *listInput) (web.Encoded[web.List[Host]], error) {
			return s.List(ctx, c, Filter(*in))
		})
	web.Register(api, web.Route{Method: http.MethodGet, Path: "/api/v1/hosts/{host}", Action: auth.HostList, Summary: "Show a host"},
		func(ctx context.Context, c auth.Caller, in *hostPath) (Host, error) { return s.Find(ctx, c, in.Host) })
	web.Register(api, web.Route{Method: http.MethodPatch, Path: "/api/v1/hosts/{host}", Action: auth.HostManage, Summary: "Change name, labels, tags, groups"},
		func(ctx context.Context, c auth.Caller, in *changeInput) (Host, error) {
			return s.Update(ctx, c, in.Host, in.Body)
		})
	web.Register(api, web.Route{Method: http.MethodPatch, Path: "/api/v1/hosts/{host}/gpus/{gpu}", Action: auth.HostManage, Summary: "Take a GPU out of placement, or let it in again"},
		func(ctx context.Context, c auth.Caller, in *gpuInput) (Host, error) {
			return s.MaintainGPU(ctx, c, in.Host, in.GPU, in.Body.Maintenance)
		})
	web.Register(api, web.Route{Method: http.MethodGet, Path: "/api/v1/hosts/{host}/events", Action: auth.HostList, Summary: "What happened on a host"},
		func(ctx context.Context, c auth.Caller, in *eventsInput) (web.List[Event], error) {
			all, err := s.Events(ctx, c, in.Host, in.After)
			return web.Items(all), err
		})
	for verb := range verbs {
		web.Register(api, web.Route{Method: http.MethodPost, Path: "/api/v1/hosts/{host}/" + verb, Action: auth.HostManage, Summary: "Lifecycle: " + verb},
			func(ctx context.Context, c auth.Caller, in *hostPath) (Host, error) {
				return s.Move(ctx, c, in.Host, verb)
			})
	}
	s.tokenRoutes(api)
}

func (s *Service) tokenRoutes(api *web.API) {
	web.Register(api, web.Route{Method: http.MethodGet, Path: "/api/v1/join-tokens", Action: auth.HostManage, Summary: "List join tokens"},
		func(ctx context.Context, c auth.Caller, _ *struct{}) (web.List[JoinToken], error) {
			all, err := s.Tokens(ctx, c)
			return web.Items(all), err
		})
	web.Register(api, web.Route{Method: http.MethodPost, Path: "/api/v1/join-tokens", Action: auth.HostManage, Summary: "Make a join token", Status: http.StatusCreated},
		func(ctx context.Context, c auth.Caller, in *joinInput) (tokenOutput, error) {
			b := in.Body
			t, secret, err := s.CreateToken(ctx, c, JoinToken{Uses: b.Uses, Approval: b.Approval, Labels: b.Labels}, time.Duration(b.Hours)*time.Hour)
			return tokenOutput{t, secret, s.cfg.InstallCommand(secret)}, err
		})
	web.Register(api, web.Route{Method: http.MethodDelete, Path: "/api/v1/join-tokens/{id}", Action: auth.HostManage, Summary: "Revoke a join token"},
		func(ctx context.Context, c auth.Caller, in *tokenPath) (web.None, error) {
			return web.None{}, s.RevokeToken(ctx, c, in.ID)
		})
}
