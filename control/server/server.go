// Package server wires the modules of the control plane together and runs
// them.
//
// It owns listeners, the certificate, the installer's routes and the order of
// start and stop; everything else stands in a module. Reading New from top to
// bottom shows the whole control plane.
package server

import (
	"context"
	"crypto/ed25519"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"gocloud.dev/blob"
	"golang.org/x/sync/errgroup"

	"github.com/remotegpu/remotegpu/broker"
	"github.com/remotegpu/remotegpu/broker/external"
	"github.com/remotegpu/remotegpu/console"
	"github.com/remotegpu/remotegpu/control/access"
	"github.com/remotegpu/remotegpu/control/account"
	"github.com/remotegpu/remotegpu/control/app"
	"github.com/remotegpu/remotegpu/control/audit"
	"github.com/remotegpu/remotegpu/control/auth"
	"github.com/remotegpu/remotegpu/control/dispatch"
	"github.com/remotegpu/remotegpu/control/door"
	"github.com/remotegpu/remotegpu/control/environment"
	"github.com/remotegpu/remotegpu/control/host"
	"github.com/remotegpu/remotegpu/control/keys"
	"github.com/remotegpu/remotegpu/control/pg"
	"github.com/remotegpu/remotegpu/control/rdp"
	"github.com/remotegpu/remotegpu/control/recording"
	"github.com/remotegpu/remotegpu/control/registry"
	"github.com/remotegpu/remotegpu/control/replica"
	"github.com/remotegpu/remotegpu/control/scheduler"
	"github.com/remotegpu/remotegpu/control/ticket"
	"github.com/remotegpu/remotegpu/control/web"
	"github.com/remotegpu/remotegpu/control/workspace"
	"github.com/remotegpu/remotegpu/protocol"
	"github.com/remotegpu/remotegpu/protocol/tunnel"
)

// Server is one replica of the control plane.
type Server struct {
	cfg      Config
	log      *slog.Logger
	private  *pg.Private // nil with an external database
	pool     *pg.Pool
	identity identity
	replicas *replica.Service
	hops     *hops
	hopTLS   *tls.Config
	broker   *broker.Broker
	outside  *external.Client // nil: there is none
	leading  atomic.Bool
	api      *web.API
	handler  http.Handler

	Accounts   *account.Service
	Workspaces *workspace.Service
	hosts      *host.Service
	dispatch   *dispatch.Service
	scheduler  *scheduler.Service
	envs       *environment.Service
	hub        *tunnel.Hub
	access     *access.Service
	apps       *app.Service
	desktops   *rdp.Service
	registry   *registry.Service
	blobs      *blob.Bucket
	recordings *recording.Service
	draining   atomic.Bool
}

// New builds a server: it starts the database when it is ours, brings the
// schema up to date, loads keys and wires the modules. Run serves.
func New(ctx context.Context, cfg Config, log *slog.Logger) (*Server, error) {
	if err := cfg.defaults(); err != nil {
		return nil, err
	}
	s := &Server{cfg: cfg, log: log}
	if err := s.openDatabase(ctx); err != nil {
		return nil, err
	}
	if err := s.wire(ctx); err != nil {
		s.closeDatabase()
		return nil, err
	}
	return s, nil
}

// databaseWithin is how long a server waits for its database, which may be
// starting too or have a full disk.
const databaseWithin = time.Minute

func (s *Server) openDatabase(ctx context.Context) (err error) {
	if err := os.MkdirAll(s.cfg.DataDir, 0o711); err != nil {
		return fmt.Errorf("make data folder: %w", err)
	}
	url := s.cfg.DatabaseURL
	if url == "" {
		if s.private, err = pg.StartPrivate(ctx, filepath.Join(s.cfg.DataDir, "postgres"), s.log); err != nil {
			return err
		}
		url = s.private.URL()
	}
	for start := time.Now(); ; time.Sleep(time.Second) {
		if s.pool, err = pg.Open(ctx, url); err == nil {
			return nil
		}
		if !pg.IsAway(err) && !pg.IsFull(err) || time.Since(start) > databaseWithin || ctx.Err() != nil {
			s.closeDatabase()
			return err
		}
		s.log.Warn("the database cannot be used yet; it is tried again", "err", err)
	}
}

func (s *Server) closeDatabase() {
	if s.pool != nil {
		s.pool.Close()
	}
	if s.private != nil {
		s.private.Close()
	}
}

