package app

import (
	"context"
	"crypto/ed25519"
	"encoding/json"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/remotegpu/remotegpu/console"
	"github.com/remotegpu/remotegpu/control/access"
	"github.com/remotegpu/remotegpu/control/account"
	"github.com/remotegpu/remotegpu/control/auth"
	"github.com/remotegpu/remotegpu/control/environment"
	"github.com/remotegpu/remotegpu/control/host"
	"github.com/remotegpu/remotegpu/control/pg"
	"github.com/remotegpu/remotegpu/control/pgtest"
	"github.com/remotegpu/remotegpu/control/scheduler"
	"github.com/remotegpu/remotegpu/control/web"
	"github.com/remotegpu/remotegpu/control/workspace"
	"github.com/remotegpu/remotegpu/protocol"
	"github.com/remotegpu/remotegpu/protocol/tunnel"
)

func TestMain(m *testing.M) { pgtest.Main(m) }

const password = "correct horse"

// world is the module with real modules below it, an agent whose containers
// are this machine's loopback, and people with tokens. Workspace lab has the
// environments box and den, which run, and off, which does not; lab2 has box.
type world struct {
	*Service
	t        *testing.T
	pool     *pg.Pool
	accounts *account.Service
	spaces   *workspace.Service
	envs     *environment.Service
	hub      *tunnel.Hub
	server   *httptest.Server
	paths    *httptest.Server // of apps that share an origin
	url      string           // of the API
	host     string
	online   atomic.Bool
	agent    *tunnel.Pool
	stop     func() // ends the agent
	secrets  map[string]string
	callers  map[string]auth.Caller

	mu    sync.Mutex
	ports map[string]string // where in truth what is at an address of an environment listens
	paid  map[string]int    // bytes of each user
}

// people and their role in lab; ann's is in lab2 too.
var people = map[string]auth.Role{"ann": auth.Owner, "bob": auth.Member, "vera": auth.Viewer, "eve": ""}

// Places of apps: hosts of their own, or an origin that they share.
var (
	ownHosts = Places{Main: "https://gpu.test:8443", Domain: "apps.test"}
	shared   = Places{Main: "https://gpu.test:8443", Path: "https://gpu.test:8444"}
)

func newWorld(t *testing.T) *world { return newWorldAt(t, ownHosts) }

func newWorldAt(t *testing.T, places Places) *world {
	t.Helper()
	w := &world{t: t, pool: pgtest.New(t), secrets: map[string]string{}, callers: map[string]auth.Caller{}, ports: map[string]string{}, paid: map[string]int{}}
	log := slog.New(slog.DiscardHandler)
	if testing.Verbose() {
		log = slog.New(slog.NewTextHandler(t.Output(), nil))
	}
	w.accounts, w.spaces = account.New(w.pool), workspace.New(w.pool)
	sched := scheduler.New(w.pool, log)
	w.envs = environment.New(w.pool, environment.Config{Resolve: w.spaces.Resolve, Scheduler: sched, Publish: func(string, string, []byte) {}}, log)
	w.people()
	w.join(host.New(w.pool, host.Config{}, log))
	w.hub = tunnel.NewHub(tunnel.HubConfig{Ask: w.ask, Online: func(string) bool { return w.online.Load() }, Log: log})
	t.Cleanup(w.hub.Close)
	_, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	ways, err := access.New(w.pool, access.Config{HostKey: key, HostCA: key, Find: w.envs.Find, Hub: w.hub, Log: log})
	if err != nil {
		t.Fatal(err)
	}
	w.serve(log, ways, places)
	w.environments()
	w.startAgent(log)
	return w
}

