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
//	"ping" "pong"  every 15 s both ways, of a spare 45 s, as data, because
//	               middleboxes cut what carries only WebSocket pings
//
// Close code 1000 is a clean end of both directions, 1012 a restart with the
// time to come back, any other an abort with its reason. The first binary message each way is a StreamHeader and a
// StreamReply.
//
//	agent (Pool)                       control plane (Hub)
//	  | dial, no token: a spare ---------->| kept warm
//	  |<---------------------- header -----| Open takes a spare
//	  | reply, bytes <-------------------->|
//	  | dial, no token: the next spare --->|
//	  |                                    | Open finds no spare, or it is silent:
//	  |<== Dial with a token over MQTT ====| Ask, again after 1, 2, 4 s
//	  | dial with the token -------------->| single use, of this host alone
//	  |<---------------------- header -----|
package tunnel

import (
	"errors"
	"math/rand/v2"
	"strings"
	"time"
)

const (
	pingEvery = 15 * time.Second
	deadAfter = 45 * time.Second

	// A fleet has a spare per host, so their pings add up; 45 s are within the
	// minute after which proxies cut.
	restPing = 45 * time.Second
	restDead = 110 * time.Second
	bufSize  = 64 << 10 // bytes of a write; 4 KiB, the library's default, carries a third as much

	// readBufSize is held by every idle spare. Larger ones measure no faster:
	// the most of a chunk is read past the buffer.
	readBufSize = 1 << 10

	lingerFor  = 20 * time.Second // after a close, without a sign of life of a peer that still reads
	lingerMost = 2 * time.Minute

	textEOF  = "eof"
	textPing = "ping"
	textPong = "pong"
	maxText  = 64       // bytes of a control message
	maxHead  = 64 << 10 // bytes of a header or reply
	maxData  = 1 << 20  // bytes of a data message

	// maxControls is how many control messages may come in a row: those of days
	// wait when a reader has paused for long, more is a flood.
	maxControls = 1 << 16
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

// Restarting is the end of a connection whose peer restarts.
type Restarting struct{ After time.Duration }

const (
	restartText  = "retry-after="
	restartLeast = 300 * time.Millisecond
	restartMost  = 3 * time.Second // a peer that says more is not believed
)

func (r *Restarting) Error() string { return "the peer restarts" }

// RetryAfter is when to come back.
func (r *Restarting) RetryAfter() time.Duration { return r.After }

// RestartAfter is a good time to come back after a restart: not at once, and
// not all in the same moment.
func RestartAfter() time.Duration { return restartLeast + rand.N(restartMost-restartLeast) }

func restarting(text string) *Restarting {
	after, err := time.ParseDuration(strings.TrimPrefix(text, restartText))
	if err != nil || after < 0 {
		after = restartMost
	}
	return &Restarting{min(after, restartMost)}
}

// Aborted is the end of a stream that the peer ended by CloseWithError.
type Aborted struct{ Reason string }

func (a *Aborted) Error() string { return "stream aborted by peer: " + a.Reason }
