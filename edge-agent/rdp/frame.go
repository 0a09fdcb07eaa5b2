package rdp

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"io"
)

// Sizes of frames. TPKT: version 3, a zero, the length with these four bytes
// (RFC 1006, 6).
const (
	tpktHead    = 4
	tpktVersion = 3
	dataHead    = 7 // TPKT and the X.224 data header, 02 f0 80
)

// readTPKT reads one TPKT of at most most bytes, without reading more.
func readTPKT(r io.Reader, most int) ([]byte, error) {
	var head [tpktHead]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return nil, err
	}
	n := int(binary.BigEndian.Uint16(head[2:]))
	if head[0] != tpktVersion || n < tpktHead || n > most {
		return nil, fmt.Errorf("%w: % x is no TPKT of up to %d bytes", errUnreadable, head, most)
	}
	p := append(head[:], make([]byte, n-tpktHead)...)
	_, err := io.ReadFull(r, p[tpktHead:])
	return p, err
}

// frames reads the units of a direction: TPKTs, fast-path units and, before
// the first TPKT, those of CredSSP.
type frames struct {
	r     *bufio.Reader
	buf   []byte
	began bool // a TPKT has come: CredSSP is over
}

func newFrames(r io.Reader) *frames { return &frames{r: bufio.NewReaderSize(r, 64<<10)} }

// next returns the next unit; it is valid until the call after.
func (f *frames) next() (unit []byte, err error) {
	head, err := f.r.Peek(1)
	if err != nil {
		return nil, err
	}
	n, err := f.length(head[0])
	if err != nil {
		return nil, err
	}
	if cap(f.buf) < n {
		f.buf = make([]byte, max(n, 64<<10))
	}
	unit = f.buf[:n]
	if _, err = io.ReadFull(f.r, unit); err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return unit, err
}

// more reports whether a part of the next unit is here already.
func (f *frames) more() bool { return f.r.Buffered() > 0 }

func (f *frames) length(first byte) (int, error) {
	switch {
	case first == tpktVersion:
		f.began = true
		head, err := f.peek(tpktHead)
		if err != nil {
			return 0, err
		}
		return checkedLength(int(binary.BigEndian.Uint16(head[2:])), tpktHead)
	case !f.began && first == derSequence:
		return f.derLength()
	case f.began && first&3 == 0:
		return f.fastLength()
	}
	return 0, fmt.Errorf("%w: a unit begins with %#x", errUnreadable, first)
}

// fastLength is that of a fast-path unit, MS-RDPBCGR 2.2.8.1.2 and 2.2.9.1.2.
func (f *frames) fastLength() (int, error) {
	head, err := f.peek(2)
	if err != nil {
		return 0, err
	}
	if head[1]&0x80 == 0 {
		return checkedLength(int(head[1]), 2)
	}
	if head, err = f.peek(3); err != nil {
		return 0, err
	}
	return checkedLength(int(head[1]&0x7f)<<8|int(head[2]), 3)
}

const (
	derSequence = 0x30
	maxCredSSP  = 64 << 10
)

// derLength is that of a CredSSP message, which is a DER SEQUENCE.
func (f *frames) derLength() (int, error) {
	head, err := f.peek(4)
	if err != nil {
		return 0, err
	}
	switch n := head[1]; {
	case n < 0x80:
		return 2 + int(n), nil
	case n == 0x81:
		return 3 + int(head[2]), nil
	case n == 0x82:
		return checkedLength(4+int(binary.BigEndian.Uint16(head[2:])), 4)
	}
	return 0, fmt.Errorf("%w: a CredSSP message of over %d bytes", errUnreadable, maxCredSSP)
}

func (f *frames) peek(n int) ([]byte, error) {
	head, err := f.r.Peek(n)
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return head, err
}

func checkedLength(n, least int) (int, error) {
	if n < least {
		return 0, fmt.Errorf("%w: a unit of %d bytes", errUnreadable, n)
	}
	return n, nil
}
