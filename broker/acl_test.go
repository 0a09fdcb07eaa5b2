package broker

import (
	"strings"
	"testing"

	"github.com/remotegpu/remotegpu/protocol"
)

const (
	hostA = "host_aaaaaaaaaaaaaaaaaaaa"
	hostB = "host_bbbbbbbbbbbbbbbbbbbb"
)

// people are who there is; in tests everybody's password is "ok".
var people = map[string]Principal{
	hostA:    {Kind: KindHost, ID: hostA},
	hostB:    {Kind: KindHost, ID: hostB},
	"ann":    {Kind: KindUser, ID: "usr_ann", Workspaces: []string{"ws_1"}},
	"bot":    {Kind: KindToken, ID: "tok_bot", Workspaces: []string{"ws_1", "ws_2"}},
	"root":   {Kind: KindUser, ID: "usr_root", Admin: true},
	"admin":  {Kind: KindToken, ID: "tok_admin", Admin: true},
	"nobody": {Kind: KindUser, ID: "usr_nobody"},
	"empty":  {Kind: KindUser, ID: "usr_empty", Workspaces: []string{""}},
	"zero":   {},
	"forged": {Kind: KindHost, ID: hostB, Admin: true, Workspaces: []string{"ws_1"}}, // rights that a host cannot have
}

const (
	admins = " root admin"
	ws1    = "ann bot" + admins
	ownB   = hostB + " forged"
)

// reads and writes say who may; everybody else may not.
var reads = map[string]string{
	protocol.HostTopic(hostA, protocol.TopicDesired):   hostA + admins,
	protocol.HostTopic(hostA, protocol.TopicDial):      hostA + admins,
	protocol.HostTopic(hostA, protocol.TopicAck):       hostA + admins,
	protocol.HostTopic(hostB, protocol.TopicDesired):   ownB + admins,
	protocol.HostTopic(hostB, protocol.TopicDial):      ownB + admins,
	protocol.HostTopic(hostB, protocol.TopicAck):       ownB + admins,
	protocol.HostTopic(hostA, protocol.TopicHello):     admins,
	protocol.HostTopic(hostA, protocol.TopicStatus):    admins,
	protocol.HostTopic(hostA, protocol.TopicPresence):  admins,
	protocol.HostTopic(hostA, protocol.TopicTelemetry): admins,
	protocol.HostTopic(hostA, "new"):                   admins,
	protocol.HostTopic(hostA, "#"):                     admins,
	protocol.HostTopic(hostA, "+"):                     admins,
	protocol.HostTopic(hostA, "desired/#"):             admins,
	protocol.HostTopic("+", protocol.TopicDesired):     admins,
	protocol.HostTopic("#", ""):                        admins,
	protocol.AllHosts(protocol.TopicStatus):            admins,
	"rg/v1/#":                                          admins,
	"rg/v1/+/+/desired":                                admins,
	"rg/v1/workspaces/#":                               admins,
	"rg/v1/workspaces/+/events/#":                      admins,
	"rg/v1/workspaces/ws_1":                            admins,
	"rg/v1/workspaces/ws_1#":                           admins,
	"rg/v1/workspaces//#":                              admins,
	protocol.WorkspacePrefix("ws_12") + "#":            admins,
	protocol.WorkspacePrefix("ws_1") + "#":             ws1,
	protocol.WorkspacePrefix("ws_1") + "+/+":           ws1,
	protocol.WorkspaceEvent("ws_1", "environment/+"):   ws1,
	protocol.WorkspaceEvent("ws_1", "x"):               ws1,
	protocol.WorkspaceEvent("ws_2", "#"):               "bot" + admins,
	protocol.WorkspaceEvent("ws_3", "#"):               admins,
	"#":                                                "",
	"+/v1/#":                                           "",
	"rg/+/#":                                           "",
	"rg/v1":                                            "",
	"rg/v2/#":                                          "",
	"$SYS/#":                                           "",
	"$share/g/rg/v1/#":                                 "",
	"/rg/v1/#":                                         "",
	"RG/v1/#":                                          "",
	"":                                                 "",
	"$share/g/rg/v1/hosts/" + hostA + "/desired":       "",
	protocol.WorkspacePrefix("ws_1") + strings.Repeat("a/", maxFilter): "",
	protocol.HostTopic(hostA, protocol.TopicDesired) + "\x00":          admins,
	"rg/v1/hosts/" + hostA + "/../" + hostB + "/desired":               admins,
	"rg/v1/hosts/" + strings.ToUpper(hostA) + "/desired":               admins,
	"rg/v1/hosts//desired":                                           admins,
	"rg/v1/workspaces/ws_1/../ws_2/events/#":                         ws1, // dots mean nothing in topics
	"$share/g/" + protocol.WorkspacePrefix("ws_1") + "#":             "",
	protocol.WorkspacePrefix("ws_1") + "hosts/" + hostA + "/metrics": ws1,
	protocol.WorkspacePrefix("ws_2") + "hosts/" + hostA + "/metrics": "bot" + admins,
	protocol.WorkspacePrefix("+") + "hosts/" + hostA + "/metrics":    admins,
	protocol.WorkspacePrefix(hostA) + "events/x":                     admins,
	protocol.HostTopic("ws_1", protocol.TopicDesired):                admins,
	protocol.HostTopic("usr_ann", protocol.TopicDesired):             admins,
}

