package protocol

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"io"
	"sync"
)

// FrameType says what a frame carries: one byte of type, four bytes of length
// (big endian), payload. Both ends of a session write frames inside its
// StreamSession stream; a session is one program in a container, with or
// without a terminal.
//
//	client                                helper in the container
//	  | open (SessionOpen) ---------------->|
//	  | stdin*, resize*, signal*, eof ----->|
//	  |<------------------ stdout*, stderr* |
//	  |<-------------- exit (SessionExit) --|  always the last frame
//
// The agent reaches all streams of a workload through the socket of its helper;
// those of other kinds start there with their own header:
//
//	agent                                 helper in the container
//	  | stream (StreamHeader) ------------->|
//	  |<-------------- reply (StreamReply) -|  then what the kind says
type FrameType byte

// Frame types. Numbers never change their meaning.
const (
	FrameOpen   FrameType = 1 // SessionOpen, first
	FrameStdin  FrameType = 2
	FrameEOF    FrameType = 3 // end of stdin, no payload
	FrameResize FrameType = 4 // WindowSize
	FrameSignal FrameType = 5 // name without SIG, "INT"
	FrameStdout FrameType = 6
	FrameStderr FrameType = 7
	FrameExit   FrameType = 8 // SessionExit, last

	FrameStream   FrameType = 9  // StreamHeader
	FrameReply    FrameType = 10 // StreamReply
	FrameAccepted FrameType = 11 // Accepted
	FrameDatagram FrameType = 12 // one datagram, either way

	FrameAttach      FrameType = 13 // Attach, first; then package resume
	FrameQuery       FrameType = 14 // SessionQuery, first
	FrameSessions    FrameType = 15 // SessionList
	FrameCertificate FrameType = 16 // SSH host certificate; first on a StreamSSH, control → agent
)

// MaxFrame is the largest payload of a frame in bytes.
const MaxFrame = 64 << 10

// SessionOpen says what to run. With neither Command nor Args nor Subsystem
// it is the user's login shell.
type SessionOpen struct {
	Version int               `cbor:"1,keyasint"`
	Command string            `cbor:"2,keyasint,omitempty"` // for the shell's -c, as ssh sends it
	Args    []string          `cbor:"3,keyasint,omitempty"` // run as they are, without a shell
	Env     map[string]string `cbor:"4,keyasint,omitempty"`
	Term    string            `cbor:"5,keyasint,omitempty"` // TERM; empty: no terminal is made
	Size    WindowSize        `cbor:"6,keyasint"`
	User    string            `cbor:"7,keyasint,omitempty"` // empty: the container's

	Subsystem string `cbor:"8,keyasint,omitempty"` // one of the subsystems, instead of a command
	X11       *X11   `cbor:"9,keyasint,omitempty"` // a display of the client; nil: none
}

// SubsystemSFTP serves files.
const SubsystemSFTP = "sftp"

// X11 is how programs of a session show themselves to the client's display,
// which listens at TCP port 6000 + Display of the container's loopback.
type X11 struct {
	Display  uint16 `cbor:"1,keyasint"`
	Protocol string `cbor:"2,keyasint"` // of the authority file
	Cookie   []byte `cbor:"3,keyasint"`
}

// WindowSize is a terminal's size in characters and pixels.
type WindowSize struct {
	Cols   uint16 `cbor:"1,keyasint"`
	Rows   uint16 `cbor:"2,keyasint"`
	Width  uint16 `cbor:"3,keyasint,omitempty"`
	Height uint16 `cbor:"4,keyasint,omitempty"`
}

// SessionExit is how it ended.
type SessionExit struct {
	Version int    `cbor:"1,keyasint"`
	Code    int    `cbor:"2,keyasint"`           // exit status; 128 + signal number when Signal is set
	Signal  string `cbor:"3,keyasint,omitempty"` // name without SIG when a signal ended it
	Message string `cbor:"4,keyasint,omitempty"` // why nothing could be run, for a person
}

