package server

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/remotegpu/remotegpu/broker"
	"github.com/remotegpu/remotegpu/control/account"
	"github.com/remotegpu/remotegpu/control/auth"
	"github.com/remotegpu/remotegpu/control/door"
	"github.com/remotegpu/remotegpu/control/environment"
	"github.com/remotegpu/remotegpu/control/errs"
	"github.com/remotegpu/remotegpu/control/pg"
	"github.com/remotegpu/remotegpu/control/web"
	"github.com/remotegpu/remotegpu/control/workspace"
	"github.com/remotegpu/remotegpu/protocol"
)

// authenticate finds out who sends a request; the door counts strangers alone.
func (s *Server) authenticate(r *http.Request) (auth.Caller, error) {
	c, err := s.callerOf(r)
	registry := strings.HasPrefix(r.URL.Path, "/v2/") // asks in its own way, before it reads
	if err == nil && c.Kind == auth.KindNobody && !registry && r.ContentLength != 0 && !door.Ask(r.Context(), r.ContentLength) {
		err = errs.E(errs.Unavailable, "Too many requests from your network without a login, or one that is too large; try again in a minute.")
	}
	return c, let(r.Context(), c, err)
}

func let(ctx context.Context, c auth.Caller, err error) error {
	if err == nil && c.Kind != auth.KindNobody {
		door.Known(ctx)
	}
	return err
}

// registryUser takes the password of a client of the registry.
func (s *Server) registryUser(ctx context.Context, remote, secret string) (auth.Caller, error) {
	c, err := s.Accounts.BySecret(ctx, remote, secret)
	return c, let(ctx, c, err)
}

// registryHost does so for a host.
func (s *Server) registryHost(ctx context.Context, jwt string) (auth.Caller, error) {
	c, err := s.hosts.Authenticate(ctx, jwt, protocol.AudienceRegistry)
	return c, let(ctx, c, err)
}

// callerOf knows a user by API token or session, or a host by a token that it
// signed for the place it calls at.
func (s *Server) callerOf(r *http.Request) (auth.Caller, error) {
	bearer, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	if !ok {
		return auth.Caller{}, nil // /v2/ and /mqtt ask in their own way
	}
	switch {
	case strings.HasPrefix(bearer, "rg"):
		return s.Accounts.BySecret(r.Context(), web.Remote(r, s.cfg.PlainHTTP), bearer)
	case r.URL.Path == protocol.TunnelPath:
		return s.hosts.Authenticate(r.Context(), bearer, protocol.AudienceTunnel)
	case strings.HasPrefix(r.URL.Path, "/api/v1/agent/"):
		return s.hosts.Authenticate(r.Context(), bearer, protocol.AudienceAPI)
	}
	return auth.Caller{}, errs.E(errs.Unauthenticated, "This is not an API token of RemoteGPU (they start with rgt_).")
}

// passwordLogin opens a session.
func (s *Server) passwordLogin(ctx context.Context, c auth.Caller, email, password string) (auth.Caller, error) {
	secret, _, err := s.Accounts.Login(ctx, c, email, password)
	if err != nil {
		return auth.Caller{}, err
	}
	return s.Accounts.BySecret(ctx, c.Remote, secret)
}

// mqttPrincipal finds out who connects to the broker.
func (s *Server) mqttPrincipal(ctx context.Context, c broker.Credentials) (broker.Principal, error) {
	caller, err := s.mqttCaller(ctx, c)
	if pg.IsAway(err) || pg.IsFull(err) {
		return broker.Principal{}, fmt.Errorf("%w: %w", broker.ErrUnavailable, err)
	}
	p := broker.Principal{Kind: broker.KindUser, ID: caller.ID, Admin: caller.Admin, Workspaces: caller.Workspaces()}
	switch {
	case caller.Kind == auth.KindHost:
		p = broker.Principal{Kind: broker.KindHost, ID: caller.ID}
	case caller.Token != "":
		p.Kind, p.ID = broker.KindToken, caller.Token // so that revoking the token cuts it
	}
	return p, err
}

func (s *Server) mqttCaller(ctx context.Context, c broker.Credentials) (auth.Caller, error) {
	switch c.User {
	case protocol.MQTTUserHost:
		return s.hosts.Authenticate(ctx, string(c.Password), protocol.AudienceMQTT)
	case protocol.MQTTUserToken:
		return s.Accounts.BySecret(ctx, c.Remote.String(), string(c.Password))
	}
	u, err := s.Accounts.CheckPassword(ctx, c.Remote.String(), c.User, string(c.Password))
	if err != nil {
		return auth.Caller{}, err
	}
	return s.Accounts.ByUser(ctx, u)
}

