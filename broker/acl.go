package broker

import (
	"slices"
	"strings"
	"time"

	"github.com/remotegpu/remotegpu/protocol"
)

// Kinds of principal.
const (
	KindHost  = "host"  // an agent
	KindUser  = "user"  // a person
	KindToken = "token" // an integration with an API token
)

// Principal is who a client is.
type Principal struct {
	Kind       string    // KindHost, KindUser or KindToken
	ID         string    // host_…, usr_… or tok_…
	Admin      bool      // platform admin; not of a host
	Workspaces []string  // ids that a user or token may read
	Expires    time.Time // the connection is ended then; zero: never
}

// maxFilter bounds a topic filter in bytes: filters are kept per client.
const maxFilter = 256

// mayWrite is who may publish what, wills too: an agent its own up topics,
// nobody else anything. What goes down comes from the control plane itself,
// which does not ask here.
func mayWrite(p Principal, topic string) bool {
	host, name, ok := protocol.SplitHostTopic(topic)
	return ok && p.Kind == KindHost && host == p.ID && slices.Contains(protocol.UpTopics, name)
}

// mayRead is who may subscribe to a filter, or be sent a topic: an agent its
// own down topics, each by its name; a user or token what is of their
// workspaces; a platform admin everything of ours. A prefix decides, so no
// wildcard can stand before it and reach across.
func mayRead(p Principal, filter string) bool {
	if len(filter) > maxFilter {
		return false
	}
	switch p.Kind {
	case KindHost:
		host, name, ok := protocol.SplitHostTopic(filter)
		return ok && host == p.ID && slices.Contains(protocol.DownTopics, name)
	case KindUser, KindToken:
		if p.Admin {
			return strings.HasPrefix(filter, protocol.TopicRoot)
		}
		return slices.ContainsFunc(p.Workspaces, func(ws string) bool {
			return ws != "" && strings.HasPrefix(filter, protocol.WorkspacePrefix(ws))
		})
	}
	return false
}

// mayBe reports whether p may connect with a client id: an agent's is its host
// id, and nobody else's starts like one.
func mayBe(p Principal, client string) bool {
	switch p.Kind {
	case KindHost:
		return client == p.ID && strings.HasPrefix(client, protocol.PrefixHost)
	case KindUser, KindToken:
		return p.ID != "" && len(client) <= maxFilter && !strings.HasPrefix(client, protocol.PrefixHost)
	}
	return false
}

// sessionID is what the broker knows a client by. That of a user or token has
// the principal in front, so that nobody takes over somebody else's session by
// its name.
func sessionID(p Principal, client string) string {
	if p.Kind == KindHost {
		return client
	}
	return p.ID + "/" + client
}