var writes = map[string]string{
	protocol.HostTopic(hostA, protocol.TopicHello):     hostA,
	protocol.HostTopic(hostA, protocol.TopicStatus):    hostA,
	protocol.HostTopic(hostA, protocol.TopicPresence):  hostA,
	protocol.HostTopic(hostA, protocol.TopicTelemetry): hostA,
	protocol.HostTopic(hostB, protocol.TopicHello):     ownB,
	protocol.HostTopic(hostB, protocol.TopicStatus):    ownB,
	protocol.HostTopic(hostA, protocol.TopicDesired):   "",
	protocol.HostTopic(hostA, protocol.TopicDial):      "",
	protocol.HostTopic(hostA, protocol.TopicAck):       "",
	protocol.HostTopic(hostA, "new"):                   "",
	protocol.HostTopic(hostA, "status/x"):              "",
	protocol.HostTopic(hostA, ""):                      "",
	protocol.HostTopic("+", protocol.TopicStatus):      "",
	protocol.HostTopic("usr_ann", protocol.TopicHello): "",
	protocol.WorkspaceEvent("ws_1", "x"):               "",
	"rg/v1/workspaces/ws_1":                            "",
	"anything":                                         "",
	"$SYS/broker/version":                              "",
	"":                                                 "",
}

func among(name, who string) bool { return strings.Contains(" "+who+" ", " "+name+" ") }

func TestWhoMayReadAndWrite(t *testing.T) {
	for name, p := range people {
		for filter, who := range reads {
			if got, want := mayRead(p, filter), among(name, who); got != want {
				t.Errorf("%s reads %.100q: %v, want %v", name, filter, got, want)
			}
		}
		for topic, who := range writes {
			if got, want := mayWrite(p, topic), among(name, who); got != want {
				t.Errorf("%s writes %q: %v, want %v", name, topic, got, want)
			}
		}
	}
}

func TestWhoMayBeWhom(t *testing.T) {
	others := "ann bot root admin nobody empty"
	for client, who := range map[string]string{
		hostA: hostA, hostB: ownB, "x": others, "": others, "usr_root": others, ownID: others,
		"inline": others, "usr_root/x": others, "host_x": "", "host_": "", strings.Repeat("a", maxFilter+1): "",
	} {
		for name, p := range people {
			if got, want := mayBe(p, client), among(name, who); got != want {
				t.Errorf("%s is %.50q: %v, want %v", name, client, got, want)
			}
		}
	}
}

// Nobody's session is found by an id that somebody else can choose.
func TestSessionIDsAreApart(t *testing.T) {
	seen := map[string]string{ownID: "control", "inline": "control"}
	for name, p := range people {
		for _, client := range []string{"", "x", "inline", ownID, hostA, hostB, "usr_root/x", "tok_bot/x"} {
			if !mayBe(p, client) {
				continue
			}
			id := sessionID(p, client)
			if other, ok := seen[id]; ok && other != p.ID {
				t.Errorf("%s as %q gets the session %q of %s", name, client, id, other)
			}
			seen[id] = p.ID
		}
	}
}