// mqttRemote is the address that a proxy in front saw; nil without one.
func (s *Server) mqttRemote() func(*http.Request) netip.Addr {
	if !s.cfg.PlainHTTP {
		return nil
	}
	return func(r *http.Request) netip.Addr {
		addr, _ := netip.ParseAddr(auth.From(r.Context()).Remote) // a proxy that sends nonsense gives no address
		return addr
	}
}

// cut ends what a token or user has open and may not have any more. MQTT reads
// rights at CONNECT only: its connections end anyway.
func (s *Server) cut(id string) {
	if id != "" {
		s.broker.Disconnect(id)
	}
	s.access.Recheck(id)
}

// endDeleted takes a notification of environment.Changed.
func (s *Server) endDeleted(payload string) {
	var ch environment.Change
	if json.Unmarshal([]byte(payload), &ch) == nil && ch.Phase == environment.PhaseDeleting {
		s.access.EndEnvironment(ch.ID)
	}
}

// publishToHost sends an agent what is worth nothing after some seconds:
// whoever sends it sends it again.
func (s *Server) publishToHost(host, topic string, payload []byte) error {
	m := broker.Message{Topic: protocol.HostTopic(host, topic), Payload: payload, Expiry: 15 * time.Second}
	if s.outside != nil && !s.broker.Connected(host) {
		return s.outside.Publish(m)
	}
	return s.broker.Publish(m)
}

// publishEvent tells a workspace's integrations what happened. Every replica
// hears of it, so each tells those of its own broker, and one those of the
// external one.
func (s *Server) publishEvent(workspace, kind string, payload []byte) {
	m := broker.Message{Topic: protocol.WorkspaceEvent(workspace, kind), Payload: payload}
	err := s.broker.Publish(m)
	if s.leadsOutside() {
		err = errors.Join(err, s.outside.Publish(m))
	}
	if err != nil {
		s.log.Warn("publish event", "workspace", workspace, "err", err)
	}
}

// dropHost takes a notification of host.Dropped.
func (s *Server) dropHost(id string) {
	if id == "" { // it says nothing
		return
	}
	s.broker.Disconnect(id)
	s.hub.Drop(id)
}

// healthRoutes tells load balancers and agents how we are.
func (s *Server) healthRoutes(api *web.API) {
	api.Raw(web.Route{Method: http.MethodGet, Path: "/healthz", Action: auth.HealthRead, Summary: "This server runs"},
		http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") }))
	api.Raw(web.Route{Method: http.MethodGet, Path: "/readyz", Action: auth.HealthRead, Summary: "This server and its database work"},
		http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			ctx, cancel := context.WithTimeout(r.Context(), 5*time.Second)
			defer cancel()
			switch err := s.pool.Ping(ctx); {
			case err != nil:
				api.Fail(w, r, errs.E(errs.Unavailable, "The database does not answer.", err))
				return
			case s.draining.Load():
				api.Fail(w, r, errs.E(errs.Unavailable, "This server is stopping."))
				return
			}
			fmt.Fprintln(w, "ok")
		}))
}

// loginFile is what the first start leaves for the person who installed us.
type loginFile struct {
	URL      string `json:"url"`
	Email    string `json:"email"`
	Password string `json:"password"`
}

// firstLogin makes the first platform admin and workspaces, and writes how to
// log in where only the server's user can read it. The file is there before the
// admin is: wherever that ends, the next start makes both anew, or finds both.
func (s *Server) firstLogin(ctx context.Context) error {
	first := loginFile{URL: s.cfg.URL, Email: "admin@localhost", Password: rand.Text()}
	file := filepath.Join(s.cfg.DataDir, "first-login.json")
	made, err := s.Accounts.Bootstrap(ctx, first.Email, first.Password, func(tx pg.Tx, admin account.User) error {
		for _, name := range []string{workspace.Library, "default"} {
			if _, err := workspace.Add(ctx, tx, auth.System("bootstrap"), name, admin.ID); err != nil {
				return err
			}
		}
		if err := first.write(file); err != nil {
			return fmt.Errorf("write first login: %w", err)
		}
		return nil
	})
	if made {
		s.log.Info("made the first platform admin", "name", first.Email, "password_in", file)
	}
	return err
}

// write returns when the file is whole and safe on the disk.
func (l loginFile) write(file string) error {
	b, err := json.MarshalIndent(l, "", "  ")
	if err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(file), filepath.Base(file)) // mode 0600
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // where it was not renamed
	_, err = f.Write(append(b, '\n'))
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), file); err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(file))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}
