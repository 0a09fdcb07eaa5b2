package rdp

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/asn1"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"github.com/remotegpu/remotegpu/control/access"
	"github.com/remotegpu/remotegpu/control/auth"
	"github.com/remotegpu/remotegpu/control/environment"
	"github.com/remotegpu/remotegpu/control/host"
	"github.com/remotegpu/remotegpu/control/pgtest"
	"github.com/remotegpu/remotegpu/control/web"
	"github.com/remotegpu/remotegpu/protocol"
	"github.com/remotegpu/remotegpu/protocol/tunnel"
)

// world is the module with a real tunnel to an agent whose RDP server is play:
// it says back what it hears.
type world struct {
	*Service
	t      *testing.T
	url    string
	role   atomic.Value // auth.Role of the user; "" for none
	admin  atomic.Bool  // the user is a platform admin
	refuse atomic.Bool  // the RDP server does not take the client's protocols
	head   atomic.Value // protocol.StreamHeader of the last stream
}

func newWorld(t *testing.T, clipboard string) *world {
	t.Helper()
	w := &world{t: t}
	w.role.Store(auth.Member)
	pool := pgtest.New(t)
	for _, sql := range []string{
		`insert into users (id, email, name, password_hash, admin) values ('usr_a', 'a@example.org', '', '', false)`,
		`insert into workspaces (id, name) values ('ws_a', 'lab')`,
		`insert into hosts (id, name, public_key, state) values ('host_a', 'box', '\x01', 'active')`,
		`insert into environments (id, workspace_id, name, host_id, want, phase, image, owner_id, resources, restart, document_bytes)
			values ('env_a', 'ws_a', 'desk', 'host_a', 'running', 'running', 'desktop', 'usr_a', '{}', 'always', 1)`,
	} {
		if _, err := pool.Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
	}
	log := slog.New(slog.DiscardHandler)
	var agent *tunnel.Pool
	hub := tunnel.NewHub(tunnel.HubConfig{Log: log, Online: func(string) bool { return true }, Ask: func(_ context.Context, _ string, d protocol.Dial) error {
		agent.Request(d)
		return nil
	}})
	_, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	acc, err := access.New(pool, access.Config{HostKey: key, HostCA: key, Now: w.user, Hub: hub, Log: log})
	if err != nil {
		t.Fatal(err)
	}
	w.Service = New(pool, Config{Access: acc, Clipboard: clipboard, Now: w.user, Environment: w.environment, Host: w.host}, log)
	w.patience = 5 * time.Second // for who does nothing, and enough for who does
	api := web.New("test", log)
	w.Routes(api)
	acc.Routes(api)
	srv := httptest.NewServer(api.Handler(w.bearer, false))
	w.url = "ws" + strings.TrimPrefix(srv.URL, "http")
	agent = tunnel.NewPool(tunnel.PoolConfig{Dial: w.dialTunnel, Serve: w.serve, Log: log})
	ctx, cancel := context.WithCancel(context.Background())
	gone := make(chan struct{})
	go func() { defer close(gone); _ = agent.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-gone; hub.Close(); acc.Wait(); srv.Close() })
	return w
}

func (w *world) caller() auth.Caller {
	c := auth.Caller{Kind: auth.KindUser, ID: "usr_a", Admin: w.admin.Load(), Roles: map[string]auth.Role{}}
	if role := w.role.Load().(auth.Role); role != "" {
		c.Roles["ws_a"] = role
	}
	return c
}

func (w *world) user(context.Context, auth.Caller) (auth.Caller, error) { return w.caller(), nil }

func (w *world) environment(_ context.Context, c auth.Caller, ws, name string) (environment.Environment, error) {
	if err := c.Require(auth.EnvironmentRead, "ws_a"); err != nil {
		return environment.Environment{}, err
	}
	return environment.Environment{ID: "env_a", Name: "desk", Workspace: "ws_a", Host: "host_a", Phase: protocol.PhaseRunning}, nil
}