// serve starts the API with the module's routes.
func (w *world) serve(log *slog.Logger, ways *access.Service, places Places) {
	w.Service = New(w.pool, Config{
		Places: places, Resolve: w.spaces.Resolve, Get: w.envs.Get, Find: w.envs.Find, Dial: ways.Dial, Pass: w.pass,
		Bearer: w.accounts.BySecret, Now: w.accounts.Now, LoginPage: console.Login(),
		Login: func(ctx context.Context, c auth.Caller, email, password string) (auth.Caller, error) {
			secret, _, err := w.accounts.Login(ctx, c, email, password)
			if err != nil {
				return c, err
			}
			return w.accounts.BySecret(ctx, "", secret)
		},
	}, log)
	w.t.Cleanup(w.Service.Close)
	api := web.New("test", log)
	ways.Routes(api)
	w.Routes(api)
	w.server = httptest.NewTLSServer(w.Handler(api.Handler(w.bearer, false)))
	w.t.Cleanup(w.server.Close)
	w.paths = httptest.NewTLSServer(w.PathHandler())
	w.t.Cleanup(w.paths.Close)
	w.url = w.server.URL
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error)
	go func() { ended <- w.Run(ctx) }()
	w.t.Cleanup(func() { cancel(); <-ended })
}

func (w *world) pass(_ context.Context, user string) func(n int) {
	return func(n int) {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.paid[user] += n
	}
}

func (w *world) bearer(r *http.Request) (auth.Caller, error) {
	secret, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	switch {
	case !ok:
		return auth.Caller{}, nil
	case secret == w.host:
		return auth.Caller{Kind: auth.KindHost, ID: w.host}, nil
	}
	return w.accounts.BySecret(r.Context(), "", secret)
}

func (w *world) people() {
	w.t.Helper()
	system := auth.System("test")
	for name := range people {
		w.callers[name] = auth.Caller{ID: w.user(name)}
	}
	for _, ws := range []string{"lab", "lab2"} {
		if _, err := w.spaces.Create(w.t.Context(), system, ws, w.callers["ann"].ID); err != nil {
			w.t.Fatal(err)
		}
	}
	for name, role := range people {
		if role != "" && role != auth.Owner {
			if err := w.spaces.SetMember(w.t.Context(), system, "lab", name+"@example.org", role); err != nil {
				w.t.Fatal(err)
			}
		}
		c, err := w.accounts.ByUser(w.t.Context(), account.User{ID: w.callers[name].ID, Email: name + "@example.org"})
		if err != nil {
			w.t.Fatal(err)
		}
		w.callers[name] = c
		if _, w.secrets[name], err = w.accounts.CreateToken(w.t.Context(), c, "test", time.Hour); err != nil {
			w.t.Fatal(err)
		}
	}
}

// passwordHash is that of password, made once: it takes long by design.
var passwordHash struct {
	sync.Mutex
	text string
}

// user makes a user with the password and returns the id.
func (w *world) user(name string) string {
	w.t.Helper()
	passwordHash.Lock()
	defer passwordHash.Unlock()
	if passwordHash.text == "" {
		u, err := w.accounts.CreateUser(w.t.Context(), auth.System("test"), account.User{Email: name + "@example.org"}, password)
		if err != nil {
			w.t.Fatal(err)
		}
		if err := w.pool.QueryRow(w.t.Context(), "select password_hash from users where id = $1", u.ID).Scan(&passwordHash.text); err != nil {
			w.t.Fatal(err)
		}
		return u.ID
	}
	id := protocol.NewID(protocol.PrefixUser)
	_, err := w.pool.Exec(w.t.Context(), "insert into users (id, email, name, password_hash) values ($1, $2, $3, $4)", id, name+"@example.org", name, passwordHash.text)
	if err != nil {
		w.t.Fatal(err)
	}
	return id
}

// join makes the host the way an agent does.
func (w *world) join(hosts *host.Service) {
	w.t.Helper()
	_, secret, err := hosts.CreateToken(w.t.Context(), auth.System("test"), host.JoinToken{Uses: 1}, time.Hour)
	if err != nil {
		w.t.Fatal(err)
	}
	pub, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		w.t.Fatal(err)
	}
	in := protocol.Enroll{Token: secret, PublicKey: pub, Proof: ed25519.Sign(key, protocol.EnrollProof(secret, pub)), Name: "gpu-1",
		Inventory: protocol.Inventory{Hostname: "gpu-1", OS: "linux", Arch: "amd64", CPUs: 8, Memory: 64 << 30, Disk: 1 << 40}}
	out, err := hosts.Enroll(w.t.Context(), auth.Caller{}, in)
	if err != nil {
		w.t.Fatal(err)
	}
	if err := hosts.Presence(w.t.Context(), out.Host, protocol.Presence{Version: protocol.Version, Epoch: 1, Online: true}); err != nil {
		w.t.Fatal(err)
	}
	w.host = out.Host
}

