package rdp

import (
	"context"
	"net/http"

	"github.com/remotegpu/remotegpu/control/auth"
	"github.com/remotegpu/remotegpu/control/errs"
	"github.com/remotegpu/remotegpu/control/web"
	"github.com/remotegpu/remotegpu/protocol"
	"github.com/remotegpu/remotegpu/protocol/tunnel"
)

// Path is where pages open their WebSocket.
const Path = "/api/v1/rdp"

type environmentInput struct {
	Workspace   string `path:"workspace" doc:"Name or id"`
	Environment string `path:"environment" doc:"Name or id"`
	Body        Wish
}

type hostInput struct {
	Host string `path:"host" doc:"Name or id"`
	Body Wish
}

// Routes adds the module's routes.
func (s *Service) Routes(api *web.API) {
	const (
		env  = "/api/v1/workspaces/{workspace}/environments/{environment}/rdp"
		host = "/api/v1/hosts/{host}/rdp"
	)
	web.Register(api, web.Route{Method: http.MethodPost, Path: env, Action: auth.EnvironmentAccess, Status: http.StatusCreated, Summary: "A token for an environment's desktop in a browser"},
		func(ctx context.Context, c auth.Caller, in *environmentInput) (Ticket, error) {
			return s.ForEnvironment(ctx, c, in.Workspace, in.Environment, in.Body)
		})
	web.Register(api, web.Route{Method: http.MethodPost, Path: host, Action: auth.HostAccess, Status: http.StatusCreated, Summary: "A token for a host's own desktop in a browser"},
		func(ctx context.Context, c auth.Caller, in *hostInput) (Ticket, error) {
			return s.ForHost(ctx, c, in.Host, in.Body)
		})
	api.Raw(web.Route{Method: http.MethodGet, Path: Path, Action: auth.DesktopConnect, Summary: "RDCleanPath over WebSocket; its token decides"},
		http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { s.serveBrowser(api, w, r) }))
	api.Raw(web.Route{Method: http.MethodGet, Path: env, Action: auth.EnvironmentAccess, Summary: "Bytes of an environment's RDP server, over WebSocket"},
		http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			s.servePlain(api, w, r, func(ctx context.Context, c auth.Caller) (*tunnel.Conn, error) {
				e, err := s.cfg.Environment(ctx, c, r.PathValue("workspace"), r.PathValue("environment"))
				if err != nil {
					return nil, err
				}
				return s.cfg.Access.Desktop(ctx, c, e, nil)
			})
		}))
	api.Raw(web.Route{Method: http.MethodGet, Path: host, Action: auth.HostAccess, Summary: "Bytes of a host's own RDP server, over WebSocket"},
		http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			s.servePlain(api, w, r, func(ctx context.Context, c auth.Caller) (*tunnel.Conn, error) {
				if err := c.Require(auth.HostAccess, ""); err != nil {
					return nil, err
				}
				h, err := s.cfg.Host(ctx, c, r.PathValue("host"))
				if err != nil {
					return nil, err
				}
				return s.cfg.Access.HostDesktop(ctx, c, h, nil)
			})
		}))
}

// servePlain carries an RDP client's own bytes. Inside of its TLS nothing can
// be kept from being copied.
func (s *Service) servePlain(api *web.API, w http.ResponseWriter, r *http.Request, open func(context.Context, auth.Caller) (*tunnel.Conn, error)) {
	to, err := open(r.Context(), auth.From(r.Context()))
	if err == nil && s.cfg.Clipboard != protocol.ClipboardBoth {
		to.Close()
		err = errs.E(errs.Denied, "This server limits what may be copied, which only a desktop in the browser can keep; open it there.")
	}
	if err != nil {
		api.Fail(w, r, err)
		return
	}
	defer to.Close()
	from, err := tunnel.Upgrade(w, r)
	if err != nil {
		return // Upgrade has answered
	}
	tunnel.Splice(from, to)
}
