package server

import (
	"net/http"
	"strings"
	"testing"

	"github.com/remotegpu/remotegpu/control/auth"
	"github.com/remotegpu/remotegpu/protocol"
)

// least is who may use a route: everybody from there on, written down here and
// nowhere else, so that a slip in auth.Rules or in an operation shows.
type least int

const (
	anybody   least = iota
	anyUser         // whoever has logged in
	viewer          // of the workspace in the path, or a platform admin
	member          //
	admin           //
	platform        // platform admins
	agentOnly       // a host, for itself
)

// line is one route: which action it claims, who may use it, and a request
// that is in order but for who sends it.
type line struct {
	method, path string
	action       auth.Action
	least        least
	body         string
	absent       bool // what the request names is not there: 404 to those who may
	form         bool // asked by the login page alone
	basic        bool // asks for user name and password, and denies what is not there
}

const (
	ws  = "/api/v1/workspaces/{workspace}"
	env = ws + "/environments"
	hst = "/api/v1/hosts/{host}"
)

var table = []line{
	{method: "GET", path: "/healthz", action: auth.HealthRead, least: anybody},
	{method: "GET", path: "/readyz", action: auth.HealthRead, least: anybody},
	{method: "GET", path: "/install.sh", action: auth.HealthRead, least: anybody},
	{method: "GET", path: "/ca.pem", action: auth.HealthRead, least: anybody},
	{method: "GET", path: "/dl/{file...}", action: auth.HealthRead, least: anybody, absent: true},
	{method: "GET", path: "/mqtt", action: auth.HealthRead, least: anybody},
	{method: "", path: "/", action: auth.HealthRead, least: anybody},

	{method: "POST", path: "/api/v1/login", action: auth.SessionCreate, least: anybody, body: `{"email":"owner@example.org","password":"correct horse owner"}`},
	{method: "DELETE", path: "/api/v1/login", action: auth.SessionDelete, least: anyUser},
	{method: "GET", path: "/apps/login", action: auth.HealthRead, least: anybody},
	{method: "POST", path: "/apps/login", action: auth.SessionCreate, least: anybody, body: `{"email":"owner@example.org","password":"correct horse owner","app":"none/none/80"}`, form: true, absent: true},
	{method: "POST", path: "/api/v1/apps/open", action: auth.AppOpen, least: anyUser, body: `{"app":"none/none/80"}`, absent: true},
	{method: "GET", path: "/api/v1/account", action: auth.AccountRead, least: anyUser},
	{method: "PUT", path: "/api/v1/account/password", action: auth.AccountWrite, least: anyUser, body: `{"old":"x","new":"x"}`},
	{method: "GET", path: "/api/v1/account/tokens", action: auth.AccountRead, least: anyUser},
	{method: "POST", path: "/api/v1/account/tokens", action: auth.AccountWrite, least: anyUser, body: `{"name":"ci"}`},
	{method: "DELETE", path: "/api/v1/account/tokens/{id}", action: auth.AccountWrite, least: anyUser, absent: true},
	{method: "GET", path: "/api/v1/account/keys", action: auth.AccountRead, least: anyUser},
	{method: "POST", path: "/api/v1/account/keys", action: auth.AccountWrite, least: anyUser, body: `{"public_key":"x"}`},
	{method: "DELETE", path: "/api/v1/account/keys/{id}", action: auth.AccountWrite, least: anyUser, absent: true},
	{method: "GET", path: "/api/v1/users", action: auth.UserManage, least: platform},
	{method: "POST", path: "/api/v1/users", action: auth.UserManage, least: platform, body: `{"email":"new@example.org","password":"long enough word"}`},
	{method: "PUT", path: "/api/v1/users/{user}/disabled", action: auth.UserManage, least: platform, body: `{"disabled":false}`},
	{method: "GET", path: "/api/v1/audit", action: auth.AuditRead, least: platform},
	{method: "GET", path: "/api/v1/audit/verify", action: auth.AuditVerify, least: platform},

	{method: "GET", path: "/api/v1/workspaces", action: auth.WorkspaceList, least: anyUser},
	{method: "POST", path: "/api/v1/workspaces", action: auth.WorkspaceCreate, least: platform, body: `{"name":"new"}`},
	{method: "GET", path: ws, action: auth.WorkspaceRead, least: viewer},
	{method: "GET", path: ws + "/members", action: auth.WorkspaceRead, least: viewer},
	{method: "PUT", path: ws + "/members/{user}", action: auth.MemberWrite, least: admin, body: `{"role":"viewer"}`},
	{method: "DELETE", path: ws + "/members/{user}", action: auth.MemberWrite, least: admin, absent: true},

	{method: "GET", path: ws + "/recording", action: auth.WorkspaceRead, least: viewer},
	{method: "PUT", path: ws + "/recording", action: auth.RecordingManage, least: admin, body: `{"mode":"off","keep_days":30}`},
	{method: "GET", path: ws + "/recordings", action: auth.RecordingRead, least: admin},
	{method: "GET", path: ws + "/recordings/{id}", action: auth.RecordingRead, least: admin, absent: true},

	{method: "GET", path: env, action: auth.EnvironmentRead, least: viewer},
	{method: "POST", path: env, action: auth.EnvironmentWrite, least: member, body: `{"name":"box"}`},
	{method: "GET", path: env + "/{environment}", action: auth.EnvironmentRead, least: viewer},
	{method: "DELETE", path: env + "/{environment}", action: auth.EnvironmentWrite, least: member, absent: true},
	{method: "POST", path: env + "/{environment}/start", action: auth.EnvironmentWrite, least: member},
	{method: "POST", path: env + "/{environment}/stop", action: auth.EnvironmentWrite, least: member},
	{method: "POST", path: env + "/{environment}/restart", action: auth.EnvironmentWrite, least: member},
	{method: "GET", path: env + "/{environment}/events", action: auth.EnvironmentRead, least: viewer},
	{method: "GET", path: env + "/{environment}/placements", action: auth.PlacementRead, least: viewer},
	{method: "POST", path: env + "/{environment}/jupyter", action: auth.EnvironmentAccess, least: member},
	{method: "GET", path: ws + "/apps", action: auth.AppRead, least: viewer},
	{method: "PUT", path: env + "/{environment}/apps/{app}", action: auth.AppWrite, least: member, body: `{"visibility":"private"}`},
	{method: "DELETE", path: env + "/{environment}/apps/{app}", action: auth.AppWrite, least: member, absent: true},
	{method: "GET", path: env + "/{environment}/dial", action: auth.EnvironmentAccess, least: member},
	{method: "GET", path: env + "/{environment}/terminal", action: auth.EnvironmentAccess, least: member},
	{method: "POST", path: env + "/{environment}/terminal/ticket", action: auth.EnvironmentAccess, least: member, body: `{"session":"ses_00000000000000000000"}`},
	{method: "GET", path: env + "/{environment}/sessions", action: auth.EnvironmentAccess, least: member},
	{method: "GET", path: env + "/{environment}/logs", action: auth.EnvironmentRead, least: viewer},

	{method: "POST", path: "/api/v1/agent/enroll", action: auth.HostEnroll, least: anybody, body: `{"token":"x","public_key":"","proof":"","agent":"1","inventory":{}}`},
	{method: "GET", path: "/api/v1/hosts", action: auth.HostList, least: platform},
	{method: "POST", path: "/api/v1/agent/certificate", action: auth.HostService, least: agentOnly},
	{method: "GET", path: "/api/v1/agent/desired/{generation}", action: auth.HostService, least: agentOnly, absent: true},
	{method: "GET", path: hst, action: auth.HostList, least: platform},
	{method: "PATCH", path: hst, action: auth.HostManage, least: platform, body: `{"tags":["a"]}`},
	{method: "PATCH", path: hst + "/gpus/{gpu}", action: auth.HostManage, least: platform, body: `{"maintenance":true}`, absent: true},
	{method: "GET", path: hst + "/events", action: auth.HostList, least: platform},
	{method: "POST", path: hst + "/approve", action: auth.HostManage, least: platform},
	{method: "POST", path: hst + "/cordon", action: auth.HostManage, least: platform},
	{method: "POST", path: hst + "/uncordon", action: auth.HostManage, least: platform},
	{method: "POST", path: hst + "/drain", action: auth.HostManage, least: platform},
	{method: "POST", path: hst + "/maintenance", action: auth.HostManage, least: platform},
	{method: "POST", path: hst + "/activate", action: auth.HostManage, least: platform},
	{method: "POST", path: hst + "/retire", action: auth.HostManage, least: platform},
	{method: "GET", path: "/api/v1/join-tokens", action: auth.HostManage, least: platform},
	{method: "POST", path: "/api/v1/join-tokens", action: auth.HostManage, least: platform, body: `{}`},
	{method: "DELETE", path: "/api/v1/join-tokens/{id}", action: auth.HostManage, least: platform, absent: true},

	{method: "GET", path: "/api/v1/scheduler", action: auth.SchedulerManage, least: platform},
	{method: "PUT", path: "/api/v1/scheduler", action: auth.SchedulerManage, least: platform, body: `{"strategy":"best_fit"}`},
	{method: "GET", path: "/api/v1/scheduler/placements", action: auth.SchedulerManage, least: platform},

	{method: "GET", path: "/api/v1/ssh", action: auth.AccountRead, least: anyUser},
	{method: "GET", path: "/api/v1/ssh/connect", action: auth.AccountRead, least: anyUser},
	{method: "POST", path: env + "/{environment}/rdp", action: auth.EnvironmentAccess, least: member, body: `{}`},
	{method: "GET", path: env + "/{environment}/rdp", action: auth.EnvironmentAccess, least: member},
	{method: "POST", path: hst + "/rdp", action: auth.HostAccess, least: platform, body: `{}`},
	{method: "GET", path: hst + "/rdp", action: auth.HostAccess, least: platform},
	{method: "GET", path: "/api/v1/rdp", action: auth.DesktopConnect, least: anybody},
	{method: "GET", path: "/tunnel", action: auth.HostService, least: agentOnly},
	{method: "", path: "/v2/", action: auth.RegistryRead, least: viewer, absent: true, basic: true},
}

