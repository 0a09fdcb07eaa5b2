package access

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"github.com/remotegpu/remotegpu/control/auth"
	"github.com/remotegpu/remotegpu/control/environment"
	"github.com/remotegpu/remotegpu/control/errs"
	"github.com/remotegpu/remotegpu/protocol"
	"github.com/remotegpu/remotegpu/protocol/resume"
	"github.com/remotegpu/remotegpu/protocol/tunnel"
)

// holder plays the part of a helper that holds sessions: each runs its program,
// or returns what it gets when that is no request for one.
type holder struct {
	program func(s programStream, frames *protocol.FrameReader) // set before use
	mu      sync.Mutex                                          // guards what follows
	pipes   map[string]*resume.Conn
	seen    []protocol.Attach
}

func (h *holder) serve(c *tunnel.Conn, kind protocol.FrameType, payload []byte) bool {
	var a protocol.Attach
	switch {
	case kind == protocol.FrameQuery:
		_ = protocol.WriteDocument(c, protocol.FrameSessions, protocol.SessionList{Version: 1, Sessions: []protocol.LiveSession{
			{ID: "ses_1", User: "usr_a", Name: "a@example.org", Since: 1793491200, Share: protocol.ShareNone, Program: "top", Terminal: true},
			{ID: "ses_2", User: "usr_b", Name: "b@example.org", Since: 1793491201, Share: protocol.ShareWatch},
		}})
		_ = c.CloseWrite()
		_, _ = io.Copy(io.Discard, c)
		return true
	case kind != protocol.FrameAttach || protocol.Unmarshal(payload, &a) != nil:
		return false
	}
	h.mu.Lock()
	h.seen = append(h.seen, a)
	pipe := h.pipes[a.Session]
	if pipe == nil && a.Op == protocol.AttachCreate {
		if h.pipes == nil {
			h.pipes = map[string]*resume.Conn{}
		}
		pipe = resume.New(resume.Config{})
		h.pipes[a.Session] = pipe
		go h.run(pipe)
	}
	h.mu.Unlock()
	if pipe == nil {
		resume.Refuse(c, "This session is no longer there.")
	} else {
		_ = pipe.Serve(c, a.Received)
	}
	return true
}

func (h *holder) run(pipe *resume.Conn) {
	in := bufio.NewReader(pipe)
	if first, err := in.Peek(1); err == nil && protocol.FrameType(first[0]) == protocol.FrameOpen {
		h.program(pipe, protocol.NewFrameReader(in))
		return
	}
	_, _ = io.Copy(pipe, in)
}

func (h *holder) attached() []protocol.Attach {
	h.mu.Lock()
	defer h.mu.Unlock()
	return append([]protocol.Attach(nil), h.seen...)
}

func (w *world) get(ctx context.Context, c auth.Caller, workspace, name string) (environment.Environment, error) {
	if c.Kind != auth.KindUser {
		return environment.Environment{}, c.Require(auth.EnvironmentRead, wsID)
	}
	e, err := w.find(ctx, c, name)
	if err == nil && e.Workspace != wsID {
		err = errs.E(errs.NotFound, "There is no such workspace, or you are not a member of it.")
	}
	if name == "second" {
		e, err = environment.Environment{ID: "env_second", Name: name, Workspace: wsID, Host: hostID, Phase: protocol.PhaseRunning}, nil
	}
	return e, err
}

func (w *world) now(_ context.Context, c auth.Caller) (auth.Caller, error) {
	if c.ID != w.user.ID {
		return auth.Caller{}, errs.E(errs.Unauthenticated, "The user is not there any more, or is disabled.")
	}
	if now := w.rights.Load(); now != nil {
		return *now, nil
	}
	return w.user, nil
}

func (w *world) terminalURL(env string, q url.Values) string {
	return w.url + "/api/v1/workspaces/lab/environments/" + env + "/terminal?" + q.Encode()
}

func newQuery(op string) url.Values {
	return url.Values{"op": {op}, "session": {protocol.NewID(protocol.PrefixSession)}, "client": {protocol.NewID(protocol.PrefixClient)}}
}

var bearer = http.Header{"Authorization": {"Bearer user"}}

