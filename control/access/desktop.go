package access

import (
	"context"
	"errors"

	"github.com/remotegpu/remotegpu/control/audit"
	"github.com/remotegpu/remotegpu/control/auth"
	"github.com/remotegpu/remotegpu/control/environment"
	"github.com/remotegpu/remotegpu/control/errs"
	"github.com/remotegpu/remotegpu/control/host"
	"github.com/remotegpu/remotegpu/control/pg"
	"github.com/remotegpu/remotegpu/protocol"
	"github.com/remotegpu/remotegpu/protocol/tunnel"
)

// rdpServer is where an RDP server listens, in a container and on a host.
var rdpServer = protocol.Target{Network: protocol.NetworkTCP, Address: "127.0.0.1:3389"}

// MayDesktop says whether c can have a desktop in env now, without opening one.
func (s *Service) MayDesktop(c auth.Caller, env environment.Environment) error {
	if err := c.Require(auth.EnvironmentAccess, env.Workspace); err != nil {
		return err
	}
	if env.Phase != protocol.PhaseRunning {
		return errs.Ef(errs.Conflict, "Environment %s is %s. %s", env.Name, env.Phase, env.Advice())
	}
	if !s.hub.Online(env.Host) {
		return sentence(env, tunnel.ErrOffline)
	}
	return nil
}

// Desktop connects with the RDP server in an environment. Req lets the agent do
// the first steps; nil leaves them to the client.
func (s *Service) Desktop(ctx context.Context, c auth.Caller, env environment.Environment, req *protocol.RDPRequest) (*tunnel.Conn, error) {
	if err := s.MayDesktop(c, env); err != nil {
		return nil, err
	}
	if err := audit.Record(ctx, s.pool, c, auth.EnvironmentAccess, env.ID, env.Workspace, rdpDetail(req)); err != nil {
		return nil, err
	}
	return s.open(ctx, c, env, protocol.StreamHeader{Kind: protocol.StreamRDP, Target: &rdpServer, RDP: req})
}

// MayHostDesktop is MayDesktop for a host's own.
func (s *Service) MayHostDesktop(c auth.Caller, h host.Host) error {
	if err := c.Require(auth.HostAccess, ""); err != nil {
		return err
	}
	if !s.hub.Online(h.ID) {
		return errs.Ef(errs.Unavailable, "Host %s is offline; see: remotegpu host show %s", h.Name, h.Name)
	}
	return nil
}

// HostDesktop is Desktop for the RDP server of a host itself.
func (s *Service) HostDesktop(ctx context.Context, c auth.Caller, h host.Host, req *protocol.RDPRequest) (*tunnel.Conn, error) {
	if err := s.MayHostDesktop(c, h); err != nil {
		return nil, err
	}
	if err := audit.Record(ctx, s.pool, c, auth.HostAccess, h.ID, "", rdpDetail(req)); err != nil {
		return nil, err
	}
	itself := environment.Environment{ID: h.ID, Name: h.Name, Host: h.ID}
	return s.open(ctx, c, itself, protocol.StreamHeader{Kind: protocol.StreamRDP, Target: &rdpServer, RDP: req})
}

// rdpDetail is what the audit log keeps of the beginning.
func rdpDetail(req *protocol.RDPRequest) map[string]any {
	if req == nil {
		return map[string]any{"via": "rdp"}
	}
	return map[string]any{"via": "rdp", "browser": true, "clipboard": req.Clipboard}
}

// hostSentence is sentence for a host itself.
func hostSentence(h host.Host, err error) error {
	var refused *tunnel.Refused
	switch {
	case errors.Is(err, tunnel.ErrOffline):
		return errs.E(errs.Unavailable, "Host "+h.Name+" is offline; see: remotegpu host show "+h.Name, err)
	case errors.Is(err, tunnel.ErrLimit):
		return TooMuch(err)
	case errors.As(err, &refused):
		return errs.E(errs.Unavailable, "Host "+h.Name+" says: "+refused.Message, err)
	case errors.Is(err, context.DeadlineExceeded):
		return errs.E(errs.Unavailable, "Host "+h.Name+" did not answer in time; try again.", err)
	case errs.KindOf(pg.Meaning(err)) == errs.Internal: // the connection broke, in one way or another
		return errs.E(errs.Unavailable, "The connection to host "+h.Name+" broke; try once more.", err)
	}
	return err
}
