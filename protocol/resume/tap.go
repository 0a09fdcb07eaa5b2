package resume

import (
	"errors"
	"fmt"
	"sync"

	"github.com/remotegpu/remotegpu/protocol"
)

// Tap sees the bytes of one direction of a pipe, once and in order, at a place
// that all its transports go through.
type Tap struct {
	see func(p []byte) error

	mu     sync.Mutex // guards what follows
	next   uint64     // number of the byte that comes next
	agreed bool       // hello was seen
	err    error
}

// NewTap returns a tap of a pipe that has carried nothing yet. It calls see
// with what passes; p is valid until see returns. After an error see is not
// called again.
func NewTap(see func(p []byte) error) *Tap { return &Tap{see: see} }

// NewTapAt returns a tap of a pipe that another one has seen up to byte next.
func NewTapAt(next uint64, see func(p []byte) error) *Tap {
	return &Tap{see: see, next: next, agreed: true}
}

// ErrStopped is the error of a tap after Stop.
var ErrStopped = errors.New("the tap of a pipe has been stopped")

// Stop lets nothing pass any more, and returns the number of the byte that
// would come next.
func (t *Tap) Stop() uint64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.err == nil {
		t.err = ErrStopped
	}
	return t.next
}

// Err returns the error of see, or that the tap has missed something.
func (t *Tap) Err() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.err
}

// Agreed reports whether the answering end, seen by the tap, has accepted any
// transport.
func (t *Tap) Agreed() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.agreed
}

// Transport returns where the bytes of a new transport are shown, as they are.
// Its error is that of Err.
func (t *Tap) Transport() func(p []byte) error {
	var head []byte // of a data frame, until its number is whole
	var at uint64
	frames := protocol.FrameTap{See: func(kind protocol.FrameType, piece []byte, last bool) {
		if byte(kind) != frameData {
			t.agreed = t.agreed || byte(kind) == frameHello
			return
		}
		if missing := numBytes - len(head); missing > 0 {
			n := min(missing, len(piece))
			head, piece = append(head, piece[:n]...), piece[n:]
			if len(head) == numBytes {
				at, _, _ = number(head) // it is long enough
			}
		}
		if len(piece) > 0 {
			t.take(at, piece)
			at += uint64(len(piece))
		}
		if last {
			head = head[:0]
		}
	}}
	return func(p []byte) error {
		t.mu.Lock()
		defer t.mu.Unlock()
		frames.Take(p)
		return t.err
	}
}

// take needs mu.
func (t *Tap) take(at uint64, p []byte) {
	switch {
	case at > t.next && t.err == nil:
		t.err = fmt.Errorf("bytes %d to %d of a pipe went by another way", t.next, at)
	case t.err != nil, at+uint64(len(p)) <= t.next: // an older transport brought it
	default:
		t.err = t.see(p[t.next-at:])
		t.next = at + uint64(len(p))
	}
}
