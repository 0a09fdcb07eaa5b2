// Package resume is a byte pipe that outlives its transports.
//
// It owns numbering, acknowledging and replaying the bytes of both directions,
// and when to dial anew; what a transport is (a WebSocket, a unix socket, both
// in a row) and who may have one is decided by whoever opens it. Its
// invariant: what one end writes, the other reads once and in order, however
// many transports are cut, doubled or late; neither end keeps more than Window
// bytes per direction.
//
// A transport carries frames laid out as protocol's: one byte of type, four
// bytes of length (big endian), payload. Numbers are eight bytes, big endian.
//
//	dialling end                               answering end
//	  | (how much it has received, beside it) --->|  with the request
//	  |<------------------ hello (received) or    |
//	  |                    refuse (sentence) -----|  first, always
//	  | data* ack* eof ping --------------------->|  from what hello says
//	  |<------------------- data* ack* eof pong   |  from what was received
//	  | close (sentence, may be empty) <--------->|  no transport will follow
//
// Bytes are numbered from 0, and eof counts as one; data and eof say the number
// of their first. An ack says how many the reader has taken, so that a reader
// who stops stops the writer. The newest transport wins: both ends forget an
// older one, and what is still in it.
package resume

import (
	"encoding/binary"
	"errors"
	"time"
)

// Window is how many bytes of a direction are kept that the other end has not
// taken; a writer then waits.
const Window = 2 << 20

// Keep is for how long an end without a transport waits, unless told otherwise.
const Keep = 15 * time.Minute

// Types of frame. Numbers never change their meaning, and are none that a
// session's last frame has.
const (
	frameHello  = 0x41 // number received; answering end alone, first
	frameRefuse = 0x42 // a sentence for a person; answering end alone, instead of hello
	frameData   = 0x43 // number of the first, and at most maxData bytes
	frameEOF    = 0x44 // number of the end
	frameAck    = 0x45 // number taken
	framePing   = 0x46 // no payload; the answer is a pong, at once
	framePong   = 0x47
	frameClose  = 0x48 // a sentence for a person, or nothing
)

const (
	headBytes = 5
	numBytes  = 8
	maxData   = 16 << 10 // of a frame: small enough that one is through in a second on a bad line
	maxText   = 1 << 10  // bytes of a sentence

	ackEvery   = 64 << 10              // bytes taken are acknowledged at once
	ackDelay   = 50 * time.Millisecond // what was received is acknowledged after so long
	batchFor   = 2 * time.Millisecond  // output in a burst waits so long for more
	closeLimit = time.Second           // for the last frames to leave

	lookEvery    = 500 * time.Millisecond
	idlePing     = 10 * time.Second // the dialling end asks after so long without a frame
	suspectAfter = 3 * time.Second  // an unanswered transport gets a rival
	pokePatience = 250 * time.Millisecond
	suspectMost  = 24 * time.Second
)

var (
	// ErrGone says that no transport came for the time that was set.
	ErrGone = errors.New("the other end did not come back in time")

	// ErrLost says that a transport was lost before the other end had said a word.
	ErrLost = errors.New("the connection was lost before the other end answered")

	// ErrOld says that the other end does not know this package.
	ErrOld = errors.New("the other end is older than sessions that survive")

	// ErrDetached is the end that Detach makes.
	ErrDetached = errors.New("detached")

	errClosed   = errors.New("pipe is closed")
	errReplaced = errors.New("a newer transport has taken over")
)

// Refused is the answering end's no. No other transport will change it.
type Refused struct{ Message string }

func (r *Refused) Error() string { return r.Message }

// Closed is how the other end closed the pipe; Message may be empty.
type Closed struct{ Message string }

func (c *Closed) Error() string {
	if c.Message == "" {
		return "the other end has closed"
	}
	return c.Message
}

// final marks an error of Dial that no other try will change.
type final struct{ error }

func (f final) Unwrap() error { return f.error }

// Final marks err as one that no other try will change.
func Final(err error) error { return final{err} }

func isFinal(err error) bool {
	var f final
	var r *Refused
	return errors.As(err, &f) || errors.As(err, &r)
}

func appendHead(b []byte, kind byte, n int) []byte {
	return binary.BigEndian.AppendUint32(append(b, kind), uint32(n))
}

func appendNumber(b []byte, kind byte, n uint64) []byte {
	return binary.BigEndian.AppendUint64(appendHead(b, kind, numBytes), n)
}

func appendText(b []byte, kind byte, text string) []byte {
	text = text[:min(len(text), maxText)]
	return append(appendHead(b, kind, len(text)), text...)
}

// number reads the number that payload begins with, and what is after it.
func number(payload []byte) (n uint64, rest []byte, err error) {
	if len(payload) < numBytes {
		return 0, nil, errors.New("a number is cut off")
	}
	return binary.BigEndian.Uint64(payload), payload[numBytes:], nil
}
