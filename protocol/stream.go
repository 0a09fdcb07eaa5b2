package protocol

import (
	"fmt"
	"strings"
	"unicode/utf16"
	"unicode/utf8"
)

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
	StreamDial    = "dial"    // bytes with what answers at the target; of NetworkUDP, frames FrameDatagram
	StreamListen  = "listen"  // frames FrameAccepted: who came to the target; nobody can after the stream's end
	StreamAccept  = "accept"  // bytes of a connection that came; the target's address is its id
	StreamRDP     = "rdp"     // bytes with the RDP server at the target: of a workload, or without one of the host itself
	StreamSSH     = "ssh"     // SSH with the host itself, which asks no key; first comes the certificate of its own, FrameCertificate
	StreamLogs    = "logs"    // what the workload's command has written, as text; it may have ended
)

// Networks of a target.
const (
	NetworkTCP  = "tcp"
	NetworkUDP  = "udp"
	NetworkUnix = "unix"
)

// Target is an address as the programs of the workload see it.
type Target struct {
	Network string `cbor:"1,keyasint"` // one of the networks
	Address string `cbor:"2,keyasint"` // host:port or absolute path; to listen, port 0 and an empty path mean any that is free
}

// Accepted is a connection that came to a StreamListen. It waits for its
// StreamAccept for 30 s.
type Accepted struct {
	Version int    `cbor:"1,keyasint"`
	ID      string `cbor:"2,keyasint"`           // unguessable
	Remote  string `cbor:"3,keyasint,omitempty"` // host:port of who came; empty for NetworkUnix
}

// StreamHeader is the first message on a stream, control → agent.
type StreamHeader struct {
	Version  int     `cbor:"1,keyasint"`
	ID       string  `cbor:"2,keyasint"`           // str_…, in the logs of both ends
	Kind     string  `cbor:"3,keyasint"`           // one of the kinds
	Workload string  `cbor:"4,keyasint,omitempty"` // empty: the host itself
	User     string  `cbor:"5,keyasint"`           // usr_…, who it is for
	Trace    string  `cbor:"6,keyasint,omitempty"`
	Target   *Target `cbor:"7,keyasint,omitempty"` // nil for StreamSession

	RDP  *RDPRequest  `cbor:"8,keyasint,omitempty"` // of a StreamRDP; nil: the client does TLS with the server itself
	Logs *LogsRequest `cbor:"9,keyasint,omitempty"` // of a StreamLogs; nil: all that there is
}

// LogsRequest says how much of a log is wanted.
type LogsRequest struct {
	Tail   uint32 `cbor:"1,keyasint"`           // lines from its end
	Follow bool   `cbor:"2,keyasint,omitempty"` // and what is added, until the stream ends
}

// StreamReply is the first message back. After one without Code, bytes.
type StreamReply struct {
	Version int    `cbor:"1,keyasint"`
	Code    string `cbor:"2,keyasint,omitempty"` // one of the Reply codes; empty: open
	Message string `cbor:"3,keyasint,omitempty"` // one sentence for a person
	Address string `cbor:"4,keyasint,omitempty"` // where a StreamListen listens

	RDP *RDPReply `cbor:"5,keyasint,omitempty"` // to an RDPRequest
	Key []byte    `cbor:"6,keyasint,omitempty"` // public host key of a StreamSSH, SSH wire format
}

// Codes of a refused stream.
const (
	ReplyNotFound    = "not-found"   // no such workload here
	ReplyNotRunning  = "not-running" // it exists, but has no running container
	ReplyUnsupported = "unsupported" // kind unknown to this agent, or switched off
	ReplyLimit       = "limit"       // too many streams
	ReplyRefused     = "refused"     // nothing answers at the target, or it cannot be listened on
	ReplyInternal    = "internal"
)

// Validate checks the header's limits.
func (h *StreamHeader) Validate() error {
	if h.Version != Version || tooLong(h.ID, h.Kind, h.Workload, h.User, h.Trace) {
		return fmt.Errorf("stream header is of another version or over its limits")
	}
	if h.RDP != nil {
		if err := h.RDP.Validate(); err != nil {
			return err
		}
	}
	if h.Target != nil {
		return h.Target.Validate()
	}
	return nil
}

// Validate checks the target's limits.
func (t *Target) Validate() error {
	if tooLong(t.Network, t.Address) {
		return fmt.Errorf("target of a stream is over its limits")
	}
	return nil
}