// wire makes every module, in the order in which they need each other.
func (s *Server) wire(ctx context.Context) (err error) {
	if s.identity, err = loadIdentity(ctx, s.pool, s.cfg); err != nil {
		return err
	}
	if err := s.joinReplicas(ctx); err != nil {
		return err
	}
	key, err := loadKeys(ctx, s.pool)
	if err != nil {
		return err
	}
	s.Accounts = account.New(s.pool)
	s.Workspaces = workspace.New(s.pool)
	s.hosts = host.New(s.pool, host.Config{
		Keys: [][]byte{key.desired.Public().(ed25519.PublicKey)}, Registry: s.cfg.hostPort(),
		InstallCommand: s.InstallCommand, Replica: s.placeOf,
	}, s.log)
	s.scheduler = scheduler.New(s.pool, s.log)
	s.envs = environment.New(s.pool, environment.Config{
		Resolve: s.Workspaces.Resolve, Scheduler: s.scheduler, Registry: s.cfg.hostPort(), Publish: s.publishEvent,
	}, s.log)
	if s.broker, err = broker.New(broker.Config{Authenticate: s.mqttPrincipal, Remote: s.mqttRemote(), Log: s.log}); err != nil {
		return err
	}
	s.dispatch = dispatch.New(s.pool, dispatch.Config{
		Key: key.desired, Workloads: s.envs.Workloads, Publish: s.publishToHost, Connected: s.connected,
		Hello: s.hosts.Hello, Presence: s.hosts.Presence, HostState: s.hosts.Report, Workload: s.envs.Report, Beats: s.hosts.Beats,
	}, s.log)
	s.broker.Handle(protocol.TopicHello, s.dispatch.Hello)
	s.broker.Handle(protocol.TopicStatus, s.dispatch.Status)
	s.broker.Handle(protocol.TopicPresence, s.dispatch.Presence)
	if err := s.openOutside(); err != nil {
		return err
	}
	if s.blobs, err = s.cfg.openBlobs(ctx); err != nil {
		return err
	}
	s.recordings = recording.New(s.pool, recording.Config{Bucket: s.blobs, Resolve: s.Workspaces.Resolve, Room: s.cfg.roomForBlobs()}, s.log)
	s.hub = tunnel.NewHub(tunnel.HubConfig{
		Ask: s.askHost, Online: s.hostOnline, Name: s.replicas.ID(), Forward: s.forward,
		MaxSpares: spareFiles(), MaxPerUser: s.cfg.UserStreams, MaxPerHost: s.cfg.HostStreams,
		UserRate: s.cfg.UserRate, HostRate: s.cfg.HostRate, SessionRate: s.cfg.SessionRate, Log: s.log,
	})
	s.envs.SetLogs(s.hostLogs)
	s.access, err = access.New(s.pool, access.Config{
		HostKey: key.sshHost, HostCA: key.sshCA, Address: s.cfg.SSHAddress, ByKey: s.Accounts.ByKey, Find: s.envs.Find, Host: s.hosts.Find, Workspace: s.Workspaces.Find,
		Get: s.envs.Get, Now: s.Accounts.Now, Records: s.recordings.Records, Record: s.recordings.Begin, Continue: s.recordings.Continue, Hub: s.hub, Log: s.log,
	})
	if err != nil {
		return err
	}
	s.apps = s.newApps()
	s.desktops = rdp.New(s.pool, rdp.Config{
		Environment: s.envs.Get, Host: s.hosts.Find, Now: s.Accounts.Now, Access: s.access, Clipboard: s.cfg.Clipboard,
	}, s.log)
	s.registry = registry.New(ctx, s.pool, registry.Config{
		Dir: filepath.Join(s.cfg.DataDir, "registry"), Secret: key.tokens, User: s.registryUser, Host: s.registryHost,
		Resolve: s.Workspaces.Resolve, Log: s.log, Room: roomIn(s.cfg.DataDir),
	})
	s.routes()
	return s.firstLogin(ctx)
}

// privateKeys are those that all replicas share.
type privateKeys struct{ desired, sshHost, sshCA, tokens ed25519.PrivateKey }

func loadKeys(ctx context.Context, db pg.DB) (all privateKeys, err error) {
	for name, to := range map[string]*ed25519.PrivateKey{
		keys.Desired: &all.desired, keys.SSHHost: &all.sshHost, keys.SSHCA: &all.sshCA, keys.Tokens: &all.tokens,
	} {
		if *to, err = keys.Ed25519(ctx, db, name); err != nil {
			return all, err
		}
	}
	return all, nil
}

