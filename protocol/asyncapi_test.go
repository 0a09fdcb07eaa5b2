package protocol

import (
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"

	"gopkg.in/yaml.v3"
)

// What of AsyncAPI 3.0 the file uses. Decoding is strict: a key that is not
// here is a mistake.
type asyncAPI struct {
	AsyncAPI string `yaml:"asyncapi"`
	Info     struct {
		Title, Version, Description string
		License                     struct{ Name, Identifier string }
	}
	DefaultContentType string `yaml:"defaultContentType"`
	Servers            map[string]struct {
		Host, Pathname, Protocol, Description string
		ProtocolVersion                       string `yaml:"protocolVersion"`
		Variables                             map[string]asyncParameter
		Security                              []asyncRef
	}
	Channels   map[string]asyncChannel
	Operations map[string]struct {
		Action   string
		Channel  asyncRef
		Bindings struct {
			MQTT struct {
				QoS     int    `yaml:"qos"`
				Retain  bool   `yaml:"retain"`
				Version string `yaml:"bindingVersion"`
			} `yaml:"mqtt"`
		}
	}
	Components struct {
		Messages        map[string]asyncMessage
		SecuritySchemes map[string]struct{ Type, Description string } `yaml:"securitySchemes"`
	}
}

type asyncChannel struct {
	Address, Description string
	Parameters           map[string]asyncParameter
	Messages             map[string]asyncRef
}

type asyncParameter struct {
	Description string
	Examples    []string
}

type asyncRef struct {
	Ref string `yaml:"$ref"`
}

type asyncMessage struct {
	ContentType string `yaml:"contentType"`
	Payload     struct {
		SchemaFormat string `yaml:"schemaFormat"`
		Schema       string
		Type         string
	}
}

func loadAsyncAPI(t *testing.T) *asyncAPI {
	t.Helper()
	f, err := os.Open("asyncapi.yaml")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	decoder := yaml.NewDecoder(f)
	decoder.KnownFields(true)
	api := new(asyncAPI)
	if err := decoder.Decode(api); err != nil {
		t.Fatal(err)
	}
	return api
}

// topicDocuments says which struct travels on which topic.
var topicDocuments = map[string]any{
	TopicHello: Hello{}, TopicDesired: Desired{}, TopicDial: Dial{}, TopicStatus: Status{},
	TopicPresence: Presence{}, TopicTelemetry: TelemetryBatch{}, TopicAck: Ack{},
}

func TestAsyncAPISaysWhatTheTopicsSay(t *testing.T) {
	api := loadAsyncAPI(t)
	if api.AsyncAPI != "3.0.0" {
		t.Errorf("version %s", api.AsyncAPI)
	}
	var topics []string
	for _, up := range UpTopics {
		qos := 1
		if up == TopicStatus { // is acknowledged by who keeps it
			qos = 0
		}
		checkChannel(t, api, up, "receive", qos)
	}
	for _, down := range DownTopics {
		checkChannel(t, api, down, "send", 0)
	}
	topics = append(append(topics, UpTopics...), DownTopics...)
	named := slices.DeleteFunc(constants(t, "Topic"), func(topic string) bool { return topic == TopicRoot })
	if len(named) != len(topics) {
		t.Errorf("topics.go names %v, UpTopics and DownTopics hold %v", named, topics)
	}
	if want := len(topics) + 1; len(api.Channels) != want || len(api.Operations) != want || len(api.Components.Messages) != want+1 {
		t.Errorf("%d channels, %d operations, %d messages; the topics and the events are %d, and one has two messages", len(api.Channels), len(api.Operations), len(api.Components.Messages), want)
	}
	events := api.Channels["events"]
	if want := WorkspaceEvent("{workspace}", "{noun}/{verb}"); events.Address != want {
		t.Errorf("events are at %s, not %s", want, events.Address)
	}
}

// checkChannel checks the channel of a topic, its one operation and message.
func checkChannel(t *testing.T, api *asyncAPI, topic, action string, qos int) {
	t.Helper()
	channel, ok := api.Channels[topic]
	if !ok || channel.Address != HostTopic("{host}", topic) {
		t.Errorf("no channel %s with address %s", topic, HostTopic("{host}", topic))
		return
	}
	operations := 0
	for name, o := range api.Operations {
		if o.Channel.Ref != "#/channels/"+topic {
			continue
		}
		operations++
		if o.Action != action || o.Bindings.MQTT.QoS != qos || o.Bindings.MQTT.Retain {
			t.Errorf("%s: %s at QoS %d, retained %v; must be %s at QoS %d", name, o.Action, o.Bindings.MQTT.QoS, o.Bindings.MQTT.Retain, action, qos)
		}
	}
	if operations != 1 {
		t.Errorf("%s has %d operations", topic, operations)
	}
	messages := map[string]string{topic: kebab(reflect.TypeOf(topicDocuments[topic]).Name())}
	if topic == TopicDesired {
		messages = map[string]string{topic: "signed-desired", "reference": "signed-reference"}
	}
	if len(channel.Messages) != len(messages) {
		t.Errorf("%s carries %v", topic, channel.Messages)
	}
	for message, rule := range messages {
		payload := api.Components.Messages[message].Payload
		if channel.Messages[message].Ref != "#/components/messages/"+message || payload.SchemaFormat != "application/cddl" ||
			payload.Schema != rule || loadGrammar(t).rules[rule] == nil {
			t.Errorf("%s carries %v with %s %s, not rule %s", topic, channel.Messages[message], payload.SchemaFormat, payload.Schema, rule)
		}
	}
}

// TestAsyncAPIIsWhole checks references and the parameters of addresses.
func TestAsyncAPIIsWhole(t *testing.T) {
	api := loadAsyncAPI(t)
	for name, server := range api.Servers {
		for _, s := range server.Security {
			if _, ok := api.Components.SecuritySchemes[strings.TrimPrefix(s.Ref, "#/components/securitySchemes/")]; !ok {
				t.Errorf("server %s: %s is not there", name, s.Ref)
			}
		}
	}
	for name, c := range api.Channels {
		var inAddress []string
		for level := range strings.SplitSeq(c.Address, "/") {
			if strings.HasPrefix(level, "{") {
				inAddress = append(inAddress, strings.Trim(level, "{}"))
			}
		}
		for _, parameter := range inAddress {
			if c.Parameters[parameter].Description == "" {
				t.Errorf("%s: parameter %s is not described", name, parameter)
			}
		}
		if len(inAddress) != len(c.Parameters) || c.Description == "" {
			t.Errorf("%s: parameters %v for address %s, description %q", name, c.Parameters, c.Address, c.Description)
		}
		for message, m := range c.Messages {
			if _, ok := api.Components.Messages[strings.TrimPrefix(m.Ref, "#/components/messages/")]; !ok {
				t.Errorf("%s: message %s: %s is not there", name, message, m.Ref)
			}
		}
	}
	for name, o := range api.Operations {
		if _, ok := api.Channels[strings.TrimPrefix(o.Channel.Ref, "#/channels/")]; !ok || !slices.Contains([]string{"send", "receive"}, o.Action) {
			t.Errorf("operation %s: %s %s", name, o.Action, o.Channel.Ref)
		}
	}
}