var everybody = []string{"nobody", "stranger", "viewer", "member", "admin", "owner", "platform", "host"}

// want is the status for who at l; 0: whatever comes after being let in.
func (l line) want(who string) int {
	hostPath := l.path == "/tunnel" || strings.HasPrefix(l.path, "/api/v1/agent/")
	switch {
	case who == "host" && l.basic:
		return 0 // to pull what box needs
	case who == "host" && !hostPath:
		return http.StatusUnauthorized // its key is for its own ways in alone
	case l.least == anybody:
		return 0
	case who == "nobody":
		return http.StatusUnauthorized
	case l.least == agentOnly && who != "host", l.least == platform && who != "platform":
		return http.StatusForbidden
	case l.least == viewer || l.least == member || l.least == admin:
		return l.inWorkspace(who)
	}
	return 0
}

func (l line) inWorkspace(who string) int {
	rank := map[string]least{"viewer": viewer, "member": member, "admin": admin, "owner": platform, "platform": platform}
	switch {
	case rank[who] >= l.least:
		return 0
	case who == "stranger" && !l.basic:
		return http.StatusNotFound
	}
	return http.StatusForbidden
}

// request fills the path's parameters in; workspace names the workspace.
func (l line) request(w *world, workspace string) (method, path string) {
	name, user := "box", w.ids["stranger"]
	if l.absent {
		name, user = "none", w.ids["platform"] // not a member
	}
	if strings.HasSuffix(l.path, "members/{user}") && !l.absent {
		user = w.ids["viewer"]
	}
	path = strings.NewReplacer("{workspace}", workspace, "{environment}", name, "{user}", user, "{host}", w.target,
		"{id}", "none", "{gpu}", "none", "{app}", "8888", "{file...}", "none", "{generation}", "7").Replace(l.path)
	if l.basic {
		path += workspace + "/image/tags/list"
	}
	if l.method == "" {
		return http.MethodGet, path
	}
	return l.method, path
}