// Validate checks the request's limits.
func (o *SessionOpen) Validate() error {
	if o.Version != Version || len(o.Args) > 4096 || len(o.Env) > 1024 || tooLong(o.Term, o.User, o.Subsystem) {
		return fmt.Errorf("session request is of another version or over its limits")
	}
	if o.X11 != nil {
		return o.X11.Validate()
	}
	return nil
}

// Validate checks the display's limits.
func (x *X11) Validate() error {
	if tooLong(x.Protocol) || len(x.Cookie) > MaxLabel {
		return fmt.Errorf("display of a session is over its limits")
	}
	return nil
}

// frames are buffers for whole frames.
var frames = sync.Pool{New: func() any { return new([frameHead + MaxFrame]byte) }}

const frameHead = 5

// FrameRoom is how much room PutFrame needs before the payload.
const FrameRoom = frameHead

// PutFrame makes one frame of buf, whose payload begins at FrameRoom, without a
// copy. The payload is at most MaxFrame bytes.
func PutFrame(w io.Writer, t FrameType, buf []byte) error {
	if len(buf)-frameHead > MaxFrame {
		return fmt.Errorf("frame of %d bytes is over the limit of %d", len(buf)-frameHead, MaxFrame)
	}
	buf[0] = byte(t)
	binary.BigEndian.PutUint32(buf[1:], uint32(len(buf)-frameHead))
	_, err := w.Write(buf)
	return err
}

// WriteFrame writes one frame with a single Write. Payload is at most MaxFrame
// bytes.
func WriteFrame(w io.Writer, t FrameType, payload []byte) error {
	if len(payload) > MaxFrame {
		return fmt.Errorf("frame of %d bytes is over the limit of %d", len(payload), MaxFrame)
	}
	buf := frames.Get().(*[frameHead + MaxFrame]byte)
	defer frames.Put(buf)
	return PutFrame(w, t, buf[:frameHead+copy(buf[frameHead:], payload)])
}

// WriteDocument writes one frame whose payload is the encoding of v.
func WriteDocument(w io.Writer, t FrameType, v any) error {
	b, err := Marshal(v)
	if err != nil {
		return err
	}
	return WriteFrame(w, t, b)
}

// FrameReader reads frames. It is not safe for concurrent use.
type FrameReader struct {
	r   io.Reader
	in  *bufio.Reader // r, when it is one: what fits into it is not copied
	buf []byte        // for what does not
}

const smallFrame = 4 << 10

// NewFrameReader returns a reader of frames from r; r should be buffered.
func NewFrameReader(r io.Reader) *FrameReader {
	in, _ := r.(*bufio.Reader)
	return &FrameReader{r: r, in: in}
}

// Next returns the next frame; payload is valid until the call after. At the
// end between two frames the error is io.EOF, inside one io.ErrUnexpectedEOF.
func (f *FrameReader) Next() (t FrameType, payload []byte, err error) {
	var head [5]byte
	if _, err := io.ReadFull(f.r, head[:]); err != nil {
		return 0, nil, err
	}
	n := binary.BigEndian.Uint32(head[1:])
	if n > MaxFrame {
		return 0, nil, fmt.Errorf("frame of %d bytes is over the limit of %d", n, MaxFrame)
	}
	payload, err = f.payload(int(n))
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		return 0, nil, err
	}
	return FrameType(head[0]), payload, nil
}

func (f *FrameReader) payload(n int) ([]byte, error) {
	if f.in != nil && n <= f.in.Size() {
		b, err := f.in.Peek(n)
		_, _ = f.in.Discard(len(b)) // it is there
		return b, err
	}
	switch {
	case n <= len(f.buf):
	case n <= smallFrame:
		f.buf = make([]byte, smallFrame)
	default:
		f.buf = make([]byte, MaxFrame)
	}
	_, err := io.ReadFull(f.r, f.buf[:n])
	return f.buf[:n], err
}
