package workspace

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/remotegpu/remotegpu/control/account"
	"github.com/remotegpu/remotegpu/control/audit"
	"github.com/remotegpu/remotegpu/control/auth"
	"github.com/remotegpu/remotegpu/control/errs"
	"github.com/remotegpu/remotegpu/control/pg"
	"github.com/remotegpu/remotegpu/protocol"
)

// Service does everything with workspaces.
type Service struct {
	pool  *pg.Pool
	known sync.Map // ids, by id and name: a workspace keeps both for life
}

// New returns the service on pool.
func New(pool *pg.Pool) *Service { return &Service{pool: pool} }

// Resolve returns the id of a workspace given by name or id.
func (s *Service) Resolve(ctx context.Context, nameOrID string) (string, error) {
	if id, known := s.known.Load(nameOrID); known {
		return id.(string), nil
	}
	w, err := find(ctx, s.pool, nameOrID)
	if err == nil {
		s.known.Store(nameOrID, w.ID)
	}
	return w.ID, none(err)
}

// Find returns a workspace given by name or id.
func (s *Service) Find(ctx context.Context, c auth.Caller, nameOrID string) (Workspace, error) {
	w, err := find(ctx, s.pool, nameOrID)
	if err != nil {
		return Workspace{}, none(err)
	}
	return w, c.Require(auth.WorkspaceRead, w.ID)
}

// Create makes a workspace that owner, an e-mail address or id, owns.
func (s *Service) Create(ctx context.Context, c auth.Caller, name, owner string) (Workspace, error) {
	var w Workspace
	err := pg.InTx(ctx, s.pool, func(tx pg.Tx) (err error) {
		w, err = Add(ctx, tx, c, name, owner)
		return err
	})
	if pg.IsUnique(err, "workspaces_name_key") {
		return Workspace{}, errs.Ef(errs.Conflict, "There is a workspace %s already; choose another name.", name)
	}
	return w, err
}

// Add is Create in a transaction that does more.
func Add(ctx context.Context, tx pg.Tx, c auth.Caller, name, owner string) (Workspace, error) {
	if err := c.Require(auth.WorkspaceCreate, ""); err != nil {
		return Workspace{}, err
	}
	if err := validName(name); err != nil {
		return Workspace{}, err
	}
	user, err := userByEmail(ctx, tx, owner)
	if err != nil {
		return Workspace{}, noUser(err, owner)
	}
	w := Workspace{ID: protocol.NewID(protocol.PrefixWorkspace), Name: name, CreatedAt: time.Now()}
	if err := insert(ctx, tx, w); err != nil {
		return w, err
	}
	if err := setMember(ctx, tx, w.ID, user, auth.Owner); err != nil {
		return w, err
	}
	return w, audit.Record(ctx, tx, c, auth.WorkspaceCreate, w.ID, w.ID, map[string]any{"name": name, "owner": user})
}

// List returns the workspaces that the caller is a member of; to a platform
// admin, all.
func (s *Service) List(ctx context.Context, c auth.Caller) ([]Workspace, error) {
	if err := c.Require(auth.WorkspaceList, ""); err != nil {
		return nil, err
	}
	user := c.ID
	if c.Admin {
		user = ""
	}
	return list(ctx, s.pool, user)
}

// Members lists who is in a workspace.
func (s *Service) Members(ctx context.Context, c auth.Caller, workspace string) ([]Membership, error) {
	w, err := s.Find(ctx, c, workspace)
	if err != nil {
		return nil, err
	}
	return members(ctx, s.pool, w.ID)
}

// SetMember gives user, an e-mail address or id, a role. Only an owner makes
// or unmakes an owner.
func (s *Service) SetMember(ctx context.Context, c auth.Caller, workspace, user string, role auth.Role) error {
	if !role.Valid() {
		return errs.Ef(errs.Invalid, "%.20q is not a role; use owner, admin, member or viewer.", role)
	}
	return s.change(ctx, c, workspace, user, role, func(tx pg.Tx, ws, id string) error {
		return setMember(ctx, tx, ws, id, role)
	})
}

// RemoveMember takes user out of a workspace.
func (s *Service) RemoveMember(ctx context.Context, c auth.Caller, workspace, user string) error {
	return s.change(ctx, c, workspace, user, "", func(tx pg.Tx, ws, id string) error {
		there, err := removeMember(ctx, tx, ws, id)
		if err == nil && !there {
			err = errs.Ef(errs.NotFound, "%.80s is not a member of this workspace.", user)
		}
		return err
	})
}

// change runs apply where the caller may change members, and undoes it when no
// owner would be left.
func (s *Service) change(ctx context.Context, c auth.Caller, workspace, user string, role auth.Role, apply func(tx pg.Tx, ws, user string) error) error {
	w, err := s.Find(ctx, c, workspace)
	if err != nil {
		return err
	}
	if err := c.Require(auth.MemberWrite, w.ID); err != nil {
		return err
	}
	return pg.InTx(ctx, s.pool, func(tx pg.Tx) error {
		if err := lock(ctx, tx, w.ID); err != nil {
			return err
		}
		id, err := userByEmail(ctx, tx, user)
		if err != nil {
			return noUser(err, user)
		}
		before, err := roleOf(ctx, tx, w.ID, id)
		if err != nil {
			return err
		}
		if role == auth.Owner || before == auth.Owner {
			if err := c.Require(auth.WorkspaceWrite, w.ID); err != nil {
				return err
			}
		}
		if err := apply(tx, w.ID, id); err != nil {
			return err
		}
		if n, err := owners(ctx, tx, w.ID); err != nil {
			return fmt.Errorf("count owners: %w", err)
		} else if n == 0 {
			return errs.E(errs.Conflict, "A workspace needs an owner; make somebody else owner first.")
		}
		if err := audit.Record(ctx, tx, c, auth.MemberWrite, id, w.ID, map[string]any{"role": role, "before": before}); err != nil {
			return err
		}
		return pg.Notify(ctx, tx, account.Revoked, id)
	})
}

func none(err error) error {
	if pg.IsNone(err) {
		return errs.E(errs.NotFound, "There is no such workspace, or you are not a member of it.")
	}
	return err
}

func noUser(err error, user string) error {
	if pg.IsNone(err) {
		return errs.Ef(errs.NotFound, "There is no user %.80s; a platform admin can make one.", user)
	}
	return err
}
