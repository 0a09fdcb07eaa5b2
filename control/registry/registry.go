// Package registry is the image registry at /v2/.
//
// It owns who may pull and push which repository; the registry itself is
// distribution v3, run in this process on the server's blob folder.
// Repositories are named WORKSPACE/NAME. Its invariant: nobody sees a
// repository of a workspace that they are not a member of, a host sees those
// of the workloads it runs, and the workspace "library" is everybody's to
// pull.
package registry

import (
	"context"
	"crypto/ed25519"
	"encoding/hex"
	"io"
	"log/slog"
	"net/http"
	"path"
	"strings"

	"github.com/distribution/distribution/v3/configuration"
	distauth "github.com/distribution/distribution/v3/registry/auth"
	"github.com/distribution/distribution/v3/registry/handlers"
	_ "github.com/distribution/distribution/v3/registry/storage/driver/filesystem" // the storage driver
	"github.com/sirupsen/logrus"

	"github.com/remotegpu/remotegpu/control/auth"
	"github.com/remotegpu/remotegpu/control/errs"
	"github.com/remotegpu/remotegpu/control/pg"
	"github.com/remotegpu/remotegpu/control/web"
	"github.com/remotegpu/remotegpu/control/workspace"
)

// Config is what the registry needs from others.
type Config struct {
	Dir     string             // folder of the blobs
	Secret  ed25519.PrivateKey // its seed protects upload states between replicas
	User    func(ctx context.Context, remote, apiToken string) (auth.Caller, error)
	Host    func(ctx context.Context, jwt string) (auth.Caller, error)
	Resolve func(ctx context.Context, workspace string) (id string, err error)
	Log     *slog.Logger
	Room    func(bytes int64) error // an error: so much more may not be stored; nil: there is always room
}

// Service is the registry of one server.
type Service struct {
	pool *pg.Pool
	cfg  Config
	app  *handlers.App
}

// controller is distribution's name for access control by a Service, which is
// the controller's option "service".
const controller = "remotegpu"

// Distribution's list of controllers has no lock: it is written before anything
// runs, not by each Service.
func init() {
	err := distauth.Register(controller, func(options map[string]any) (distauth.AccessController, error) {
		return options["service"].(*Service), nil
	})
	if err != nil {
		panic(err)
	}
}

// New returns the registry.
func New(ctx context.Context, pool *pg.Pool, cfg Config) *Service {
	s := &Service{pool: pool, cfg: cfg}
	logrus.SetOutput(io.Discard) // distribution logs requests by logrus; what matters is in our log
	c := &configuration.Configuration{
		Version: "0.1",
		Storage: configuration.Storage{
			"filesystem":  {"rootdirectory": cfg.Dir, "maxthreads": 100},
			"delete":      {"enabled": true},
			"maintenance": {"uploadpurging": map[any]any{"enabled": true, "age": "168h", "interval": "24h", "dryrun": false}},
		},
		Auth: configuration.Auth{controller: {"service": s}},
	}
	c.HTTP.Secret = hex.EncodeToString(cfg.Secret.Seed())
	c.Catalog.MaxEntries = 1000
	s.app = handlers.NewApp(ctx, c)
	return s
}

// Routes adds the module's routes.
func (s *Service) Routes(api *web.API) {
	api.Raw(web.Route{Path: "/v2/", Action: auth.RegistryRead, Summary: "Image registry (OCI distribution)"}, refusing(s.bounded(s.app)))
}

// Authorized says whether the request may do all of access; distribution calls
// it for every request.
func (s *Service) Authorized(r *http.Request, access ...distauth.Access) (*distauth.Grant, error) {
	name, password, ok := r.BasicAuth()
	if !ok {
		return nil, challenge{errs.E(errs.Unauthenticated, "Log in first: docker login, with any user name and an API token as password (remotegpu token create NAME).")}
	}
	c, err := s.caller(r.Context(), name, password)
	if err != nil {
		return nil, s.refuse(r, name, err)
	}
	grant := &distauth.Grant{User: distauth.UserInfo{Name: c.ID}}
	for _, a := range access {
		if err := s.allow(r.Context(), c, a); err != nil {
			return nil, s.refuse(r, name, err)
		}
		grant.Resources = append(grant.Resources, a.Resource)
	}
	return grant, nil
}

// caller takes an API token as password of any user name, or a host's JWT as
// password of its id.
func (s *Service) caller(ctx context.Context, name, password string) (auth.Caller, error) {
	if strings.HasPrefix(name, "host_") {
		c, err := s.cfg.Host(ctx, password)
		if err == nil && c.ID != name {
			err = errs.E(errs.Unauthenticated, "The token is of another host.")
		}
		return c, err
	}
	return s.cfg.User(ctx, auth.From(ctx).Remote, password)
}

func (s *Service) allow(ctx context.Context, c auth.Caller, a distauth.Access) error {
	if a.Type != "repository" {
		return c.Require(auth.UserManage, "") // the catalogue of everything
	}
	owner, rest, _ := strings.Cut(path.Clean(a.Name), "/")
	if rest == "" {
		return errs.E(errs.Invalid, "Name images HOST/WORKSPACE/NAME: the workspace is missing.")
	}
	if owner == workspace.Library && a.Action == "pull" {
		return nil
	}
	id, err := s.cfg.Resolve(ctx, owner)
	if err != nil {
		return err
	}
	if c.Kind == auth.KindHost {
		return s.allowHost(ctx, c, id, a.Action)
	}
	if a.Action == "pull" {
		return c.Require(auth.RegistryRead, id)
	}
	if err := c.Require(auth.RegistryWrite, id); err != nil || a.Action != "push" || s.cfg.Room == nil {
		return err // what is deleted makes room
	}
	return s.cfg.Room(lookEvery)
}

// allowHost lets a host pull from the workspaces whose environments it has.
func (s *Service) allowHost(ctx context.Context, c auth.Caller, ws, action string) error {
	if action != "pull" {
		return errs.E(errs.Denied, "A host may only pull.")
	}
	var has bool
	err := s.pool.QueryRow(ctx, "select exists (select from environments where host_id = $1 and workspace_id = $2)", c.ID, ws).Scan(&has)
	if err == nil && !has {
		err = errs.E(errs.Denied, "This host runs nothing of that workspace.")
	}
	return err
}

func (s *Service) refuse(r *http.Request, name string, err error) error {
	if errs.KindOf(err) == errs.Internal {
		s.cfg.Log.Error("registry access", "name", name, "err", err)
	} else {
		s.cfg.Log.Info("registry refused", "name", name, "path", r.URL.Path, "err", err)
	}
	return challenge{err}
}
