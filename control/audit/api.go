package audit

import (
	"context"
	"net/http"

	"github.com/remotegpu/remotegpu/control/auth"
	"github.com/remotegpu/remotegpu/control/pg"
	"github.com/remotegpu/remotegpu/control/web"
)

type listInput struct {
	Workspace string `query:"workspace" doc:"Only of this workspace, by id"`
	Actor     string `query:"actor" doc:"Only by this user or host, by id"`
	Before    int64  `query:"before" doc:"Only entries with a smaller id, for paging"`
	Limit     int    `query:"limit" default:"100" minimum:"1" maximum:"1000"`
}

// Routes adds the module's routes.
func Routes(api *web.API, pool *pg.Pool) {
	web.Register(api, web.Route{Method: http.MethodGet, Path: "/api/v1/audit", Action: auth.AuditRead, Summary: "The audit log, newest first"},
		func(ctx context.Context, c auth.Caller, in *listInput) (web.List[Entry], error) {
			all, err := List(ctx, pool, c, Filter{in.Workspace, in.Actor, in.Before, in.Limit})
			return web.Items(all), err
		})
}