// roam connects a client to a session that is held.
func (w *world) roam(q url.Values) (*resume.Client, func(), error) {
	var mu sync.Mutex // guards last
	var last *tunnel.Conn
	c, err := resume.Dial(w.t.Context(), resume.DialConfig{Dial: func(ctx context.Context, a resume.Attempt) (io.ReadWriteCloser, error) {
		if q := q; a.Resume {
			q.Set("op", protocol.AttachResume)
		}
		q.Set("received", fmt.Sprint(a.Received))
		conn, err := tunnel.Dial(ctx, tunnel.DialConfig{URL: w.terminalURL("box", q), Header: bearer})
		mu.Lock()
		defer mu.Unlock()
		last = conn
		return conn, err
	}})
	if err == nil {
		w.t.Cleanup(func() { c.Close() })
	}
	return c, func() {
		mu.Lock()
		defer mu.Unlock()
		if last != nil {
			last.Close()
		}
	}, err
}

// TestTerminalGoesOn while the client's and the agent's connections are cut.
func TestTerminalGoesOn(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	c, cut, err := w.roam(newQuery(protocol.AttachCreate))
	if err != nil {
		t.Fatal(err)
	}
	for i := range 20 {
		sent, got := make([]byte, 50_000), make([]byte, 50_000)
		_, _ = rand.NewChaCha8([32]byte{byte(i)}).Read(sent) // never fails
		if _, err := c.Write(sent); err != nil {
			t.Fatal(err)
		}
		if i%2 == 0 {
			cut()
		} else {
			w.hub.Drop(hostID) // as when the agent restarts
		}
		if _, err := io.ReadFull(c, got); err != nil || string(got) != string(sent) {
			t.Fatalf("round %d: other bytes came back, or %v", i, err)
		}
	}
	var entries, ends int
	if err := w.pool.QueryRow(t.Context(), `select count(*) filter (where detail->>'via' = 'terminal'), count(*) filter (where detail ? 'bytes_out') from audit_entries
		where action = $1 and target = 'env_box' and actor = 'usr_a'`, string(auth.EnvironmentAccess)).Scan(&entries, &ends); err != nil {
		t.Fatal(err)
	}
	if n := len(w.held.attached()); entries < n || n < 10 || ends < n/2 {
		t.Errorf("%d connections, %d of them in the audit log, %d ends", n, entries, ends)
	}
	for i, a := range w.held.attached() {
		if a.User != "usr_a" || a.Name != "a@example.org" || (a.Op == protocol.AttachResume) != (i > 0) {
			t.Errorf("connection %d: %+v", i, a)
		}
	}
}

func TestSessions(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	var list struct{ Items []Session }
	w.api(http.MethodGet, "/api/v1/workspaces/lab/environments/box/sessions", "", http.StatusOK, &list)
	if len(list.Items) != 2 || !list.Items[0].Mine || list.Items[1].Mine || list.Items[1].Owner != "b@example.org" || list.Items[0].Program != "top" {
		t.Errorf("%+v", list.Items)
	}
}

// api sends a request as the user.
func (w *world) api(method, path, body string, want int, out any) {
	w.t.Helper()
	req, err := http.NewRequestWithContext(w.t.Context(), method, "http"+strings.TrimPrefix(w.url, "ws")+path, strings.NewReader(body))
	if err != nil {
		w.t.Fatal(err)
	}
	req.Header = bearer.Clone()
	req.Header.Set("Content-Type", "application/json")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		w.t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != want {
		w.t.Fatalf("%s %s: %d %s, %v", method, path, resp.StatusCode, b, err)
	}
	if out != nil {
		if err := json.Unmarshal(b, out); err != nil {
			w.t.Fatal(err)
		}
	}
}

func (w *world) ticket(env, session string) string {
	w.t.Helper()
	var t Ticket
	w.api(http.MethodPost, "/api/v1/workspaces/lab/environments/"+env+"/terminal/ticket", `{"session":"`+session+`"}`, http.StatusCreated, &t)
	return t.Ticket
}

// browser opens the WebSocket as a page does, and returns the status.
func (w *world) browser(env string, q url.Values, ticket, origin string) int {
	w.t.Helper()
	h := http.Header{}
	if origin != "" {
		h.Set("Origin", origin)
	}
	d := websocket.Dialer{Subprotocols: []string{protocol.TerminalProtocol}}
	if ticket != "" {
		d.Subprotocols = append(d.Subprotocols, protocol.TicketProtocol+ticket)
	}
	ws, resp, err := d.DialContext(w.t.Context(), w.terminalURL(env, q), h)
	if err == nil {
		if got := ws.Subprotocol(); got != protocol.TerminalProtocol {
			w.t.Errorf("the server speaks %q", got)
		}
		ws.Close()
	} else if resp == nil {
		w.t.Fatal(err)
	}
	return resp.StatusCode
}

