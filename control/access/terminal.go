package access

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/remotegpu/remotegpu/control/audit"
	"github.com/remotegpu/remotegpu/control/auth"
	"github.com/remotegpu/remotegpu/control/environment"
	"github.com/remotegpu/remotegpu/control/errs"
	"github.com/remotegpu/remotegpu/control/web"
	"github.com/remotegpu/remotegpu/protocol"
	"github.com/remotegpu/remotegpu/protocol/tunnel"
)

const (
	environmentRoot = "/api/v1/workspaces/{workspace}/environments/{environment}"

	// returnWait is how long somebody who comes back waits for a host that is
	// coming back too, as after a restart of this server.
	returnWait  = 5 * time.Second
	answerLimit = 10 * time.Second // of a helper, to a question
)

// terminalRoutes adds the ways to sessions that outlive their connections.
func (s *Service) terminalRoutes(api *web.API) {
	api.Raw(web.Route{Method: http.MethodGet, Path: environmentRoot + "/terminal", Action: auth.EnvironmentAccess, Summary: "A session that survives, over WebSocket"},
		http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { s.terminal(api, w, r) }))
	web.Register(api, web.Route{Method: http.MethodPost, Path: environmentRoot + "/terminal/ticket", Action: auth.EnvironmentAccess, Summary: "A ticket with which a browser opens the WebSocket", Status: http.StatusCreated},
		func(ctx context.Context, c auth.Caller, in *ticketInput) (Ticket, error) {
			return s.makeTicket(ctx, c, in)
		})
	web.Register(api, web.Route{Method: http.MethodGet, Path: environmentRoot + "/sessions", Action: auth.EnvironmentAccess, Summary: "Sessions that can be attached to"},
		func(ctx context.Context, c auth.Caller, in *environmentInput) (web.List[Session], error) {
			all, err := s.sessions(ctx, c, in)
			return web.Items(all), err
		})
}

type environmentInput struct {
	Workspace   string `path:"workspace" doc:"Name or id"`
	Environment string `path:"environment" doc:"Name or id"`
}

// Session is one that a container holds, as the API shows it.
type Session struct {
	ID       string    `json:"id"`
	Owner    string    `json:"owner" doc:"E-mail address"`
	Since    time.Time `json:"since"`
	Attached bool      `json:"attached" doc:"Its owner is, right now"`
	Others   int       `json:"others" doc:"How many watch or write"`
	Share    string    `json:"share" doc:"What others may do: none, watch or write"`
	Program  string    `json:"program"`
	Terminal bool      `json:"terminal"`
	Mine     bool      `json:"mine"`
}

// reach returns a running environment that c may have a shell in.
func (s *Service) reach(ctx context.Context, c auth.Caller, workspace, name string) (environment.Environment, error) {
	env, err := s.cfg.Get(ctx, c, workspace, name)
	if err != nil {
		return env, err
	}
	if err := c.Require(auth.EnvironmentAccess, env.Workspace); err != nil {
		return env, err
	}
	switch {
	case env.Phase == protocol.PhaseRunning, env.Phase == environment.PhaseUnreachable: // the hub knows better
		return env, nil
	case env.Starting():
		return env, errs.Ef(errs.Unavailable, "Environment %s is %s; try again in a moment.", env.Name, env.Phase)
	}
	return env, errs.Ef(errs.Conflict, "Environment %s is %s. %s", env.Name, env.Phase, env.Advice())
}

// terminal connects a client's WebSocket with the helper that holds, or is to
// hold, its session. What passes is package resume's, end to end; what was
// missed comes with the answer to the request.
func (s *Service) terminal(api *web.API, w http.ResponseWriter, r *http.Request) {
	ctx := r.Context()
	c, err := s.terminalCaller(r)
	if err != nil {
		api.Fail(w, r, err)
		return
	}
	up, err := s.attach(ctx, c, r)
	if err != nil {
		api.Fail(w, r, err)
		return
	}
	defer s.leaveHeld(up.rec)
	defer up.Close()
	conn, err := tunnel.Upgrade(w, r)
	if err != nil {
		return // Upgrade has answered
	}
	up.join(ctx, conn)
}

// attached is one connection to a session that is held.
type attached struct {
	*tunnel.Conn
	request protocol.Attach
	rec     *heldRecording // nil: none
}