// login puts who's credentials on a request.
func (w *world) login(l line, who string) func(*http.Request) {
	audience := protocol.AudienceAPI
	if l.path == protocol.TunnelPath {
		audience = protocol.AudienceTunnel
	}
	return func(r *http.Request) {
		if l.form {
			r.Header.Set("Origin", w.cfg.URL)
		}
		switch {
		case who == "nobody":
		case who == "host" && l.basic:
			r.SetBasicAuth(w.machine.id, w.machine.token(w.t, protocol.AudienceRegistry))
		case who == "host":
			r.Header.Set("Authorization", "Bearer "+w.machine.token(w.t, audience))
		case l.basic:
			r.SetBasicAuth("token", w.secrets[who])
		default:
			r.Header.Set("Authorization", "Bearer "+w.secrets[who])
		}
	}
}

func TestEveryRouteIsInTheTable(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	type key struct{ method, path string }
	known := map[key]line{}
	for _, l := range table {
		known[key{l.method, l.path}] = l
	}
	if len(known) != len(table) {
		t.Error("the table holds a route twice")
	}
	for _, r := range w.api.Routes() {
		l, ok := known[key{r.Method, r.Path}]
		switch {
		case !ok:
			t.Errorf("route %s %s (%s) is not in the table: add a line that says who may use it", r.Method, r.Path, r.Action)
		case l.action != r.Action:
			t.Errorf("route %s %s is for %s, the table says %s", r.Method, r.Path, r.Action, l.action)
		}
		delete(known, key{r.Method, r.Path})
	}
	for k := range known {
		t.Errorf("%s %s is in the table and no route", k.method, k.path)
	}
}