func (w *world) host(_ context.Context, c auth.Caller, _ string) (host.Host, error) {
	return host.Host{Machine: host.Machine{ID: "host_a", Name: "box"}}, c.Require(auth.HostAccess, "")
}

func (w *world) bearer(r *http.Request) (auth.Caller, error) {
	switch r.Header.Get("Authorization") {
	case "Bearer host":
		return auth.Caller{Kind: auth.KindHost, ID: "host_a"}, nil
	case "Bearer user":
		return w.caller(), nil
	}
	return auth.Caller{}, nil
}

func (w *world) dialTunnel(ctx context.Context, token string) (*tunnel.Conn, error) {
	h := http.Header{"Authorization": {"Bearer host"}}
	if token != "" {
		h.Set(protocol.StreamTokenHeader, token)
	}
	return tunnel.Dial(ctx, tunnel.DialConfig{URL: w.url + protocol.TunnelPath, Header: h})
}

var theConfirm = []byte{3, 0, 0, 11, 6, 0xd0, 0, 0, 0x12, 0x34, 0}

// serve plays the agent and what is inside of TLS.
func (w *world) serve(_ context.Context, c *tunnel.Conn, h protocol.StreamHeader) {
	defer c.Close()
	w.head.Store(h)
	r := protocol.StreamReply{}
	if h.RDP != nil {
		r.RDP = &protocol.RDPReply{Confirm: theConfirm}
		if !w.refuse.Load() {
			r.RDP.Certificates = [][]byte{{0x30, 0}}
		}
	}
	if tunnel.Reply(c, r) == nil {
		_, _ = io.Copy(c, c) // until the page leaves
	}
}

// open opens the WebSocket and sends request.
func (w *world) open(request []byte) *websocket.Conn {
	w.t.Helper()
	ws, _, err := websocket.DefaultDialer.Dial(w.url+Path, nil)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { ws.Close() })
	_ = ws.SetReadDeadline(time.Now().Add(20 * time.Second)) // ends a test that waits for what does not come
	if err := ws.WriteMessage(websocket.BinaryMessage, request); err != nil {
		w.t.Fatal(err)
	}
	return ws
}

// answer reads what the page is told.
func (w *world) answer(ws *websocket.Conn) (m cleanPath) {
	w.t.Helper()
	_, b, err := ws.ReadMessage()
	if err != nil {
		w.t.Fatal(err)
	}
	if _, err := asn1.Unmarshal(b, &m); err != nil {
		w.t.Fatal(err)
	}
	return m
}

func pageRequest(t *testing.T, token string) []byte {
	t.Helper()
	b, err := asn1.Marshal(cleanPath{Version: cleanPathVersion, Destination: "169.254.169.254:80", ProxyAuth: token, X224: theConfirm})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func (w *world) ticket() string {
	w.t.Helper()
	ticket, err := w.ForEnvironment(w.t.Context(), w.caller(), "lab", "desk", Wish{Clipboard: protocol.ClipboardToHost, Layout: 0x407})
	if err != nil {
		w.t.Fatal(err)
	}
	return ticket.Token
}

func TestPage(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "")
	ws := w.open(pageRequest(t, w.ticket()))
	m := w.answer(ws)
	if m.Error.Code != 0 || !bytes.Equal(m.X224, theConfirm) || len(m.Certificates) != 1 || m.ServerAddr != "desk" {
		t.Fatalf("%+v", m)
	}
	h := w.head.Load().(protocol.StreamHeader)
	if h.Kind != protocol.StreamRDP || h.Workload != "env_a" || h.Target.Address != "127.0.0.1:3389" || h.RDP.Clipboard != protocol.ClipboardToHost || h.RDP.Layout != 0x407 {
		t.Errorf("%+v", h)
	}
	sent := bytes.Repeat([]byte("bytes"), 40_000)
	go func() {
		for part := sent; len(part) > 0; part = part[min(len(part), 30_000):] {
			_ = ws.WriteMessage(websocket.BinaryMessage, part[:min(len(part), 30_000)]) // what comes back tells
		}
	}()
	var got []byte
	for len(got) < len(sent) {
		_, b, err := ws.ReadMessage()
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, b...)
	}
	if !bytes.Equal(got, sent) {
		t.Error("the bytes are others")
	}
}

