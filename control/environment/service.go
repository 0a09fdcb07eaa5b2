package environment

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"

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
	pool    *pg.Pool
	cfg     Config
	log     *slog.Logger
	watch   watch
	names   sync.Map // of workspaces, by id: they keep them for life
	creates *pg.Group[*creation]
	crowded atomic.Int64 // when a host's document was last seen to be full; Unix time in seconds
}

// New returns the service; without a scheduler in cfg it makes its own.
func New(pool *pg.Pool, cfg Config, log *slog.Logger) *Service {
	if cfg.Scheduler == nil {
		cfg.Scheduler = scheduler.New(pool, log)
	}
	s := &Service{pool: pool, cfg: cfg, log: log}
	s.creates = pg.NewGroup(scheduler.MaxTogether, s.createAll)
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
	name, err := s.workspaceName(ctx, ws)
	if err != nil {
		return Environment{}, fmt.Errorf("read workspace: %w", err)
	}
	if err := spec.check(name, s.cfg.Registry); err != nil {
		return Environment{}, err
	}
	if spec.Priority != 0 && c.Kind == auth.KindUser && !c.Admin && !c.Roles[ws].AtLeast(auth.Admin) {
		return Environment{}, errs.E(errs.Denied, "Only an admin of the workspace may give a priority; leave it out, or ask one.")
	}
	made := &creation{caller: c, asked: spec.environment(protocol.NewID(protocol.PrefixEnvironment), ws, c)}
	if made.asked.Bytes, err = made.asked.documentBytes(); err != nil {
		return Environment{}, fmt.Errorf("measure environment: %w", err)
	}
	if err = s.creates.Do(ctx, made); err == nil {
		err = made.refused
	}
	if errors.Is(err, errNameTaken) || pg.IsUnique(err, "environments_workspace_id_name_key") {
		return Environment{}, errs.Ef(errs.Conflict, "There is an environment %s in workspace %s already; choose another name, or delete that one.", made.asked.Name, name)
	} else if err != nil {
		return Environment{}, err
	}
	return s.shown(c, made.e), nil
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
		return true, erase(ctx, tx, e)
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
	return s.place(ctx, tx, []*Environment{e}, true)
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
func erase(ctx context.Context, tx pg.Tx, e *Environment) error {
	if err := scheduler.Release(ctx, tx, e.ID); err != nil {
		return err
	}
	if err := tell(ctx, tx, e, nil, protocol.SeverityNormal, "Deleted", "It is gone, with its files."); err != nil {
		return err
	}
	return drop(ctx, tx, e.ID)
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

func (s *Service) workspaceName(ctx context.Context, id string) (string, error) {
	if name, known := s.names.Load(id); known {
		return name.(string), nil
	}
	name, err := workspaceName(ctx, s.pool, id)
	if err == nil {
		s.names.Store(id, name)
	}
	return name, err
}

func none(err error, name string) error {
	if pg.IsNone(err) {
		return errs.Ef(errs.NotFound, "There is no environment %.80s here; see: remotegpu env ls", strings.ToValidUTF8(name, "?"))
	}
	return err
}
