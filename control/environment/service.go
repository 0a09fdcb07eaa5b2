package environment

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"strings"

	"github.com/remotegpu/remotegpu/control/audit"
	"github.com/remotegpu/remotegpu/control/auth"
	"github.com/remotegpu/remotegpu/control/dispatch"
	"github.com/remotegpu/remotegpu/control/errs"
	"github.com/remotegpu/remotegpu/control/pg"
	"github.com/remotegpu/remotegpu/control/scheduler"
	"github.com/remotegpu/remotegpu/protocol"
)

// Config is what environments need from others.
type Config struct {
	Resolve   func(ctx context.Context, workspace string) (id string, err error)
	Scheduler *scheduler.Service
	Registry  string // host:port of the built-in registry, so that images written with it are known as {control}
	// Publish sends JSON to a workspace's integrations: kind is like
	// "environment/running". Nil: nobody listens.
	Publish func(workspace, kind string, payload []byte)
	// Logs reads a workload's output on its host. Nil: not to be had.
	Logs func(ctx context.Context, host, workload string, tail int, follow bool) (io.ReadCloser, error)
}

// Service does everything with environments.
type Service struct {
	pool  *pg.Pool
	cfg   Config
	log   *slog.Logger
	watch watch
}

// New returns the service; without a scheduler in cfg it makes its own.
func New(pool *pg.Pool, cfg Config, log *slog.Logger) *Service {
	if cfg.Scheduler == nil {
		cfg.Scheduler = scheduler.New(pool, log)
	}
	s := &Service{pool: pool, cfg: cfg, log: log}
	cfg.Scheduler.Retries(protocol.PrefixEnvironment, s.retry)
	return s
}

// SetLogs says how logs are read, for wiring in which access comes later.
func (s *Service) SetLogs(fn func(ctx context.Context, host, workload string, tail int, follow bool) (io.ReadCloser, error)) {
	s.cfg.Logs = fn
}

// Create makes an environment and starts it, or lets it wait for a host.
func (s *Service) Create(ctx context.Context, c auth.Caller, workspace string, spec Spec) (Environment, error) {
	ws, err := s.workspace(ctx, c, auth.EnvironmentWrite, workspace)
	if err != nil {
		return Environment{}, err
	}
	name, err := workspaceName(ctx, s.pool, ws)
	if err != nil {
		return Environment{}, fmt.Errorf("read workspace: %w", err)
	}
	if err := spec.check(name, s.cfg.Registry); err != nil {
		return Environment{}, err
	}
	if spec.Priority != 0 && c.Kind == auth.KindUser && !c.Admin && !c.Roles[ws].AtLeast(auth.Admin) {
		return Environment{}, errs.E(errs.Denied, "Only an admin of the workspace may give a priority; leave it out, or ask one.")
	}
	e := spec.environment(protocol.NewID(protocol.PrefixEnvironment), ws, c)
	if e.Bytes, err = e.documentBytes(); err != nil {
		return Environment{}, fmt.Errorf("measure environment: %w", err)
	}
	err = pg.InTx(ctx, s.pool, func(tx pg.Tx) error {
		if err := insert(ctx, tx, &e); err != nil {
			return err
		}
		if err := tell(ctx, tx, &e, nil, protocol.SeverityNormal, "Created", "Created by "+c.Name+" with image "+e.Image+"."); err != nil {
			return err
		}
		d, err := s.place(ctx, tx, &e)
		if err != nil {
			return err
		}
		if d.Never {
			return errs.E(errs.Invalid, d.Summary)
		}
		if err := save(ctx, tx, &e); err != nil {
			return err
		}
		if err := announce(ctx, tx, &e, ""); err != nil {
			return err
		}
		return audit.Record(ctx, tx, c, auth.EnvironmentWrite, e.ID, ws, map[string]any{"op": "create", "name": e.Name, "image": e.Image, "resources": e.Resources})
	})
	if pg.IsUnique(err, "environments_workspace_id_name_key") {
		return Environment{}, errs.Ef(errs.Conflict, "There is an environment %s in workspace %s already; choose another name, or delete that one.", e.Name, name)
	} else if err != nil {
		return Environment{}, err
	}
	return s.Get(ctx, c, ws, e.ID)
}

