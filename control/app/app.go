// Package app is how people reach what listens in an environment.
//
// It owns forwards (any address, for programs), the reverse proxy for browsers,
// who may see which port there, and Jupyter; the way into the container is
// access's. Its invariant: an app gets nothing that a person proves themselves
// with, neither our tokens nor our cookies, and a cookie opens one app alone.
//
//	browser ── app's host or path ──► cookie? ──► allowed? ──► proxy ═ access.Dial ═► container
//	   │            │ no
//	   │◄─ /apps/login of the server ◄─┘   login, then a ticket, then the cookie
package app

import (
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/remotegpu/remotegpu/control/auth"
	"github.com/remotegpu/remotegpu/control/errs"
	"github.com/remotegpu/remotegpu/protocol"
)

// App is something in an environment that speaks HTTP.
type App struct {
	Environment     string    `db:"environment_id" json:"environment"`
	EnvironmentName string    `db:"environment_name" json:"environment_name"`
	Workspace       string    `db:"workspace_id" json:"workspace"`
	WorkspaceName   string    `db:"workspace_name" json:"workspace_name"`
	Name            string    `db:"name" json:"name" doc:"A word, or the port"`
	Port            int       `db:"port" json:"port,omitempty" doc:"Absent: it listens on a socket"`
	Socket          string    `db:"socket" json:"socket,omitempty"`
	BasePath        bool      `db:"base_path" json:"base_path" doc:"It is told the path that it is reached under, and makes its links with it"`
	Visibility      string    `db:"visibility" json:"visibility" enum:"private,workspace,users,public"`
	UserIDs         []string  `db:"users" json:"-"`
	Users           []string  `db:"emails" json:"users" doc:"Who may use it, with visibility users, beside its owner"`
	Owner           string    `db:"owner_id" json:"owner,omitempty" doc:"Who exposed it"`
	CreatedAt       time.Time `db:"created_at" json:"created_at"`
	URL             string    `db:"-" json:"url,omitempty" doc:"Absent: this server has no place for apps"`
}

// Who may use an app.
const (
	Private   = "private"   // who exposed it, while they may have a shell there
	Workspace = "workspace" // whoever may have a shell there; the default of every port
	Users     = "users"     // its owner and those it lists, members of the workspace or not
	Public    = "public"    // anybody, without a login
)

// allows reports whether c may use a.
func (a *App) allows(c auth.Caller) bool {
	switch {
	case a.Visibility == Public:
		return true
	case c.Kind != auth.KindUser:
		return false
	case a.Visibility == Users && slices.Contains(a.UserIDs, c.ID):
		return true
	case c.Require(auth.EnvironmentAccess, a.Workspace) != nil:
		return false
	}
	return a.Visibility == Workspace || a.Owner == c.ID
}

// targets are where a listens, in the order in which they are tried: programs
// that listen on localhost may mean either of its addresses.
func (a *App) targets() []protocol.Target {
	if a.Socket != "" {
		return []protocol.Target{{Network: protocol.NetworkUnix, Address: a.Socket}}
	}
	port := strconv.Itoa(a.Port)
	return []protocol.Target{
		{Network: protocol.NetworkTCP, Address: "127.0.0.1:" + port},
		{Network: protocol.NetworkTCP, Address: "[::1]:" + port},
	}
}

// base is the path under which a is reached where apps share a host.
func (a *App) base() string {
	return "/apps/" + a.WorkspaceName + "/" + a.EnvironmentName + "/" + a.Name + "/"
}

var (
	nameRule = regexp.MustCompile(`^[a-z][a-z0-9]{0,19}$`)
	portRule = regexp.MustCompile(`^[1-9][0-9]{0,4}$`)
)

// portOf returns the port that a name is, or 0 when it is a word.
func portOf(name string) (port int, ok bool) {
	if nameRule.MatchString(name) {
		return 0, true
	}
	n, err := strconv.Atoi(name)
	return n, portRule.MatchString(name) && err == nil && n < 1<<16
}

// Spec is what a person says of an app. Zero fields take the default.
type Spec struct {
	Port       int      `json:"port,omitempty" minimum:"0" maximum:"65535" doc:"Default: the name, when that is a port"`
	Visibility string   `json:"visibility,omitempty" enum:"private,workspace,users,public" doc:"Default: workspace"`
	Users      []string `json:"users,omitempty" maxItems:"200" doc:"E-mail addresses, with visibility users"`
	BasePath   bool     `json:"base_path,omitempty" doc:"The app is told the path that it is reached under, and makes its links with it"`
}

// app makes the app called name of a spec.
func (s Spec) app(name string) (App, error) {
	port, ok := portOf(name)
	switch {
	case !ok:
		return App{}, errs.Ef(errs.Invalid, "%.40q is no name for an app: use its port, or a word of at most 20 small letters and digits.", name)
	case port == 0 && s.Port == 0:
		return App{}, errs.Ef(errs.Invalid, "Say which port %s is.", name)
	case port != 0 && s.Port != 0 && port != s.Port:
		return App{}, errs.Ef(errs.Invalid, "An app called %s is port %s; choose a word for port %d.", name, name, s.Port)
	case name == jupyterName:
		return App{}, errs.E(errs.Invalid, "The name jupyter is for what remotegpu jupyter starts; choose another.")
	}
	a := App{Name: name, Port: max(port, s.Port), BasePath: s.BasePath}
	return a, s.share(&a)
}

// share sets who may use a.
func (s Spec) share(a *App) error {
	a.Visibility = s.Visibility
	if a.Visibility == "" {
		a.Visibility = Workspace
	}
	switch {
	case !slices.Contains([]string{Private, Workspace, Users, Public}, a.Visibility):
		return errs.Ef(errs.Invalid, "%.20q is nobody; choose private, workspace, users or public.", s.Visibility)
	case a.Visibility == Users && len(s.Users) == 0:
		return errs.E(errs.Invalid, "Say which users, by e-mail address.")
	case a.Visibility != Users && len(s.Users) > 0:
		return errs.E(errs.Invalid, "Users are listed with visibility users alone.")
	case a.Visibility == Public && a.Name == jupyterName:
		return errs.E(errs.Invalid, "Whoever opens Jupyter can run programs, so it cannot be public; list users instead.")
	}
	for i, u := range s.Users {
		s.Users[i] = strings.ToLower(u)
	}
	return nil
}
