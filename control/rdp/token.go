package rdp

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/remotegpu/remotegpu/control/auth"
	"github.com/remotegpu/remotegpu/control/pg"
	"github.com/remotegpu/remotegpu/control/ticket"
	"github.com/remotegpu/remotegpu/protocol"
)

const (
	tokenPrefix   = "rgd_"
	desktopTicket = "desktop"
)

// Ticket is a token for one desktop, and what goes with it.
type Ticket struct {
	Token     string    `json:"token" doc:"Works once"`
	ExpiresAt time.Time `json:"expires_at"`
	Path      string    `json:"path" doc:"Of the WebSocket that speaks RDCleanPath"`
	Clipboard string    `json:"clipboard" doc:"What the policy came to"`
}

// ForEnvironment makes a token for the desktop of an environment.
func (s *Service) ForEnvironment(ctx context.Context, c auth.Caller, workspace, nameOrID string, w Wish) (Ticket, error) {
	env, err := s.cfg.Environment(ctx, c, workspace, nameOrID)
	if err != nil {
		return Ticket{}, err
	}
	if err := s.cfg.Access.MayDesktop(c, env); err != nil {
		return Ticket{}, err
	}
	return s.issue(ctx, c, desktop{Workspace: env.Workspace, Environment: env.ID}, w)
}

// ForHost makes a token for the desktop of a host itself.
func (s *Service) ForHost(ctx context.Context, c auth.Caller, nameOrID string, w Wish) (Ticket, error) {
	if err := c.Require(auth.HostAccess, ""); err != nil {
		return Ticket{}, err
	}
	h, err := s.cfg.Host(ctx, c, nameOrID)
	if err != nil {
		return Ticket{}, err
	}
	if err := s.cfg.Access.MayHostDesktop(c, h); err != nil {
		return Ticket{}, err
	}
	return s.issue(ctx, c, desktop{Host: h.ID}, w)
}

func (s *Service) issue(ctx context.Context, c auth.Caller, d desktop, w Wish) (Ticket, error) {
	d.Clipboard, d.Layout, d.Server = s.cfg.Clipboard, w.Layout, w.Server
	if w.Clipboard != "" {
		d.Clipboard = narrower(d.Clipboard, w.Clipboard)
	}
	row := ticket.Ticket[desktop]{Kind: desktopTicket, User: c.ID, Login: c.Login, Token: c.Token, Environment: d.Environment, Host: d.Host, Detail: d}
	secret, expires, err := ticket.Issue(ctx, s.pool, row, tokenLife)
	return Ticket{Token: tokenPrefix + secret, ExpiresAt: expires, Path: Path, Clipboard: d.Clipboard}, err
}

// redeem uses a token up.
func (s *Service) redeem(ctx context.Context, token, remote string) (desktop, auth.Caller, error) {
	secret, ok := strings.CutPrefix(token, tokenPrefix)
	if !ok {
		return desktop{}, auth.Caller{}, errToken
	}
	row, err := ticket.Take[desktop](ctx, s.pool, desktopTicket, secret)
	if pg.IsNone(err) {
		return desktop{}, auth.Caller{}, errToken
	} else if err != nil {
		return desktop{}, auth.Caller{}, fmt.Errorf("use token: %w", err)
	}
	c, err := s.cfg.Now(ctx, row.Caller(remote))
	return row.Detail, c, err
}

// request is what the agent is asked for d.
func (d desktop) request(negotiation []byte) *protocol.RDPRequest {
	return &protocol.RDPRequest{Negotiation: negotiation, Server: d.Server, Clipboard: d.Clipboard, Layout: d.Layout}
}