func TestPageIsRefused(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "")
	used := w.ticket()
	w.answer(w.open(pageRequest(t, used)))
	for _, c := range []struct {
		name    string
		request func() []byte
		status  int
	}{
		{"used token", func() []byte { return pageRequest(t, used) }, http.StatusUnauthorized},
		{"no token", func() []byte { return pageRequest(t, "") }, http.StatusUnauthorized},
		{"garbage", func() []byte { return []byte("GET / HTTP/1.1\r\n\r\n") }, http.StatusUnprocessableEntity},
		{"too long", func() []byte { return []byte{0x30, 0x82, 0xff, 0xff} }, http.StatusUnprocessableEntity},
		{"never whole", func() []byte { return []byte{0x30, 0x20, 0xa0} }, http.StatusUnprocessableEntity},
		{"no member any more", func() []byte {
			token := w.ticket()
			w.role.Store(auth.Role(""))
			return pageRequest(t, token)
		}, http.StatusNotFound},
		{"only a viewer now", func() []byte {
			w.role.Store(auth.Member)
			token := w.ticket()
			w.role.Store(auth.Viewer)
			return pageRequest(t, token)
		}, http.StatusForbidden},
	} {
		ws := w.open(c.request())
		if m := w.answer(ws); m.Error != (cleanPathError{cleanPathGeneral, c.status}) || m.X224 != nil {
			t.Errorf("%s: %+v, want status %d", c.name, m, c.status)
		}
		if _, _, err := ws.ReadMessage(); !websocket.IsCloseError(err, websocket.CloseNormalClosure) {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}

// TestServerThatRefuses: the page gets the server's own word.
func TestServerThatRefuses(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "")
	w.refuse.Store(true)
	if m := w.answer(w.open(pageRequest(t, w.ticket()))); m.Error.Code != cleanPathNegotiation || !bytes.Equal(m.X224, theConfirm) {
		t.Errorf("%+v", m)
	}
}

// TestPageOfAnotherSite cannot use a token that it has got hold of.
func TestPageOfAnotherSite(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "")
	for origin, want := range map[string]int{"https://evil.example": http.StatusForbidden, "null": http.StatusForbidden, "http" + strings.TrimPrefix(w.url, "ws"): http.StatusSwitchingProtocols} {
		ws, resp, err := websocket.DefaultDialer.Dial(w.url+Path, http.Header{"Origin": {origin}})
		if resp == nil || resp.StatusCode != want {
			t.Errorf("%s: %v, %v", origin, resp, err)
		}
		if err == nil {
			ws.Close()
		}
	}
}

