package protocol

import "fmt"

// Dial asks an agent for a stream: it opens a WebSocket at TunnelPath and shows
// Token in StreamTokenHeader. Sent with QoS 0 and an expiry of seconds.
type Dial struct {
	Version int    `cbor:"1,keyasint"`
	Token   string `cbor:"2,keyasint"` // single use
	Expires int64  `cbor:"3,keyasint"` // Unix seconds
	Spares  uint32 `cbor:"4,keyasint"` // warm connections that control would like to see now
}

// Where streams are dialled. A WebSocket without StreamTokenHeader is a warm
// spare: it waits for its StreamHeader.
const (
	TunnelPath        = "/tunnel"
	StreamTokenHeader = "X-Remotegpu-Stream"
)

// Kinds of stream.
const (
	StreamSession = "session" // frames (Frame) with the helper in a workload's container
)

// StreamHeader is the first message on a stream, control → agent.
type StreamHeader struct {
	Version  int    `cbor:"1,keyasint"`
	ID       string `cbor:"2,keyasint"` // str_…, in the logs of both ends
	Kind     string `cbor:"3,keyasint"` // StreamSession
	Workload string `cbor:"4,keyasint,omitempty"`
	User     string `cbor:"5,keyasint"` // usr_…, who it is for
	Trace    string `cbor:"6,keyasint,omitempty"`
}

// StreamReply is the first message back. After one without Code, bytes.
type StreamReply struct {
	Version int    `cbor:"1,keyasint"`
	Code    string `cbor:"2,keyasint,omitempty"` // one of the Reply codes; empty: open
	Message string `cbor:"3,keyasint,omitempty"` // one sentence for a person
}

// Codes of a refused stream.
const (
	ReplyNotFound    = "not-found"   // no such workload here
	ReplyNotRunning  = "not-running" // it exists, but has no running container
	ReplyUnsupported = "unsupported" // kind unknown to this agent
	ReplyLimit       = "limit"       // too many streams
	ReplyInternal    = "internal"
)

// Validate checks the header's limits.
func (h *StreamHeader) Validate() error {
	if h.Version != Version || tooLong(h.ID, h.Kind, h.Workload, h.User, h.Trace) {
		return fmt.Errorf("stream header is of another version or over its limits")
	}
	return nil
}

// Validate checks the reply's limits.
func (r *StreamReply) Validate() error {
	if r.Version != Version || len(r.Code) > MaxLabel || len(r.Message) > MaxText {
		return fmt.Errorf("stream reply is of another version or over its limits")
	}
	return nil
}

// Validate checks the request's limits.
func (d *Dial) Validate() error {
	if d.Version != Version || d.Token == "" || len(d.Token) > MaxLabel {
		return fmt.Errorf("dial request is of another version or has no valid token")
	}
	return nil
}