func (w *world) environments() {
	w.t.Helper()
	for _, name := range []string{"lab/box", "lab/den", "lab/off", "lab2/box"} {
		ws, env, _ := strings.Cut(name, "/")
		e, err := w.envs.Create(w.t.Context(), auth.System("test"), ws, environment.Spec{Name: env})
		if err != nil {
			w.t.Fatal(err)
		}
		phase := protocol.PhaseRunning
		if env == "off" {
			phase = protocol.PhaseStopped
		}
		if _, err := w.pool.Exec(w.t.Context(), "update environments set phase = $2, want = case $2 when 'running' then 'running' else 'stopped' end where id = $1", e.ID, phase); err != nil {
			w.t.Fatal(err)
		}
	}
}

func (w *world) ask(_ context.Context, _ string, d protocol.Dial) error {
	w.agent.Request(d)
	return nil
}

func (w *world) startAgent(log *slog.Logger) {
	w.agent = tunnel.NewPool(tunnel.PoolConfig{Dial: w.dialTunnel, Serve: w.serveStream, Log: log})
	w.online.Store(true)
	ctx, cancel := context.WithCancel(context.Background())
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		_ = w.agent.Run(ctx)
	}()
	w.stop = func() {
		w.online.Store(false)
		cancel()
		<-gone
		w.hub.Drop(w.host)
	}
	w.t.Cleanup(w.stop)
}

func (w *world) dialTunnel(ctx context.Context, token string) (*tunnel.Conn, error) {
	h := http.Header{"Authorization": {"Bearer " + w.host}}
	if token != "" {
		h.Set(protocol.StreamTokenHeader, token)
	}
	return tunnel.Dial(ctx, tunnel.DialConfig{URL: "wss" + strings.TrimPrefix(w.url, "https") + protocol.TunnelPath, Header: h, TLS: w.server.Client().Transport.(*http.Transport).TLSClientConfig})
}

// put lets something listen at an address of an environment of lab.
func (w *world) put(env, address, real string) {
	w.t.Helper()
	e, err := w.envs.Get(w.t.Context(), auth.System("test"), "lab", env)
	if err != nil {
		w.t.Fatal(err)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.ports[e.ID+" "+address] = real
}

// serveStream plays the helper in the container, as far as dials go.
func (w *world) serveStream(_ context.Context, c *tunnel.Conn, h protocol.StreamHeader) {
	w.mu.Lock()
	real := w.ports[h.Workload+" "+h.Target.Address]
	w.mu.Unlock()
	to, err := net.Dial("tcp", real)
	if h.Kind != protocol.StreamDial || err != nil {
		_ = tunnel.Reply(c, protocol.StreamReply{Code: protocol.ReplyRefused, Message: "Nothing listens on " + h.Target.Address + " in the environment; start the service there, or check the address."})
		return
	}
	defer to.Close()
	if tunnel.Reply(c, protocol.StreamReply{}) != nil {
		return
	}
	back := make(chan struct{})
	go func() {
		defer close(back)
		if _, err := io.Copy(c, to); err != nil {
			c.CloseWithError(err)
			return
		}
		_ = c.CloseWrite()
	}()
	if _, err := io.Copy(to, c); err == nil {
		_ = to.(*net.TCPConn).CloseWrite()
	} else {
		to.Close()
	}
	<-back
}

// api sends a request to the API as somebody and returns status and body.
func (w *world) api(who, method, path, body string) (int, string) {
	w.t.Helper()
	req, err := http.NewRequestWithContext(w.t.Context(), method, w.url+path, strings.NewReader(body))
	if err != nil {
		w.t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	if who != "" {
		req.Header.Set("Authorization", "Bearer "+w.secrets[who])
	}
	res, err := w.server.Client().Do(req)
	if err != nil {
		w.t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		w.t.Fatal(err)
	}
	return res.StatusCode, string(b)
}

// detail is the sentence of a problem document.
func detail(body string) string {
	var p struct{ Detail string }
	_ = json.Unmarshal([]byte(body), &p)
	return p.Detail
}
