// Package auth says who may do what.
//
// It owns the Caller, the roles and the one table of actions; where a caller
// comes from (a token, a session, an SSH key) is account's business. Its
// invariant: an action that is not in the table is allowed to nobody.
package auth

import (
	"context"

	"github.com/remotegpu/remotegpu/control/errs"
)

// Role is what a member may do in a workspace. Each includes those before it.
type Role string

// Roles, weakest first.
const (
	Viewer Role = "viewer"
	Member Role = "member"
	Admin  Role = "admin"
	Owner  Role = "owner"
)

var rank = map[Role]int{Viewer: 1, Member: 2, Admin: 3, Owner: 4}

// AtLeast reports whether r includes other.
func (r Role) AtLeast(other Role) bool { return rank[r] > 0 && rank[r] >= rank[other] }

// Valid reports whether r is a role.
func (r Role) Valid() bool { return rank[r] > 0 }

// Kinds of caller.
const (
	KindNobody = ""
	KindUser   = "user"
	KindHost   = "host"
	KindSystem = "system" // the control plane itself: loops, bootstrap
)

// Caller is who asks. Every operation of a module takes one and asks Require
// first. The zero Caller is nobody.
type Caller struct {
	Kind   string
	ID     string          // usr_… or host_…
	Name   string          // e-mail address or host name, for people
	Admin  bool            // platform admin
	Roles  map[string]Role // by workspace id
	Token  string          // tok_… when an API token was shown
	Key    string          // key_… when an SSH key was
	Login  []byte          // hash of the session's secret when that was shown
	Remote string          // address as seen
}

// System returns the caller for what the control plane does by itself.
func System(part string) Caller { return Caller{Kind: KindSystem, ID: part, Name: part, Admin: true} }

// Require returns nil when the caller may do action, in workspace for actions
// of a workspace. To a stranger a workspace does not exist.
func (c Caller) Require(action Action, workspace string) error {
	rule, known := Rules[action]
	switch {
	case !known:
		return errs.Ef(errs.Denied, "Nobody may do %s.", action)
	case c.Kind == KindSystem, rule.Scope == ScopePublic:
		return nil
	case c.Kind == KindNobody:
		return errs.E(errs.Unauthenticated, "Log in first: remotegpu login, or send an API token as bearer.")
	case rule.Scope == ScopeHost:
		if c.Kind != KindHost {
			return errs.E(errs.Denied, "Only the agent of a host may do this.")
		}
		return nil
	case c.Kind != KindUser:
		return errs.E(errs.Denied, "A host may not do this.")
	case rule.Scope == ScopeUser, c.Admin:
		return nil
	case rule.Scope == ScopePlatform:
		return errs.E(errs.Denied, "Only a platform admin may do this; ask one.")
	}
	role, member := c.Roles[workspace]
	switch {
	case !member:
		return errs.E(errs.NotFound, "There is no such workspace, or you are not a member of it.")
	case !role.AtLeast(rule.Role):
		return errs.Ef(errs.Denied, "Your role in this workspace is %s; this needs %s. Ask an owner of the workspace.", role, rule.Role)
	}
	return nil
}

// Workspaces returns the ids of the workspaces that the caller is a member of.
func (c Caller) Workspaces() []string {
	ids := make([]string, 0, len(c.Roles))
	for id := range c.Roles {
		ids = append(ids, id)
	}
	return ids
}

type callerKey struct{}

// With returns a context that carries c.
func With(ctx context.Context, c Caller) context.Context {
	return context.WithValue(ctx, callerKey{}, c)
}

// From returns the caller in ctx, or nobody.
func From(ctx context.Context) Caller {
	c, _ := ctx.Value(callerKey{}).(Caller)
	return c
}
