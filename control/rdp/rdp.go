// Package rdp is remote desktops: in the browser by RDCleanPath, and as plain
// bytes for the RDP clients of systems.
//
// It owns what a token for a desktop in a browser opens, a kind of ticket (see
// package ticket); X.224, TLS and what is changed inside of it stand in the agent.
// Its invariant: where a desktop leads to comes from the token alone, never
// from what a client calls its destination, and a token opens one desktop, once.
//
//	page                      here                          agent            server
//	  | POST …/rdp ------------>| token: user, target, policy  |                |
//	  | RDCleanPath (token) --->| redeem, open the stream ---->| X.224, TLS --->|
//	  |<-- RDCleanPath (chain) -|<-----------------------------|                |
//	  | bytes <---------------->|<---------------------------->|<--------- TLS >|
package rdp

import (
	"context"
	"log/slog"
	"time"

	"github.com/remotegpu/remotegpu/control/access"
	"github.com/remotegpu/remotegpu/control/auth"
	"github.com/remotegpu/remotegpu/control/environment"
	"github.com/remotegpu/remotegpu/control/errs"
	"github.com/remotegpu/remotegpu/control/host"
	"github.com/remotegpu/remotegpu/control/pg"
	"github.com/remotegpu/remotegpu/protocol"
)

// Config is what the module needs from others.
type Config struct {
	Environment func(ctx context.Context, c auth.Caller, workspace, nameOrID string) (environment.Environment, error)
	Host        func(ctx context.Context, c auth.Caller, nameOrID string) (host.Host, error)
	Now         func(ctx context.Context, c auth.Caller) (auth.Caller, error) // with the rights of now, if they have any
	Access      *access.Service
	Clipboard   string // most that anybody may copy, a clipboard policy; empty: both ways
}

// Service opens remote desktops.
type Service struct {
	pool  *pg.Pool
	cfg   Config
	log   *slog.Logger
	slots chan struct{} // one per WebSocket that has shown no good token yet

	patience time.Duration // longest until a page has sent its request
}

// maxUnauthenticated bounds connections that have shown no token yet.
const maxUnauthenticated = 200

// New returns the service.
func New(pool *pg.Pool, cfg Config, log *slog.Logger) *Service {
	if cfg.Clipboard == "" {
		cfg.Clipboard = protocol.ClipboardBoth
	}
	return &Service{pool: pool, cfg: cfg, log: log, slots: make(chan struct{}, maxUnauthenticated), patience: requestTimeout}
}

// tokenLife is how long a token waits for its use.
const tokenLife = time.Minute

// Wish is what somebody wants of a desktop.
type Wish struct {
	Clipboard string `json:"clipboard,omitempty" enum:"both,to-host,from-host,none" doc:"Which way copied things may go; default both, and never more than the server allows"`
	Layout    uint32 `json:"layout,omitempty" doc:"Windows keyboard layout, such as 1033 (0x409) for English (US); default: what the client says"`
	Server    string `json:"server,omitempty" enum:"xrdp,standard" doc:"Whose ways of RDP to put right; default: found out"`
}

// desktop is where a token leads to, as it is kept.
type desktop struct {
	Workspace   string `json:"workspace,omitempty"`
	Environment string `json:"environment,omitempty"` // this or Host is there
	Host        string `json:"host,omitempty"`
	Clipboard   string `json:"clipboard"`
	Layout      uint32 `json:"layout,omitempty"`
	Server      string `json:"server,omitempty"`
}

// ways are the directions that a clipboard policy allows.
var ways = map[string][2]bool{
	protocol.ClipboardBoth:     {true, true},
	protocol.ClipboardToHost:   {true, false},
	protocol.ClipboardFromHost: {false, true},
	protocol.ClipboardNone:     {false, false},
}

// narrower is the policy that allows what both allow.
func narrower(a, b string) string {
	both := [2]bool{ways[a][0] && ways[b][0], ways[a][1] && ways[b][1]}
	for policy, way := range ways {
		if way == both {
			return policy
		}
	}
	return protocol.ClipboardNone
}

// ValidClipboard says whether policy is one.
func ValidClipboard(policy string) bool {
	_, ok := ways[policy]
	return ok
}

// errToken is all that is said of a bad token.
var errToken = errs.E(errs.Unauthenticated, "This token for a remote desktop is unknown, used or older than a minute; open the desktop again.")
