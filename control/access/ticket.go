package access

import (
	"context"
	"net/http"
	"strings"
	"time"

	"github.com/gorilla/websocket"

	"github.com/remotegpu/remotegpu/control/auth"
	"github.com/remotegpu/remotegpu/control/errs"
	"github.com/remotegpu/remotegpu/control/pg"
	"github.com/remotegpu/remotegpu/control/ticket"
	"github.com/remotegpu/remotegpu/protocol"
)

// ticketLife is how long a ticket may take to the WebSocket.
const ticketLife = 30 * time.Second

const terminalTicket = "terminal"

// forTerminal is what a ticket for a terminal is good for, in its environment.
type forTerminal struct {
	Session string `json:"session"` // ses_…
}

// Ticket opens one WebSocket, once, for a browser, which cannot send a token
// with it.
type Ticket struct {
	Ticket    string    `json:"ticket" doc:"Subprotocol remotegpu.ticket.TICKET, beside remotegpu.terminal.v1"`
	ExpiresAt time.Time `json:"expires_at"`
}

type ticketInput struct {
	Workspace   string `path:"workspace" doc:"Name or id"`
	Environment string `path:"environment" doc:"Name or id"`
	Body        struct {
		Session string `json:"session" doc:"ses_…, the session that it is for"`
	}
}

// makeTicket gives c a ticket for one session of an environment.
func (s *Service) makeTicket(ctx context.Context, c auth.Caller, in *ticketInput) (Ticket, error) {
	env, err := s.reach(ctx, c, in.Workspace, in.Environment)
	if err != nil {
		return Ticket{}, err
	}
	if !protocol.ValidID(protocol.PrefixSession, in.Body.Session) {
		return Ticket{}, errs.E(errs.Invalid, "session must be ses_ and 20 characters.")
	}
	row := ticket.Ticket[forTerminal]{
		Kind: terminalTicket, User: c.ID, Login: c.Login, Token: c.Token, Environment: env.ID, Detail: forTerminal{in.Body.Session},
	}
	secret, expires, err := ticket.Issue(ctx, s.pool, row, ticketLife)
	return Ticket{secret, expires}, err
}

// terminalCaller is who sent the request: by token as everywhere, or by the
// ticket of a page of this server.
func (s *Service) terminalCaller(r *http.Request) (auth.Caller, error) {
	c := auth.From(r.Context())
	if c.Kind != auth.KindNobody {
		return c, nil
	}
	for _, p := range websocket.Subprotocols(r) {
		if secret, ok := strings.CutPrefix(p, protocol.TicketProtocol); ok {
			return s.redeem(r, secret)
		}
	}
	return c, nil // nobody; what it asks for says so
}

// redeem takes a ticket, whatever comes of it: it has been shown.
func (s *Service) redeem(r *http.Request, secret string) (auth.Caller, error) {
	used := errs.E(errs.Unauthenticated, "The ticket is unknown, used, expired or for another session; ask for a new one.")
	row, err := ticket.Take[forTerminal](r.Context(), s.pool, terminalTicket, secret)
	if pg.IsNone(err) {
		return auth.Caller{}, used
	} else if err != nil {
		return auth.Caller{}, err
	}
	c, err := s.cfg.Now(r.Context(), row.Caller(auth.From(r.Context()).Remote))
	if err != nil {
		return c, err
	}
	env, err := s.cfg.Get(r.Context(), c, r.PathValue("workspace"), r.PathValue("environment"))
	if err != nil {
		return c, err
	}
	if env.ID != row.Environment || r.URL.Query().Get("session") != row.Detail.Session {
		return auth.Caller{}, used
	}
	return c, nil
}
