package access

import (
	"context"
	"errors"
	"net/http"
	"strings"

	"golang.org/x/crypto/ssh"

	"github.com/remotegpu/remotegpu/control/auth"
	"github.com/remotegpu/remotegpu/control/environment"
	"github.com/remotegpu/remotegpu/control/errs"
	"github.com/remotegpu/remotegpu/control/host"
	"github.com/remotegpu/remotegpu/control/pg"
	"github.com/remotegpu/remotegpu/control/web"
	"github.com/remotegpu/remotegpu/protocol"
	"github.com/remotegpu/remotegpu/protocol/tunnel"
)

// Gateway is what a client needs to know to use ssh.
type Gateway struct {
	Address string `json:"address" doc:"host:port of the SSH gateway"`
	HostKey string `json:"host_key" doc:"The gateway's host key, authorized_keys format"`
	HostCA  string `json:"host_ca" doc:"Signs the host keys of the gateway and of all hosts, for @cert-authority"`
}

// Routes adds the module's routes.
func (s *Service) Routes(api *web.API) {
	web.Register(api, web.Route{Method: http.MethodGet, Path: "/api/v1/ssh", Action: auth.AccountRead, Summary: "Where the SSH gateway is"},
		func(_ context.Context, _ auth.Caller, _ *struct{}) (Gateway, error) {
			return Gateway{Address: s.cfg.Address, HostKey: keyLine(s.hosts), HostCA: keyLine(s.ca)}, nil
		})
	api.Raw(web.Route{Method: http.MethodGet, Path: "/api/v1/ssh/connect", Action: auth.AccountRead, Summary: "SSH over WebSocket"},
		http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { s.connect(api, w, r) }))
	s.terminalRoutes(api)
	api.Raw(web.Route{Method: http.MethodGet, Path: protocol.TunnelPath, Action: auth.HostService, Summary: "Streams that agents dial"},
		http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { s.tunnel(api, w, r) }))
}

func keyLine(key ssh.Signer) string {
	return strings.TrimSpace(string(ssh.MarshalAuthorizedKey(key.PublicKey())))
}

// tunnel hands an agent's connection to the hub.
func (s *Service) tunnel(api *web.API, w http.ResponseWriter, r *http.Request) {
	c := auth.From(r.Context())
	if err := c.Require(auth.HostService, ""); err != nil {
		api.Fail(w, r, err)
		return
	}
	s.hub.Accept(c.ID, w, r)
}

// sentence turns what the tunnel says into what a person can use.
func sentence(env environment.Environment, err error) error {
	if (place{env}).isHost() {
		return hostSentence(host.Host{Machine: host.Machine{Name: env.Name}}, err)
	}
	var refused *tunnel.Refused
	switch {
	case errors.Is(err, tunnel.ErrOffline):
		return errs.E(errs.Unavailable, "The host of environment "+env.Name+" is offline. The environment goes on there; try again when the host is back (remotegpu host ls).", err)
	case errors.Is(err, tunnel.ErrLimit):
		return TooMuch(err)
	case errors.As(err, &refused) && refused.Code == protocol.ReplyRefused:
		return errs.E(errs.Unavailable, refused.Message, err)
	case errors.As(err, &refused):
		return errs.E(errs.Unavailable, "The host of environment "+env.Name+" says: "+refused.Message, err)
	case errors.Is(err, context.DeadlineExceeded):
		return errs.E(errs.Unavailable, "The host of environment "+env.Name+" did not answer in time; try again.", err)
	case errs.KindOf(pg.Meaning(err)) == errs.Internal: // the connection broke, in one way or another
		return gone(env, err)
	}
	return err
}

// TooMuch is what a person reads about tunnel.ErrLimit.
func TooMuch(err error) error {
	return errs.E(errs.Unavailable, "That is too much at once ("+err.Error()+"); close some, or wait a moment.", err)
}
