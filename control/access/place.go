package access

import (
	"context"
	"strings"

	"github.com/remotegpu/remotegpu/control/auth"
	"github.com/remotegpu/remotegpu/control/environment"
	"github.com/remotegpu/remotegpu/control/errs"
)

// prefixHost begins the name of a host itself.
const prefixHost = "host:"

// place is what a connection leads to: an environment or, with its id and name
// alone, a host itself.
type place struct{ environment.Environment }

func (p place) isHost() bool { return p.ID == p.Host }

// action is what somebody who goes there does.
func (p place) action() auth.Action {
	if p.isHost() {
		return auth.HostAccess
	}
	return auth.EnvironmentAccess
}

// find returns the place called name for somebody who may go there, once it is
// ready.
func (s *Service) find(ctx context.Context, c auth.Caller, name string, say func(string)) (place, error) {
	hostName, isHost := strings.CutPrefix(name, prefixHost)
	if !isHost {
		env, err := s.ready(ctx, c, name, say)
		return place{env}, err
	}
	if err := c.Require(auth.HostAccess, ""); err != nil {
		return place{}, err
	}
	if s.cfg.Host == nil {
		return place{}, errs.Ef(errs.NotFound, "There is no host %s.", hostName)
	}
	h, err := s.cfg.Host(ctx, c, hostName)
	if err != nil {
		return place{}, err
	}
	return place{environment.Environment{ID: h.ID, Name: h.Name, Host: h.ID}}, nil
}
