// Package scrollback keeps the last bytes that a program has written to its
// terminal, for people who come later or cannot keep up.
//
// It owns the ring and the filter through which it, or a recording, is shown; who
// sees it stands with its users. Its invariant: what went through a Filter makes no
// terminal answer, sound or change its clipboard.
package scrollback

import "bytes"

// Size is how many bytes are kept.
const Size = 256 << 10

// Buffer holds the last Size bytes of a stream. Positions count from its
// beginning.
type Buffer struct {
	ring []byte // grows up to Size
	end  uint64
}

// Write adds p; it never fails.
func (b *Buffer) Write(p []byte) (int, error) {
	n := len(p)
	if len(p) > Size {
		b.end += uint64(len(p) - Size)
		p = p[len(p)-Size:]
	}
	if room := Size - len(b.ring); room > 0 {
		first := p[:min(len(p), room)]
		b.ring = append(b.ring, first...)
		b.end += uint64(len(first))
		p = p[len(first):]
	}
	for len(p) > 0 {
		copied := copy(b.ring[b.end%Size:], p)
		b.end += uint64(copied)
		p = p[copied:]
	}
	return n, nil
}

// End is the position after the last byte.
func (b *Buffer) End() uint64 { return b.end }

// Start is the first position from which a terminal can be fed: the beginning
// of the stream or, when that is gone, of a line.
func (b *Buffer) Start() uint64 {
	first := b.end - uint64(len(b.ring))
	if first == 0 {
		return 0
	}
	var head [4096]byte
	n, _, _ := b.Read(first, head[:])
	if i := bytes.IndexByte(head[:n], '\n'); i >= 0 {
		return first + uint64(i) + 1
	}
	return first
}

// Read copies bytes from a position on, and returns the position after them;
// one that is gone is skipped to Start.
func (b *Buffer) Read(from uint64, p []byte) (n int, next uint64, skipped bool) {
	if from+uint64(len(b.ring)) < b.end {
		from, skipped = b.Start(), true
	}
	for n < len(p) && from < b.end {
		at := from % Size
		part := b.ring[at:min(uint64(len(b.ring)), at+b.end-from)]
		copied := copy(p[n:], part)
		n += copied
		from += uint64(copied)
	}
	return n, from, skipped
}
