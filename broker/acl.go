package broker

import (
	"slices"
	"strings"

	"github.com/remotegpu/remotegpu/protocol"
)

// Kinds of principal.
const (
	KindHost = "host" // an agent
	KindUser = "user" // a person, or an integration with an API token
)

// mayWrite is who may publish what: an agent its own up topics, nobody else
// anything. Everything that goes down comes from the control plane itself,
// which does not ask here.
func mayWrite(p Principal, topic string) bool {
	host, name, ok := protocol.SplitHostTopic(topic)
	return ok && p.Kind == KindHost && host == p.ID && slices.Contains(protocol.UpTopics, name)
}

// mayRead is who may subscribe to a filter, or be sent a topic: an agent its
// own down topics, a user what is of their workspaces, a platform admin
// everything of ours.
func mayRead(p Principal, filter string) bool {
	switch p.Kind {
	case KindHost:
		host, name, ok := protocol.SplitHostTopic(filter)
		return ok && host == p.ID && slices.Contains(protocol.DownTopics, name)
	case KindUser:
		if p.Admin {
			return strings.HasPrefix(filter, protocol.TopicRoot)
		}
		for _, ws := range p.Workspaces {
			if strings.HasPrefix(filter, protocol.WorkspacePrefix(ws)) {
				return true
			}
		}
	}
	return false
}

// mayBe reports whether p may connect with a client id: an agent's is its host
// id, and nobody else's starts like one.
func mayBe(p Principal, client string) bool {
	if p.Kind == KindHost {
		return client == p.ID
	}
	return !strings.HasPrefix(client, protocol.PrefixHost)
}
