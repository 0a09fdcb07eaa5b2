package auth

// Action is something that somebody may or may not do: noun.verb.
type Action string

// Scope says what a rule looks at.
type Scope int

// Scopes of rules.
const (
	ScopePublic    Scope = iota // anybody, even nobody
	ScopeUser                   // any user, on what is their own
	ScopeWorkspace              // Rule.Role in the workspace, or a platform admin
	ScopePlatform               // platform admins
	ScopeHost                   // the agent of a host, on what is its own
)

// Rule is who may do an action.
type Rule struct {
	Scope Scope
	Role  Role // least role, with ScopeWorkspace
}

// Actions.
const (
	HealthRead    Action = "health.read"
	SessionCreate Action = "session.create"
	SessionDelete Action = "session.delete"
	AccountRead   Action = "account.read"
	AccountWrite  Action = "account.write" // one's own password, keys, tokens
	UserManage    Action = "user.manage"
	AuditRead     Action = "audit.read"
	AuditVerify   Action = "audit.verify"

	WorkspaceList   Action = "workspace.list"
	WorkspaceCreate Action = "workspace.create"
	WorkspaceRead   Action = "workspace.read"
	WorkspaceWrite  Action = "workspace.write"
	MemberWrite     Action = "member.write"

	HostEnroll  Action = "host.enroll"
	HostList    Action = "host.list"
	HostManage  Action = "host.manage"
	HostAccess  Action = "host.access"  // shell and desktop of the host itself
	HostService Action = "host.service" // what an agent asks of control over HTTPS

	EnvironmentRead   Action = "environment.read"
	EnvironmentWrite  Action = "environment.write"  // create, start, stop, restart, delete
	EnvironmentAccess Action = "environment.access" // shell in it
	DesktopConnect    Action = "desktop.connect"    // the single-use token decides
	AppOpen           Action = "app.open"           // what one is allowed to
	AppRead           Action = "app.read"           // which apps there are; who may use one is the app's own
	AppWrite          Action = "app.write"          // who may use which app
	RecordingRead     Action = "recording.read"     // what was on others' terminals
	RecordingManage   Action = "recording.manage"   // whether it is kept
	RegistryRead      Action = "registry.read"
	RegistryWrite     Action = "registry.write"
	PlacementRead     Action = "placement.read"
	SchedulerManage   Action = "scheduler.manage" // strategy, placements of the whole fleet
)

// Rules is the whole of who may do what.
var Rules = map[Action]Rule{
	HealthRead:    {Scope: ScopePublic},
	SessionCreate: {Scope: ScopePublic},
	SessionDelete: {Scope: ScopeUser},
	AccountRead:   {Scope: ScopeUser},
	AccountWrite:  {Scope: ScopeUser},
	UserManage:    {Scope: ScopePlatform},
	AuditRead:     {Scope: ScopePlatform},
	AuditVerify:   {Scope: ScopePlatform},

	WorkspaceList:   {Scope: ScopeUser},
	WorkspaceCreate: {Scope: ScopePlatform},
	WorkspaceRead:   {Scope: ScopeWorkspace, Role: Viewer},
	WorkspaceWrite:  {Scope: ScopeWorkspace, Role: Owner},
	MemberWrite:     {Scope: ScopeWorkspace, Role: Admin},

	HostEnroll:  {Scope: ScopePublic}, // the join token decides
	HostList:    {Scope: ScopePlatform},
	HostManage:  {Scope: ScopePlatform},
	HostAccess:  {Scope: ScopePlatform},
	HostService: {Scope: ScopeHost},

	EnvironmentRead:   {Scope: ScopeWorkspace, Role: Viewer},
	EnvironmentWrite:  {Scope: ScopeWorkspace, Role: Member},
	EnvironmentAccess: {Scope: ScopeWorkspace, Role: Member},
	DesktopConnect:    {Scope: ScopePublic},
	AppOpen:           {Scope: ScopeUser},
	AppRead:           {Scope: ScopeWorkspace, Role: Viewer},
	AppWrite:          {Scope: ScopeWorkspace, Role: Member},
	RecordingRead:     {Scope: ScopeWorkspace, Role: Admin},
	RecordingManage:   {Scope: ScopeWorkspace, Role: Admin},
	RegistryRead:      {Scope: ScopeWorkspace, Role: Viewer},
	RegistryWrite:     {Scope: ScopeWorkspace, Role: Member},
	PlacementRead:     {Scope: ScopeWorkspace, Role: Viewer},
	SchedulerManage:   {Scope: ScopePlatform},
}
