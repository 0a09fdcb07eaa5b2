// Package tunnel carries streams between the control plane and agents: one
// WebSocket per stream.
//
// It owns the connection (Conn), the agent's pool of warm ones (Pool) and the
// control plane's side of many hosts (Hub); who may open what is decided
// before Hub.Open. Its invariant: a stream is a byte pipe whose end is known
// for what it is; a Read returns io.EOF only after the peer said so.
//
// On the WebSocket, binary messages are the bytes and text messages control:
//
//	"eof"          no more bytes from this side (half-close)
//	"ping" "pong"  every 15 s both ways, as data, because middleboxes cut what
//	               carries only WebSocket pings
//
// The first binary message each way is a StreamHeader and a StreamReply.
package tunnel

import (
	"errors"
	"time"

	"github.com/gorilla/websocket"
)

const (
	pingEvery = 15 * time.Second
	deadAfter = 45 * time.Second
	bufSize   = 64 << 10 // 4 KiB, the library's default, carries a third as much
	writeWait = 30 * time.Second

	textEOF  = "eof"
	textPing = "ping"
	textPong = "pong"
	maxText  = 64       // bytes of a control message
	maxHead  = 64 << 10 // bytes of a header or reply
	maxData  = 1 << 20  // bytes of a data message
)

// ErrOffline says that a host has no connection to this control plane.
var ErrOffline = errors.New("host is offline")

// ErrLimit says that a cap on streams is reached.
var ErrLimit = errors.New("too many streams")

// Refused is an agent's answer to a stream that it does not open.
type Refused struct {
	Code    string // one of protocol's Reply codes
	Message string // one sentence for a person
}

func (r *Refused) Error() string { return "host refuses the stream: " + r.Message }

// clean is how a WebSocket ends when both sides have said all; anything else
// is an abort.
var clean = websocket.FormatCloseMessage(websocket.CloseNormalClosure, "")