// joinReplicas makes this server one of those that share the database.
func (s *Server) joinReplicas(ctx context.Context) (err error) {
	if s.hopTLS, err = hopTLS(ctx, s.pool); err != nil {
		return err
	}
	s.hops = newHops(s.hopTLS)
	address, err := s.hopAddress(ctx)
	if err != nil {
		return err
	}
	s.replicas, err = replica.New(ctx, s.pool, replica.Config{
		Address: address, Lost: func(ctx context.Context, id string) error { return s.hosts.Lost(ctx, id) },
	}, s.log)
	return err
}

func (s *Server) newApps() *app.Service {
	return app.New(s.pool, app.Config{
		Places:  app.Places{Main: s.cfg.origin(), Domain: s.cfg.AppsDomain, Path: s.cfg.AppsURL},
		Resolve: s.Workspaces.Resolve, Get: s.envs.Get, Find: s.envs.Find, Dial: s.access.Dial, Pass: s.hub.Pass, Exec: s.access.Exec,
		Bearer: s.Accounts.BySecret, Now: s.Accounts.Now, Login: s.passwordLogin, LoginPage: console.Login(), TrustProxy: s.cfg.PlainHTTP,
	}, s.log)
}

// routes adds every route there is.
func (s *Server) routes() {
	s.api = web.New(s.cfg.Version, s.log)
	s.Accounts.Routes(s.api)
	s.Workspaces.Routes(s.api)
	s.hosts.Routes(s.api)
	s.scheduler.Routes(s.api)
	s.envs.Routes(s.api)
	s.dispatch.Routes(s.api)
	s.recordings.Routes(s.api)
	s.access.Routes(s.api)
	s.apps.Routes(s.api)
	s.desktops.Routes(s.api)
	s.registry.Routes(s.api)
	audit.Routes(s.api, s.pool)
	s.installRoutes(s.api)
	s.certificateRoutes(s.api)
	s.healthRoutes(s.api)
	s.api.Raw(web.Route{Method: http.MethodGet, Path: "/mqtt", Action: auth.HealthRead, Summary: "MQTT 5 over WebSocket; CONNECT authenticates"}, s.broker)
	s.api.Raw(web.Route{Path: "/", Action: auth.HealthRead, Summary: "The console"}, console.Handler())
	s.handler = s.apps.Handler(s.api.Handler(s.authenticate, s.cfg.PlainHTTP))
}

// Run serves until ctx ends, and then until what people have under way has
// ended too, for as long as Config.Drain says.
func (s *Server) Run(ctx context.Context) error {
	defer s.closeDatabase()
	defer s.access.Wait()
	defer s.hub.Close()
	defer s.broker.Close()
	defer s.closeOutside()
	ctx, stop := s.drained(ctx)
	defer stop()
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return s.serveHTTP(ctx, s.cfg.Listen, s.handler) })
	if s.cfg.AppsListen != "" {
		g.Go(func() error { return s.serveHTTP(ctx, s.cfg.AppsListen, s.apps.PathHandler()) })
	}
	g.Go(func() error { return s.apps.Run(ctx) })
	g.Go(func() error { return s.serveSSH(ctx) })
	if s.cfg.MQTTListen != "" {
		g.Go(func() error { return s.serveMQTT(ctx) })
	}
	if s.cfg.DebugListen != "" {
		g.Go(func() error { return s.serveDebug(ctx) })
	}
	if s.cfg.ReplicaListen != "" {
		g.Go(func() error { return s.serveHops(ctx) })
	}
	g.Go(func() error { return s.replicas.Run(ctx) })
	g.Go(func() error { return pg.Lead(ctx, s.pool, "loops", s.lead) })
	g.Go(func() error { return pg.Listen(ctx, s.pool, dialWanted, s.askForOthers) })
	g.Go(func() error { return pg.Listen(ctx, s.pool, account.Revoked, s.cut) })
	g.Go(func() error { return pg.Listen(ctx, s.pool, host.Dropped, s.dropHost) })
	g.Go(func() error { return pg.Listen(ctx, s.pool, environment.Changed, s.endDeleted) })
	g.Go(func() error { return s.keepPresence(ctx) })
	g.Go(func() error { return s.hosts.Follow(ctx) })
	g.Go(func() error { return s.scheduler.Run(ctx) })
	g.Go(func() error { return s.envs.Run(ctx) })
	g.Go(func() error { return s.dispatch.Run(ctx) })
	s.log.Info("server is up", "url", s.cfg.URL, "ssh", s.cfg.SSHAddress, "key", s.identity.pin, "version", s.cfg.Version)
	return g.Wait()
}

