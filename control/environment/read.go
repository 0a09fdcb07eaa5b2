package environment

import (
	"context"
	"io"
	"strings"
	"time"

	"github.com/remotegpu/remotegpu/control/auth"
	"github.com/remotegpu/remotegpu/control/errs"
	"github.com/remotegpu/remotegpu/control/pg"
	"github.com/remotegpu/remotegpu/control/scheduler"
	"github.com/remotegpu/remotegpu/protocol"
)

// Get returns an environment by name or id.
func (s *Service) Get(ctx context.Context, c auth.Caller, workspace, nameOrID string) (Environment, error) {
	ws, err := s.workspace(ctx, c, auth.EnvironmentRead, workspace)
	if err != nil {
		return Environment{}, err
	}
	e, err := byName(ctx, s.pool, ws, nameOrID)
	if err != nil {
		return e, none(err, nameOrID)
	}
	return s.shown(c, e), nil
}

// await is Get, but while the environment's phase is in.While it waits for a
// change of it, up to in.Wait.
func (s *Service) await(ctx context.Context, c auth.Caller, in *showInput) (Environment, error) {
	e, err := s.Get(ctx, c, in.Workspace, in.Environment)
	if err != nil || in.Wait <= 0 || e.Phase != in.While {
		return e, err
	}
	changed, stop := s.watch.on(e.ID)
	defer stop()
	if e, err = s.Get(ctx, c, in.Workspace, in.Environment); err != nil || e.Phase != in.While { // before it was watched
		return e, err
	}
	select {
	case <-changed:
	case <-time.After(min(time.Duration(in.Wait)*time.Second, MaxWait)):
	case <-ctx.Done():
		return e, ctx.Err()
	}
	return s.Get(ctx, c, in.Workspace, in.Environment)
}

// List returns the environments of a workspace, by name.
func (s *Service) List(ctx context.Context, c auth.Caller, workspace string) ([]Environment, error) {
	ws, err := s.workspace(ctx, c, auth.EnvironmentRead, workspace)
	if err != nil {
		return nil, err
	}
	all, err := read(ctx, s.pool, "where e.workspace_id = $1 order by e.name", ws)
	for i := range all {
		all[i] = s.shown(c, all[i])
	}
	return all, err
}

// shown is e as c may see it: variables often hold secrets, so they are for
// those who could change them.
func (s *Service) shown(c auth.Caller, e Environment) Environment {
	e.present()
	e.Image, e.Message = s.named(e.Image), s.named(e.Message)
	if c.Require(auth.EnvironmentWrite, e.Workspace) != nil {
		e.Env = nil
	}
	return e
}

// named is text with the built-in registry called as people call it.
func (s *Service) named(text string) string {
	if s.cfg.Registry == "" {
		return text
	}
	return strings.ReplaceAll(text, controlRegistry, s.cfg.Registry+"/")
}

// Find returns the environment that a person means by NAME, NAME.WORKSPACE or
// an id, among those that c may read.
func (s *Service) Find(ctx context.Context, c auth.Caller, name string) (Environment, error) {
	short, ws, qualified := strings.Cut(name, ".")
	all, err := read(ctx, s.pool, "join workspaces w on w.id = e.workspace_id where e.id = $1 or e.name = $2 and ($3 = '' or w.name = $3) order by w.name", name, short, ws)
	if err != nil {
		return Environment{}, err
	}
	var mine []Environment
	for _, e := range all {
		if c.Require(auth.EnvironmentRead, e.Workspace) == nil {
			mine = append(mine, e)
		}
	}
	if own := members(c, mine); len(mine) > 1 && len(own) > 0 { // an admin's own come first
		mine = own
	}
	switch {
	case len(mine) == 1:
		return s.shown(c, mine[0]), nil
	case len(mine) == 0 && !qualified:
		return Environment{}, errs.Ef(errs.NotFound, "There is no environment %.80s that you may use; see: remotegpu env ls", name)
	case len(mine) == 0:
		return Environment{}, errs.Ef(errs.NotFound, "There is no environment %.40s in a workspace %.40s that you may use; see: remotegpu env ls", short, ws)
	}
	return Environment{}, errs.Ef(errs.Conflict, "There are %d environments %s in your workspaces; say which one: %s.WORKSPACE", len(mine), short, short)
}

func members(c auth.Caller, all []Environment) (own []Environment) {
	for _, e := range all {
		if _, member := c.Roles[e.Workspace]; member {
			own = append(own, e)
		}
	}
	return own
}

// MaxWait is how long a request waits at most.
const MaxWait = 30 * time.Second

// Events returns what happened to an environment after the event with id
// after, oldest first. When there is nothing it waits for something, up to
// wait.
func (s *Service) Events(ctx context.Context, c auth.Caller, workspace, nameOrID string, after int64, wait time.Duration) ([]Event, error) {
	e, err := s.Get(ctx, c, workspace, nameOrID)
	if err != nil {
		return nil, err
	}
	deadline := time.NewTimer(min(wait, MaxWait))
	defer deadline.Stop()
	for {
		changed, stop := s.watch.on(e.ID) // before looking, so that nothing falls between
		all, err := events(ctx, s.pool, e.ID, after)
		if err != nil || len(all) > 0 || wait <= 0 {
			stop()
			for i := range all {
				all[i].Message = s.named(all[i].Message)
			}
			return all, err
		}
		select {
		case <-changed:
		case <-deadline.C:
			wait = 0
		case <-ctx.Done():
			stop()
			return nil, ctx.Err()
		}
		stop()
	}
}

// Placements returns how the scheduler decided about an environment, newest
// first.
func (s *Service) Placements(ctx context.Context, c auth.Caller, workspace, nameOrID string) ([]scheduler.Placement, error) {
	ws, err := s.workspace(ctx, c, auth.PlacementRead, workspace)
	if err != nil {
		return nil, err
	}
	e, err := byName(ctx, s.pool, ws, nameOrID)
	if err != nil {
		return nil, none(err, nameOrID)
	}
	return scheduler.History(ctx, s.pool, e.ID, 0, 100)
}

// Logs returns what an environment's command has written: its last tail lines,
// and with follow what comes.
func (s *Service) Logs(ctx context.Context, c auth.Caller, workspace, nameOrID string, tail int, follow bool) (io.ReadCloser, error) {
	e, err := s.Get(ctx, c, workspace, nameOrID)
	if err != nil {
		return nil, err
	}
	switch {
	case s.cfg.Logs == nil:
		return nil, errs.E(errs.Unavailable, "This server cannot read logs of hosts yet; open a shell instead: remotegpu ssh "+e.Name)
	case e.Host == "":
		return nil, errs.Ef(errs.Conflict, "Environment %s has not run yet: %s", e.Name, e.Message)
	case e.HostState == hostGone:
		return nil, errs.Ef(errs.Conflict, "The logs of environment %s went with its host, which was retired.", e.Name)
	}
	return s.cfg.Logs(ctx, e.Host, e.ID, tail, follow)
}

// Workloads compiles what hosts shall have, by host and sorted by id.
func (s *Service) Workloads(ctx context.Context, db pg.DB, hosts []string) (map[string][]protocol.Workload, error) {
	all, err := read(ctx, db, `where e.host_id = any($1) and e.want <> 'deleted' order by e.id collate "C"`, hosts)
	if err != nil {
		return nil, err
	}
	lists := make(map[string][]protocol.Workload, len(hosts))
	for i := range all {
		host := all[i].Host
		lists[host] = append(lists[host], all[i].workload())
	}
	return lists, nil
}