// place asks for a host and notes where e goes, or what it waits for.
func (s *Service) place(ctx context.Context, tx pg.Tx, e *Environment) (scheduler.Decision, error) {
	waited, r := e.WaitsFor, e.request()
	if e.Host == "" {
		full, err := fullDocuments(ctx, tx, e.Bytes)
		if err != nil {
			return scheduler.Decision{}, err
		}
		r.Avoid = full
	}
	d, err := s.cfg.Scheduler.Place(ctx, tx, r)
	if err != nil {
		return d, fmt.Errorf("place environment: %w", err)
	}
	if !d.Placed() {
		e.Phase, e.Message, e.WaitsFor, e.Placed = protocol.PhasePending, "", d.Summary, false
		if d.Summary == waited {
			return d, nil
		}
		return d, tell(ctx, tx, e, nil, protocol.SeverityNormal, "Waiting", d.Summary)
	}
	e.Host, e.HostName, e.GPUs, e.Placed, e.WaitsFor = d.Host, d.HostName, d.GPUs, true, ""
	e.Phase, e.Message = protocol.PhasePending, "waits for host "+d.HostName+" to take it"
	if err := tell(ctx, tx, e, nil, protocol.SeverityNormal, "Scheduled", d.Summary); err != nil {
		return d, err
	}
	return d, s.touch(ctx, tx, e)
}

// touch makes e's host get a new document, and notes from which generation on
// the host knows.
func (s *Service) touch(ctx context.Context, tx pg.Tx, e *Environment) error {
	if e.Host == "" || e.HostState == hostGone {
		return nil
	}
	generation, err := dispatch.Touch(ctx, tx, e.Host)
	e.Generation = generation
	return err
}

// Start runs an environment that is stopped or has ended.
func (s *Service) Start(ctx context.Context, c auth.Caller, workspace, nameOrID string) (Environment, error) {
	return s.change(ctx, c, workspace, nameOrID, opStart)
}

// Stop ends an environment's container; its files and its host stay.
func (s *Service) Stop(ctx context.Context, c auth.Caller, workspace, nameOrID string) (Environment, error) {
	return s.change(ctx, c, workspace, nameOrID, opStop)
}

// Restart gives an environment a new container; its volumes stay.
func (s *Service) Restart(ctx context.Context, c auth.Caller, workspace, nameOrID string) (Environment, error) {
	return s.change(ctx, c, workspace, nameOrID, opRestart)
}

// Delete removes an environment with all its files. It stays in lists as
// deleting until its host says that it is gone.
func (s *Service) Delete(ctx context.Context, c auth.Caller, workspace, nameOrID string) error {
	_, err := s.change(ctx, c, workspace, nameOrID, opDelete)
	return err
}

func (s *Service) change(ctx context.Context, c auth.Caller, workspace, nameOrID string, op operation) (e Environment, err error) {
	ws, err := s.workspace(ctx, c, auth.EnvironmentWrite, workspace)
	if err != nil {
		return e, err
	}
	err = pg.InTx(ctx, s.pool, func(tx pg.Tx) error {
		if e, err = lock(ctx, tx, ws, nameOrID); err != nil {
			return none(err, nameOrID)
		}
		before := e.Phase
		what, err := e.allow(op)
		if err != nil || what == nothing {
			return err
		}
		gone, err := s.apply(ctx, tx, c, &e, what)
		if err != nil {
			return err
		}
		if !gone {
			if err := save(ctx, tx, &e); err != nil {
				return err
			}
		}
		if err := announce(ctx, tx, &e, before); err != nil {
			return err
		}
		return audit.Record(ctx, tx, c, auth.EnvironmentWrite, e.ID, ws, map[string]any{"op": op, "name": e.Name})
	})
	e.present()
	e.Image, e.Message = s.named(e.Image), s.named(e.Message)
	return e, err
}

