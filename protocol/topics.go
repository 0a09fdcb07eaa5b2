package protocol

import "strings"

// Topics of one host, below "rg/v1/hosts/{host}/".
const (
	TopicHello     = "hello"     // agent → control: Hello, after every CONNACK
	TopicDesired   = "desired"   // control → agent: COSE_Sign1 of Desired or of a Reference, QoS 0
	TopicDial      = "dial"      // control → agent: Dial, QoS 0
	TopicStatus    = "status"    // agent → control: Status, QoS 0; repeated at QoS 1
	TopicPresence  = "presence"  // agent (and its will) → control: Presence
	TopicTelemetry = "telemetry" // agent → control: TelemetryBatch, QoS 1
	TopicAck       = "ack"       // control → agent: Ack, QoS 0
)

// TopicRoot is what every topic starts with.
const TopicRoot = "rg/v1/"

// UpTopics are what an agent may publish, DownTopics what it may subscribe to.
var (
	UpTopics   = []string{TopicHello, TopicStatus, TopicPresence, TopicTelemetry}
	DownTopics = []string{TopicDesired, TopicDial, TopicAck}
)

// HostTopic returns the full topic of one host.
func HostTopic(host, topic string) string { return TopicRoot + "hosts/" + host + "/" + topic }

// AllHosts returns the filter that matches a topic of every host.
func AllHosts(topic string) string { return TopicRoot + "hosts/+/" + topic }

// SplitHostTopic is the inverse of HostTopic; ok is false for any other topic.
func SplitHostTopic(full string) (host, topic string, ok bool) {
	rest, ok := strings.CutPrefix(full, TopicRoot+"hosts/")
	if !ok {
		return "", "", false
	}
	host, topic, ok = strings.Cut(rest, "/")
	if !ok || host == "" || strings.Contains(topic, "/") {
		return "", "", false
	}
	return host, topic, true
}

// WorkspacePrefix returns what every integration topic of a workspace starts
// with: events and host metrics as JSON.
func WorkspacePrefix(workspace string) string { return TopicRoot + "workspaces/" + workspace + "/" }

// WorkspaceEvent returns the topic of one kind of event of a workspace, for
// example kind "environment/running".
func WorkspaceEvent(workspace, kind string) string {
	return WorkspacePrefix(workspace) + "events/" + kind
}
