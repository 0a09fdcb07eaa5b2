package scheduler

import (
	"context"
	"net/http"

	"github.com/remotegpu/remotegpu/control/auth"
	"github.com/remotegpu/remotegpu/control/web"
)

// Settings are what an admin changes at run time.
type Settings struct {
	Strategy Strategy `json:"strategy" enum:"first_fit,best_fit,least_loaded,round_robin,random"`
}

type settingsInput struct{ Body Settings }

type historyInput struct {
	Before int64 `query:"before" doc:"Only entries with a smaller id, for paging"`
	Limit  int   `query:"limit" default:"100" minimum:"1" maximum:"1000"`
}

// Routes adds the module's routes.
func (s *Service) Routes(api *web.API) {
	web.Register(api, web.Route{Method: http.MethodGet, Path: "/api/v1/scheduler", Action: auth.SchedulerManage, Summary: "How hosts are chosen"},
		func(ctx context.Context, c auth.Caller, _ *struct{}) (Settings, error) {
			st, err := s.Strategy(ctx, c)
			return Settings{st}, err
		})
	web.Register(api, web.Route{Method: http.MethodPut, Path: "/api/v1/scheduler", Action: auth.SchedulerManage, Summary: "Change how hosts are chosen"},
		func(ctx context.Context, c auth.Caller, in *settingsInput) (Settings, error) {
			return in.Body, s.SetStrategy(ctx, c, in.Body.Strategy)
		})
	web.Register(api, web.Route{Method: http.MethodGet, Path: "/api/v1/scheduler/placements", Action: auth.SchedulerManage, Summary: "Decisions of the whole fleet, newest first"},
		func(ctx context.Context, c auth.Caller, in *historyInput) (web.List[Placement], error) {
			if err := c.Require(auth.SchedulerManage, ""); err != nil {
				return web.List[Placement]{}, err
			}
			all, err := History(ctx, s.pool, "", in.Before, in.Limit)
			return web.Items(all), err
		})
}