// Validate checks the reply's limits.
func (r *StreamReply) Validate() error {
	if r.Version != Version || tooLong(r.Code, r.Address) || len(r.Message) > MaxText || len(r.Key) > 1024 {
		return fmt.Errorf("stream reply is of another version or over its limits")
	}
	if r.RDP != nil {
		return r.RDP.Validate()
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

// Validate checks the limits of what has come.
func (a *Accepted) Validate() error {
	if a.Version != Version || a.ID == "" || tooLong(a.ID, a.Remote) {
		return fmt.Errorf("accepted connection is of another version or over its limits")
	}
	return nil
}

// RDPRequest lets the agent do the first two steps of a connection with an RDP
// server, X.224 and TLS, for a client that cannot (a browser). What follows on
// the stream is what is inside of TLS.
//
//	client            control               agent                    server
//	  | RDCleanPath ---->| StreamHeader ------>| X.224, TLS <----------->|
//	  |<---- RDCleanPath |<------- StreamReply |                         |
//	  | bytes <--------->|<------------------->| bytes <------- in TLS ->|
type RDPRequest struct {
	Negotiation []byte `cbor:"1,keyasint"`           // the client's X.224 Connection Request, a whole TPKT
	Server      string `cbor:"2,keyasint,omitempty"` // one of the RDP servers; empty: the agent finds out
	Clipboard   string `cbor:"3,keyasint"`           // one of the clipboard policies
	Layout      uint32 `cbor:"4,keyasint,omitempty"` // Windows keyboard layout, 0x409; 0: what the client says
}

// RDPReply is what the server answered.
type RDPReply struct {
	Confirm      []byte   `cbor:"1,keyasint"`           // its X.224 Connection Confirm, a whole TPKT
	Certificates [][]byte `cbor:"2,keyasint,omitempty"` // DER, leaf first; none: it refused, see Confirm, and nothing follows
}

// RDP servers, by what must be put right in what they and their clients say.
const (
	RDPServerStandard = "standard" // nothing
	RDPServerXrdp     = "xrdp"
)

// Clipboard policies of a remote desktop: which way copied things may go.
const (
	ClipboardBoth     = "both"
	ClipboardToHost   = "to-host"
	ClipboardFromHost = "from-host"
	ClipboardNone     = "none"
)

// Limits of RDP's first step.
const (
	MaxNegotiation  = 4 << 10  // bytes of an X.224 request or confirm; real ones have under 100
	MaxCertificates = 32 << 10 // bytes of a server's chain
)

// Validate checks the request's limits.
func (r *RDPRequest) Validate() error {
	if len(r.Negotiation) == 0 || len(r.Negotiation) > MaxNegotiation || tooLong(r.Server, r.Clipboard) {
		return fmt.Errorf("rdp request is over its limits")
	}
	return nil
}

// Validate checks the reply's limits.
func (r *RDPReply) Validate() error {
	total := 0
	for _, c := range r.Certificates {
		total += len(c)
	}
	if len(r.Confirm) > MaxNegotiation || total > MaxCertificates {
		return fmt.Errorf("rdp reply is over its limits")
	}
	return nil
}

// DesktopCredentials is the file in a container in which its RDP server's start
// leaves user and password, a line each, for the container's root alone.
const DesktopCredentials = "/run/desktop/credentials"

const (
	// MaxDesktopText is how long user and password may be, each, in UTF-16
	// units: MS-RDPBCGR 2.2.1.11.1.1 gives them 512 bytes with a zero.
	MaxDesktopText = 255
	// MaxDesktopCredentials bounds the file, in bytes.
	MaxDesktopCredentials = 2 * (MaxDesktopText*utf8.UTFMax + 1)
)

// ErrDesktopLogin says why nobody can be logged in with a file.
var ErrDesktopLogin = fmt.Errorf("user and password in %s cannot be sent by RDP: they must be a line each, of at most %d characters", DesktopCredentials, MaxDesktopText)

// ParseDesktopLogin reads a file of credentials. An empty one has neither and
// is no error: the image leaves none.
func ParseDesktopLogin(file string) (user, password string, err error) {
	if file == "" {
		return "", "", nil
	}
	lines := strings.SplitN(file, "\n", 3)
	if len(file) > MaxDesktopCredentials || len(lines) < 3 || tooLongForDesktop(lines[0]) || tooLongForDesktop(lines[1]) {
		return "", "", ErrDesktopLogin
	}
	return lines[0], lines[1], nil
}

func tooLongForDesktop(text string) bool {
	return !utf8.ValidString(text) || len(utf16.Encode([]rune(text))) > MaxDesktopText
}