// lead runs what one replica does for all of them.
func (s *Server) lead(ctx context.Context) error {
	s.log.Info("this replica leads: it has the background loops", "replica", s.replicas.ID())
	s.leading.Store(true)
	defer s.leading.Store(false)
	g, ctx := errgroup.WithContext(ctx)
	if s.outside != nil {
		g.Go(func() error { return s.receiveOutside(ctx) })
	}
	g.Go(func() error { return audit.Run(ctx, s.pool, s.log) })
	g.Go(func() error { return ticket.Run(ctx, s.pool, s.log) })
	g.Go(func() error { return s.Accounts.Sweep(ctx, s.log) })
	g.Go(func() error { return s.replicas.Sweep(ctx) })
	g.Go(func() error { return s.hosts.Run(ctx) })
	g.Go(func() error { return s.recordings.Run(ctx) })
	g.Go(func() error { return s.scheduler.Lead(ctx) })
	g.Go(func() error { return s.envs.Lead(ctx) })
	return g.Wait()
}

// paced listens where bulk comes and goes. The kernel notices within half a
// minute that the other end of a silent connection is there no more.
var paced = net.ListenConfig{
	Control:         tunnel.Pace,
	KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: 15 * time.Second, Interval: 5 * time.Second, Count: 3},
}

// strangersHTTPS is how many HTTPS connections of one network may be open that
// have not logged in; a whole site of hosts may connect at once.
const strangersHTTPS = 512

func (s *Server) serveHTTP(ctx context.Context, address string, handler http.Handler) error {
	if s.cfg.PlainHTTP {
		return s.serveWeb(ctx, address, handler, nil)
	}
	return s.serveWeb(ctx, address, handler, s.identity.tlsConfig("http/1.1"))
}

// serveHops takes streams from other replicas.
func (s *Server) serveHops(ctx context.Context) error {
	return s.serveWeb(ctx, s.cfg.ReplicaListen, s.hopHandler(), s.hopTLS)
}

// serveWeb serves HTTP, with TLS unless there is no configuration of it.
func (s *Server) serveWeb(ctx context.Context, address string, handler http.Handler, cfg *tls.Config) error {
	l, err := paced.Listen(ctx, "tcp", address)
	if err != nil {
		return fmt.Errorf("listen on %s: %w", address, err)
	}
	srv := web.Server(handler, s.log)
	srv.BaseContext, srv.TLSConfig = func(net.Listener) context.Context { return ctx }, cfg
	if cfg != nil { // else all come from the proxy, which has limits of its own
		door.New("https", strangersHTTPS, 16*strangersHTTPS, s.log).Guard(srv)
	}
	finished := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(finished)
		last, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer cancel()
		_ = srv.Shutdown(last) // WebSockets end with ctx
	})
	defer stop()
	if cfg == nil {
		err = srv.Serve(tunnel.Listener(door.Idle(l)))
	} else {
		turns := door.NewTurns()
		srv.TLSConfig = turns.Config(cfg)
		err = srv.ServeTLS(tunnel.Listener(turns.Listener(door.Idle(l))), "", "")
	}
	if errors.Is(err, http.ErrServerClosed) {
		<-finished // requests still need the database
		return nil
	}
	return err
}

func (s *Server) serveSSH(ctx context.Context) error {
	l, err := paced.Listen(ctx, "tcp", s.cfg.SSHListen)
	if err != nil {
		return fmt.Errorf("listen for SSH: %w", err)
	}
	return s.access.Serve(ctx, l)
}

func (s *Server) serveMQTT(ctx context.Context) error {
	l, err := paced.Listen(ctx, "tcp", s.cfg.MQTTListen)
	if err != nil {
		return fmt.Errorf("listen for MQTT: %w", err)
	}
	l = door.Idle(l)
	if !s.cfg.PlainHTTP {
		l = tls.NewListener(l, s.identity.tlsConfig())
	}
	return s.broker.Serve(ctx, l)
}