// TestTickets: a table of tries that must fail, around the one that works.
func TestTickets(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.known()
	own := "http" + strings.TrimPrefix(w.url, "ws")
	q := newQuery(protocol.AttachCreate)
	good := w.ticket("box", q.Get("session"))
	for _, c := range []struct {
		name, env, ticket, origin string
		q                         url.Values
		want                      int
	}{
		{"no ticket", "box", "", own, q, http.StatusUnauthorized},
		{"an invented one", "box", "ABCDEFGHIJKLMNOPQRSTUVWXYZ", own, q, http.StatusUnauthorized},
		{"from another site", "box", w.ticket("box", q.Get("session")), "https://evil.example", q, http.StatusForbidden},
		{"for another session", "box", w.ticket("box", q.Get("session")), own, newQuery(protocol.AttachCreate), http.StatusUnauthorized},
		{"for another environment", "box", w.ticket("second", q.Get("session")), own, q, http.StatusUnauthorized},
		{"as it should be", "box", good, own, q, http.StatusSwitchingProtocols},
		{"used", "box", good, own, q, http.StatusUnauthorized},
	} {
		if got := w.browser(c.env, c.q, c.ticket, c.origin); got != c.want {
			t.Errorf("%s: %d, want %d", c.name, got, c.want)
		}
	}
	late := w.ticket("box", q.Get("session"))
	if _, err := w.pool.Exec(t.Context(), "update tickets set expires_at = now() - interval '1 second'"); err != nil {
		t.Fatal(err)
	}
	if got := w.browser("box", q, late, own); got != http.StatusUnauthorized {
		t.Errorf("expired: %d", got)
	}
	after := w.ticket("box", q.Get("session"))
	w.user.Roles = map[string]auth.Role{wsID: auth.Viewer}
	if got := w.browser("box", q, after, own); got != http.StatusForbidden {
		t.Errorf("of a user who may no longer: %d", got)
	}
}

func TestTerminalRefusals(t *testing.T) {
	t.Parallel()
	var records atomic.Bool
	w := newWorld(t, func(s *Service) {
		s.cfg.Records = func(_ context.Context, _ string, terminal bool) (bool, error) { return terminal && records.Load(), nil }
	})
	change := func(key, value string) url.Values {
		q := newQuery(protocol.AttachCreate)
		q.Set(key, value)
		return q
	}
	for _, c := range []struct {
		env  string
		q    url.Values
		want int
		text string
	}{
		{"stopped", newQuery(protocol.AttachCreate), http.StatusConflict, "remotegpu env start stopped"},
		{"none", newQuery(protocol.AttachCreate), http.StatusNotFound, "no environment none"},
		{"foreign", newQuery(protocol.AttachCreate), http.StatusNotFound, "no such workspace"},
		{"box", change("op", "steal"), http.StatusUnprocessableEntity, "steal"},
		{"box", change("session", "env_box"), http.StatusUnprocessableEntity, "names no session"},
		{"box", change("keep", "-1"), http.StatusUnprocessableEntity, "must be numbers"},
		{"box", change("keep", "99999999999"), http.StatusUnprocessableEntity, "at most"},
		{"box", change("received", "x"), http.StatusUnprocessableEntity, "must be numbers"},
		{"box", change("share", "all"), http.StatusUnprocessableEntity, "shares"},
	} {
		_, err := tunnel.Dial(t.Context(), tunnel.DialConfig{URL: w.terminalURL(c.env, c.q), Header: bearer})
		var rejected *tunnel.Rejected
		if !errors.As(err, &rejected) || rejected.Status != c.want || !strings.Contains(rejected.Body, c.text) {
			t.Errorf("%s %v: %v, want %d %q", c.env, c.q, err, c.want, c.text)
		}
	}
	_, _, err := w.roam(newQuery(protocol.AttachJoin))
	if err == nil || !strings.Contains(err.Error(), "no longer there") {
		t.Errorf("joined nothing: %v", err)
	}
	records.Store(true) // and no recording is there, as after a restart of the server
	var rejected *tunnel.Rejected
	if _, _, err = w.roam(newQuery(protocol.AttachResume)); !errors.As(err, &rejected) || rejected.Status != http.StatusForbidden || !strings.Contains(rejected.Body, "records sessions") {
		t.Errorf("where sessions are recorded: %v", err)
	}
	records.Store(false)
	w.leave()
	started := time.Now()
	if _, _, err = w.roam(newQuery(protocol.AttachCreate)); !errors.As(err, &rejected) || rejected.Status != http.StatusServiceUnavailable || !strings.Contains(rejected.Body, "is offline") {
		t.Errorf("offline: %v", err)
	}
	if took := time.Since(started); took > 10*time.Second {
		t.Errorf("said after %v", took)
	}
}