// TestTooManyStrangers: who shows no token holds a slot for a while, and nobody
// with a token waits longer than that.
func TestTooManyStrangers(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "")
	w.slots = make(chan struct{}, 2)
	for range 2 {
		w.open([]byte{0x30})
	}
	if _, resp, err := websocket.DefaultDialer.Dial(w.url+Path, nil); err == nil || resp == nil || resp.StatusCode != http.StatusServiceUnavailable {
		t.Errorf("one more: %v", err)
	}
	for {
		ws, _, err := websocket.DefaultDialer.Dial(w.url+Path, nil)
		if err == nil {
			ws.Close()
			return
		}
		if t.Context().Err() != nil {
			t.Fatal(err)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

func TestPlain(t *testing.T) {
	t.Parallel()
	dial := func(w *world, token string) (*tunnel.Conn, int) {
		conn, err := tunnel.Dial(t.Context(), tunnel.DialConfig{URL: w.url + "/api/v1/workspaces/lab/environments/desk/rdp", Header: http.Header{"Authorization": {"Bearer " + token}}})
		if rejected, ok := errors.AsType[*tunnel.Rejected](err); ok {
			return nil, rejected.Status
		} else if err != nil {
			t.Fatal(err)
		}
		return conn, 0
	}
	w := newWorld(t, "")
	if _, status := dial(w, "nobody"); status != http.StatusUnauthorized {
		t.Errorf("nobody: %d", status)
	}
	conn, status := dial(w, "user")
	if status != 0 {
		t.Fatal(status)
	}
	defer conn.Close()
	got := make([]byte, 5)
	if _, err := conn.Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(conn, got); err != nil || string(got) != "hello" {
		t.Errorf("%q, %v", got, err)
	}
	if h := w.head.Load().(protocol.StreamHeader); h.RDP != nil || h.Kind != protocol.StreamRDP {
		t.Errorf("%+v", h)
	}
	if _, status := dial(newWorld(t, protocol.ClipboardToHost), "user"); status != http.StatusForbidden {
		t.Errorf("where copying is limited: %d", status)
	}
}

// TestDesktopEndsWithItsRights, and with its environment: in a page and in a
// system's client, of an environment and of a host itself.
func TestDesktopEndsWithItsRights(t *testing.T) {
	t.Parallel()
	const envPath, hostPath = "/api/v1/workspaces/lab/environments/desk/rdp", "/api/v1/hosts/box/rdp"
	dial := func(w *world, path string) io.ReadWriter {
		conn, err := tunnel.Dial(t.Context(), tunnel.DialConfig{URL: w.url + path, Header: http.Header{"Authorization": {"Bearer user"}}})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		return conn
	}
	page := func(w *world, _ string) io.ReadWriter {
		ws := w.open(pageRequest(t, w.ticket()))
		if m := w.answer(ws); m.Error.Code != 0 {
			t.Fatalf("%+v", m)
		}
		return messages{ws}
	}
	less := func(w *world) {
		w.role.Store(auth.Viewer)
		w.admin.Store(false)
		w.cfg.Access.Recheck("usr_a")
	}
	deleted := func(w *world) { w.cfg.Access.EndEnvironment("env_a") }
	for _, c := range []struct {
		name string
		open func(w *world, path string) io.ReadWriter
		path string
		ends func(w *world)
	}{
		{"page, rights", page, "", less},
		{"page, deleted", page, "", deleted},
		{"client, rights", dial, envPath, less},
		{"client, deleted", dial, envPath, deleted},
		{"host's, rights", dial, hostPath, less},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, "")
			w.admin.Store(true)
			conn := c.open(w, c.path)
			w.cfg.Access.Recheck("")             // nothing has changed
			w.cfg.Access.EndEnvironment("env_b") // another one's
			got := make([]byte, 5)
			if _, err := conn.Write([]byte("hello")); err != nil {
				t.Fatal(err)
			}
			if _, err := io.ReadFull(conn, got); err != nil || string(got) != "hello" {
				t.Fatalf("%q, %v", got, err)
			}
			c.ends(w)
			ended := make(chan error, 1)
			go func() {
				_, err := conn.Read(got)
				ended <- err
			}()
			select {
			case err := <-ended:
				if err == nil {
					t.Error("bytes came after the end")
				}
			case <-time.After(30 * time.Second):
				t.Error("the desktop goes on")
			}
		})
	}
}

// messages is a page's WebSocket as bytes, a message at a time.
type messages struct{ ws *websocket.Conn }

func (m messages) Write(p []byte) (int, error) {
	return len(p), m.ws.WriteMessage(websocket.BinaryMessage, p)
}

func (m messages) Read(p []byte) (int, error) {
	_, b, err := m.ws.ReadMessage()
	return copy(p, b), err
}
