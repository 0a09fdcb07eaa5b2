// Package workspace groups people and what they own.
//
// It owns workspaces and their members with roles; what a role may do stands
// in package auth. Its invariant: a workspace always has an owner.
package workspace

import (
	"regexp"
	"time"

	"github.com/remotegpu/remotegpu/control/auth"
	"github.com/remotegpu/remotegpu/control/errs"
)

// Workspace owns environments, images and data.
type Workspace struct {
	ID        string    `db:"id" json:"id"`
	Name      string    `db:"name" json:"name" doc:"Unique; part of image names and of ENV.WORKSPACE"`
	CreatedAt time.Time `db:"created_at" json:"created_at"`
}

// Membership is a user's place in a workspace.
type Membership struct {
	User    string    `db:"user_id" json:"user"`
	Email   string    `db:"email" json:"email"`
	Role    auth.Role `db:"role" json:"role" enum:"owner,admin,member,viewer"`
	AddedAt time.Time `db:"added_at" json:"added_at"`
}

// Library is the workspace whose images everybody may pull: the catalogue.
const Library = "library"

var nameRule = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?$`)

func validName(name string) error {
	if !nameRule.MatchString(name) {
		return errs.Ef(errs.Invalid, "%.60q is no name for a workspace: use 1 to 40 small letters, digits and hyphens.", name)
	}
	return nil
}