func TestWhoMayUseWhichRoute(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for _, l := range table {
		for _, who := range everybody {
			method, path := l.request(w, "lab")
			status, body := w.ask(method, path, l.body, w.login(l, who))
			want := l.want(who)
			switch {
			case want != 0 && status != want:
				t.Errorf("%s %s as %s: %d %s, want %d", method, path, who, status, body, want)
			case want == 0 && !l.letIn(status):
				t.Errorf("%s %s as %s: %d %s, want to be let in", method, path, who, status, body)
			case status >= 500 && status != http.StatusServiceUnavailable:
				t.Errorf("%s %s as %s: %d %s", method, path, who, status, body)
			}
		}
	}
}

// letIn reports whether a request with this answer got past the question of
// who sends it.
func (l line) letIn(status int) bool {
	return status != http.StatusUnauthorized && status != http.StatusForbidden && (status != http.StatusNotFound || l.absent)
}

// TestStrangersCannotTellWorkspacesApart: one that is not theirs and one that
// does not exist answer the same, byte for byte.
func TestStrangersCannotTellWorkspacesApart(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for _, l := range table {
		if !strings.Contains(l.path, "{workspace}") && !l.basic {
			continue
		}
		for _, who := range []string{"stranger", "nobody"} {
			method, there := l.request(w, "lab")
			_, notThere := l.request(w, "mars")
			status, body := w.ask(method, there, l.body, w.login(l, who))
			status2, body2 := w.ask(method, notThere, l.body, w.login(l, who))
			if status != status2 || strings.ReplaceAll(body, "lab", "mars") != body2 {
				t.Errorf("%s %s as %s: %d %s, but one that does not exist: %d %s", method, l.path, who, status, body, status2, body2)
			}
		}
	}
}

// TestZeroBytes: what PostgreSQL cannot keep is the caller's mistake, not ours.
func TestZeroBytes(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for _, l := range table {
		if l.least == anybody || l.least == agentOnly || l.basic {
			continue
		}
		method, path := l.request(w, "%00")
		for _, name := range []string{w.target, "box", "none", w.ids["stranger"]} {
			path = strings.ReplaceAll(path, "/"+name, "/%00")
		}
		body := strings.NewReplacer(`"box"`, `"\u0000"`, `"a"`, `"\u0000"`, `"new"`, `"\u0000"`, `"ci"`, `"\u0000"`).Replace(l.body)
		if status, answer := w.ask(method, path, body, w.login(l, "platform")); status == http.StatusInternalServerError {
			t.Errorf("%s %s: %s", method, path, answer)
		}
	}
}
