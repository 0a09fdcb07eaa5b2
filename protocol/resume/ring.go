package resume

import "sync"

// ring is a queue of at most Window bytes that grows as needed and lets go of
// much memory when it is empty.
type ring struct {
	buf   []byte
	start int
	n     int
}

const (
	ringLeast = 4 << 10
	ringOwn   = 16 << 10  // an empty ring keeps no more
	ringLent  = 256 << 10 // what it needs above that is lent from a pool: so much, or Window
)

// A bulk stream fills and drains its rings many times a second.
var (
	lent    = sync.Pool{New: func() any { return new([ringLent]byte) }}
	windows = sync.Pool{New: func() any { return new([Window]byte) }}
)

func (r *ring) len() int { return r.n }

// push appends p.
func (r *ring) push(p []byte) {
	if len(p) == 0 {
		return
	}
	if r.n+len(p) > len(r.buf) {
		r.grow(r.n + len(p))
	}
	end := (r.start + r.n) % len(r.buf)
	copied := copy(r.buf[end:], p)
	copy(r.buf, p[copied:])
	r.n += len(p)
}

func (r *ring) grow(least int) {
	var grown []byte
	switch {
	case least > ringLent:
		grown = windows.Get().(*[Window]byte)[:]
	case least > ringOwn:
		grown = lent.Get().(*[ringLent]byte)[:]
	default:
		size := max(ringLeast, len(r.buf))
		for size < least {
			size *= 2
		}
		grown = make([]byte, size)
	}
	r.peek(0, grown[:r.n])
	r.release()
	r.buf, r.start = grown, 0
}

// release gives back a buffer that was lent.
func (r *ring) release() {
	switch len(r.buf) {
	case Window:
		windows.Put((*[Window]byte)(r.buf))
	case ringLent:
		lent.Put((*[ringLent]byte)(r.buf))
	default:
		return
	}
	r.buf = nil
}

// peek fills p from the byte at offset on; there must be as many.
func (r *ring) peek(offset int, p []byte) {
	if len(p) == 0 {
		return
	}
	from := (r.start + offset) % len(r.buf)
	copied := copy(p, r.buf[from:])
	copy(p[copied:], r.buf)
}

// drop takes the first n away.
func (r *ring) drop(n int) {
	r.n -= n
	if r.n > 0 {
		r.start = (r.start + n) % len(r.buf)
		return
	}
	r.start = 0
	r.release()
}
