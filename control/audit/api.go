package audit

import (
	"context"
	"encoding/hex"
	"errors"
	"net/http"

	"github.com/remotegpu/remotegpu/control/auth"
	"github.com/remotegpu/remotegpu/control/errs"
	"github.com/remotegpu/remotegpu/control/pg"
	"github.com/remotegpu/remotegpu/control/web"
)

type listInput struct {
	Workspace string `query:"workspace" doc:"Only of this workspace, by id"`
	Actor     string `query:"actor" doc:"Only by this user or host, by id"`
	Before    int64  `query:"before" doc:"Only entries with a smaller id, for paging"`
	Limit     int    `query:"limit" default:"100" minimum:"1" maximum:"1000"`
}

type verifyInput struct {
	After  int64  `query:"after" minimum:"0" doc:"place of the part before; 0: from the first entry on"`
	Hash   string `query:"hash" maxLength:"64" doc:"hash of the part before"`
	Expect string `query:"expect" maxLength:"64" doc:"A hash that was the head once, hexadecimal: is it still in the chain?"`
	Limit  int    `query:"limit" default:"100000" minimum:"1" maximum:"1000000"`
}

func (in *verifyInput) walk() (w Walk, err error) {
	w = Walk{After: in.After, Limit: in.Limit}
	var err1, err2 error
	w.Hash, err1 = hex.DecodeString(in.Hash)
	w.Expect, err2 = hex.DecodeString(in.Expect)
	if err := errors.Join(err1, err2); err != nil {
		return w, errs.E(errs.Invalid, "hash and expect are hexadecimal, as verify prints them.", err)
	}
	return w, nil
}

// Routes adds the module's routes.
func Routes(api *web.API, pool *pg.Pool) {
	web.Register(api, web.Route{Method: http.MethodGet, Path: "/api/v1/audit", Action: auth.AuditRead, Summary: "The audit log, newest first"},
		func(ctx context.Context, c auth.Caller, in *listInput) (web.List[Entry], error) {
			all, err := List(ctx, pool, c, Filter{in.Workspace, in.Actor, in.Before, in.Limit})
			return web.Items(all), err
		})
	web.Register(api, web.Route{Method: http.MethodGet, Path: "/api/v1/audit/verify", Action: auth.AuditVerify, Summary: "Verify the chain of the audit log, part by part"},
		func(ctx context.Context, c auth.Caller, in *verifyInput) (Part, error) {
			w, err := in.walk()
			if err != nil {
				return Part{}, err
			}
			return Verify(ctx, pool, c, w)
		})
}