// attach opens the stream and tells the helper who comes for which session.
func (s *Service) attach(ctx context.Context, c auth.Caller, r *http.Request) (*attached, error) {
	env, err := s.reach(ctx, c, r.PathValue("workspace"), r.PathValue("environment"))
	if err != nil {
		return nil, err
	}
	a, err := attachRequest(r.URL.Query())
	if err != nil {
		return nil, err
	}
	a.User, a.Name = c.ID, c.Name
	detail := map[string]any{"via": "terminal", "session": a.Session, "op": a.Op, "mode": a.Mode, "share": a.Share}
	if err := audit.Record(ctx, s.pool, c, auth.EnvironmentAccess, env.ID, env.Workspace, detail); err != nil {
		return nil, err
	}
	if a.Op == protocol.AttachResume {
		s.awaitHost(ctx, env.Host)
	}
	rec, err := s.recordHeld(ctx, c, env, a)
	if err != nil {
		return nil, err
	}
	up, err := s.openAttached(ctx, c, env, a)
	if err != nil {
		s.leaveHeld(rec)
		return nil, err
	}
	up.Survives()
	return &attached{up, a, rec}, nil
}

// attachRequest reads what the client wants.
func attachRequest(q url.Values) (protocol.Attach, error) {
	a := protocol.Attach{
		Version: protocol.Version, Session: q.Get("session"), Client: q.Get("client"), User: "-",
		Op: q.Get("op"), Mode: q.Get("mode"), Share: q.Get("share"),
	}
	keep, err1 := number(q.Get("keep"))
	received, err2 := number(q.Get("received"))
	if err1 != nil || err2 != nil || keep > protocol.MaxKeep {
		return a, errs.Ef(errs.Invalid, "keep and received must be numbers; a session is kept for at most %d seconds.", protocol.MaxKeep)
	}
	a.Keep, a.Received = uint32(keep), received
	if err := a.Validate(); err != nil {
		return a, errs.E(errs.Invalid, "This is no request for a terminal: "+err.Error()+".", err)
	}
	return a, nil
}

func number(text string) (uint64, error) {
	if text == "" {
		return 0, nil
	}
	return strconv.ParseUint(text, 10, 64)
}

func (s *Service) awaitHost(ctx context.Context, host string) {
	for end := time.Now().Add(returnWait); !s.hub.Online(host) && time.Now().Before(end) && ctx.Err() == nil; {
		time.Sleep(50 * time.Millisecond)
	}
}

var errHostLost = errors.New("the connection to the host was lost")

// join copies both ways until one side has ended. When the server stops, the
// client is told when to come back.
func (a *attached) join(ctx context.Context, conn *tunnel.Conn) {
	stop := context.AfterFunc(ctx, func() {
		conn.CloseRestart(tunnel.RestartAfter())
		a.Close()
	})
	defer stop()
	fromClient, fromHost := a.rec.through(conn, a.Conn)
	go func() {
		_, _ = io.Copy(a.Conn, fromClient) // however it ended, the helper waits for the client's next connection
		a.Close()
	}()
	if _, err := io.Copy(conn, fromHost); err != nil {
		conn.CloseWithError(errHostLost)
		return
	}
	conn.Close()
}

// sessions asks the helper which sessions c may attach to.
func (s *Service) sessions(ctx context.Context, c auth.Caller, in *environmentInput) ([]Session, error) {
	env, err := s.reach(ctx, c, in.Workspace, in.Environment)
	if err != nil {
		return nil, err
	}
	up, err := s.open(ctx, c, env, protocol.StreamHeader{Kind: protocol.StreamSession})
	if err != nil {
		return nil, err
	}
	defer up.Close()
	if err := up.SetDeadline(time.Now().Add(answerLimit)); err != nil {
		return nil, err
	}
	list, err := askSessions(up, c.ID)
	if err != nil {
		return nil, errs.E(errs.Unavailable, "Environment "+env.Name+" does not say which sessions it has; it may have been started by an older version: remotegpu env restart "+env.Name, err)
	}
	all := make([]Session, 0, len(list.Sessions))
	for _, l := range list.Sessions {
		all = append(all, Session{
			ID: l.ID, Owner: l.Name, Since: time.Unix(l.Since, 0).UTC(), Attached: l.Attached, Others: int(l.Others),
			Share: l.Share, Program: l.Program, Terminal: l.Terminal, Mine: l.User == c.ID,
		})
	}
	return all, nil
}

func askSessions(up *tunnel.Conn, user string) (list protocol.SessionList, err error) {
	if err := protocol.WriteDocument(up, protocol.FrameQuery, protocol.SessionQuery{Version: protocol.Version, User: user}); err != nil {
		return list, err
	}
	kind, payload, err := protocol.NewFrameReader(bufio.NewReader(up)).Next()
	if err != nil {
		return list, err
	}
	if kind != protocol.FrameSessions {
		return list, fmt.Errorf("helper answers with frame %d", kind)
	}
	return list, protocol.Unmarshal(payload, &list)
}
