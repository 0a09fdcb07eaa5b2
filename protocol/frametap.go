package protocol

import "encoding/binary"

// FrameTap sees what passes in a stream of frames. It is not safe for
// concurrent use.
type FrameTap struct {
	// See gets the payload of a frame in pieces, as it passes; last says that
	// the frame is whole with this one.
	See  func(t FrameType, piece []byte, last bool)
	head [5]byte
	got  int // bytes of head
	left int // bytes of the payload
	lost bool
}

// FramePlace is where in a stream of frames a tap stands.
type FramePlace struct {
	Head []byte `json:"head"` // of the frame under way, as far as it has come
	Left int    `json:"left"` // bytes of its payload that have not come; 0 with a whole head: between frames
	Lost bool   `json:"lost,omitempty"`
}

// Place returns where f stands.
func (f *FrameTap) Place() FramePlace {
	got := f.got
	if got == len(f.head) && f.left == 0 {
		got = 0
	}
	return FramePlace{append([]byte{}, f.head[:got]...), f.left, f.lost}
}

// StandAt lets f go on at the place of another tap. One that cannot be is lost.
func (f *FrameTap) StandAt(p FramePlace) {
	f.got, f.left = copy(f.head[:], p.Head), p.Left
	f.lost = p.Lost || len(p.Head) > len(f.head) || p.Left < 0 || p.Left > MaxFrame || p.Left > 0 && len(p.Head) < len(f.head)
}

// Take takes the next bytes. What is no frame is not seen, nor what follows it.
func (f *FrameTap) Take(p []byte) {
	for len(p) > 0 && !f.lost {
		if f.got < len(f.head) {
			n := copy(f.head[f.got:], p)
			f.got += n
			p = p[n:]
			if f.got < len(f.head) {
				return
			}
			size := binary.BigEndian.Uint32(f.head[1:])
			f.lost = size > MaxFrame
			f.left = int(size)
			if f.left == 0 && !f.lost {
				f.piece(nil)
			}
			continue
		}
		n := min(f.left, len(p))
		f.left -= n
		f.piece(p[:n])
		p = p[n:]
	}
}

func (f *FrameTap) piece(p []byte) {
	last := f.left == 0
	if last {
		f.got = 0
	}
	f.See(FrameType(f.head[0]), p, last)
}
