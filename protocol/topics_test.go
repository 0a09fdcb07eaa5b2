package protocol

import (
	"strings"
	"testing"
)

func TestHostTopics(t *testing.T) {
	for _, topic := range append(append([]string{}, UpTopics...), DownTopics...) {
		full := HostTopic(testHost, topic)
		host, got, ok := SplitHostTopic(full)
		if !ok || host != testHost || got != topic {
			t.Errorf("%s splits into %q, %q, %v", full, host, got, ok)
		}
		if filter := AllHosts(topic); strings.Replace(filter, "+", testHost, 1) != full {
			t.Errorf("filter %s does not match %s", filter, full)
		}
	}
}

func TestSplitHostTopicRefuses(t *testing.T) {
	for _, full := range []string{
		"", "/", "rg/v1/hosts", "rg/v1/hosts/", "rg/v1/hosts/a", "rg/v1/hosts//hello", "rg/v1/hosts/a/hello/b", "rg/v1/hosts/a//hello",
		"/rg/v1/hosts/a/hello", "rg/v2/hosts/a/hello", "rg/v1/workspaces/a/events", "$SYS/rg/v1/hosts/a/hello",
	} {
		if host, topic, ok := SplitHostTopic(full); ok || host != "" || topic != "" {
			t.Errorf("%q splits into %q, %q, %v", full, host, topic, ok)
		}
	}
}

func TestWorkspaceTopics(t *testing.T) {
	if got := WorkspaceEvent("ws_1", "environment/running"); got != "rg/v1/workspaces/ws_1/events/environment/running" || !strings.HasPrefix(got, WorkspacePrefix("ws_1")) {
		t.Error(got)
	}
}

func TestIDs(t *testing.T) {
	seen := make(map[string]bool)
	for range 10_000 {
		id := NewID(PrefixHost)
		if !ValidID(PrefixHost, id) || ValidID(PrefixUser, id) || seen[id] {
			t.Fatal(id)
		}
		seen[id] = true
	}
	for _, bad := range []string{
		"", "host_", "host_0123456789abcdefghj", "host_0123456789abcdefghjkk", "host_0123456789abcdefghjI", "host_0123456789ABCDEFGHJK",
		"host_0123456789abcdefghju", "env_0123456789abcdefghjk", "host_0123456789abcdefghj/", "host_0123456789abcdefgh\x00k",
	} {
		if ValidID(PrefixHost, bad) {
			t.Errorf("%q is valid", bad)
		}
	}
}