// apply makes e as the effect says; gone means that its row is no more.
func (s *Service) apply(ctx context.Context, tx pg.Tx, c auth.Caller, e *Environment, what effect) (gone bool, err error) {
	switch what {
	case run:
		return false, s.run(ctx, tx, c, e)
	case halt:
		return false, s.halt(ctx, tx, c, e)
	}
	e.Want, e.Phase, e.Message = wantDeleted, PhaseDeleting, ""
	if err := tell(ctx, tx, e, nil, protocol.SeverityNormal, "Deleting", "Deleted by "+c.Name+"."); err != nil {
		return false, err
	}
	if e.Host == "" || e.HostState == hostGone {
		return true, s.erase(ctx, tx, e)
	}
	if !e.Placed {
		if err := scheduler.Release(ctx, tx, e.ID); err != nil { // out of the queue
			return false, err
		}
	}
	return false, s.touch(ctx, tx, e)
}

func (s *Service) run(ctx context.Context, tx pg.Tx, c auth.Caller, e *Environment) error {
	word := "Started"
	if e.Want == wantRunning {
		word = "Restarted"
	}
	if err := tell(ctx, tx, e, nil, protocol.SeverityNormal, "Asked", word+" by "+c.Name+"."); err != nil {
		return err
	}
	if e.HostState == hostGone {
		if err := tell(ctx, tx, e, nil, protocol.SeverityWarning, "Moved", "Its host was retired: it begins anew on another one, with empty volumes."); err != nil {
			return err
		}
		if err := scheduler.Release(ctx, tx, e.ID); err != nil {
			return err
		}
		e.Host, e.HostName, e.HostState, e.Placed = "", "", "", false
	}
	e.Want, e.Revision, e.ExitCode, e.RetryAt, e.Restarts = wantRunning, e.Revision+1, nil, nil, 0
	if e.Placed {
		e.Phase, e.Message = protocol.PhasePending, "waits for host "+e.HostName+" to take it"
		return s.touch(ctx, tx, e)
	}
	_, err := s.place(ctx, tx, e)
	return err
}

func (s *Service) halt(ctx context.Context, tx pg.Tx, c auth.Caller, e *Environment) error {
	if err := tell(ctx, tx, e, nil, protocol.SeverityNormal, "Asked", "Stopped by "+c.Name+"."); err != nil {
		return err
	}
	e.Want, e.Message, e.RetryAt, e.WaitsFor = wantStopped, "", nil, ""
	if e.Placed && e.HostState != hostGone {
		e.Phase = protocol.PhaseStopping // what it has is given back when the host says that it has ended
		return s.touch(ctx, tx, e)
	}
	e.Phase = protocol.PhaseStopped
	return scheduler.Release(ctx, tx, e.ID)
}

// erase ends an environment that no host has.
func (s *Service) erase(ctx context.Context, tx pg.Tx, e *Environment) error {
	if err := scheduler.Release(ctx, tx, e.ID); err != nil {
		return err
	}
	if err := tell(ctx, tx, e, nil, protocol.SeverityNormal, "Deleted", "It is gone, with its files."); err != nil {
		return err
	}
	return erase(ctx, tx, e.ID)
}

// retry gives a waiting environment another try; the scheduler calls it.
func (s *Service) retry(ctx context.Context, id string) error {
	return pg.InTx(ctx, s.pool, func(tx pg.Tx) error {
		e, err := lock(ctx, tx, "", id)
		if pg.IsNone(err) || err == nil && (e.Want != wantRunning || e.Placed) {
			if e.Placed {
				return nil
			}
			return scheduler.Release(ctx, tx, id) // it waits no longer
		}
		if err != nil {
			return err
		}
		before := e.Phase
		if _, err := s.place(ctx, tx, &e); err != nil {
			return err
		}
		if err := save(ctx, tx, &e); err != nil {
			return err
		}
		return announce(ctx, tx, &e, before)
	})
}

// workspace returns the id of a workspace in which c may do action.
func (s *Service) workspace(ctx context.Context, c auth.Caller, action auth.Action, nameOrID string) (string, error) {
	if c.Kind == auth.KindNobody { // who may not learn whether there is such a workspace
		return "", c.Require(action, "")
	}
	ws, err := s.cfg.Resolve(ctx, nameOrID)
	if err != nil {
		return "", err
	}
	return ws, c.Require(action, ws)
}

func none(err error, name string) error {
	if pg.IsNone(err) {
		return errs.Ef(errs.NotFound, "There is no environment %.80s here; see: remotegpu env ls", strings.ToValidUTF8(name, "?"))
	}
	return err
}
