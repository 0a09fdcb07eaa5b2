// Package ahead saves SFTP round trips to the host for small files.
//
// It owns what passes between the two places where SFTP goes by, the gateway
// (Gateway) and the process that serves files (Host); who serves, and what, it
// leaves to them. Its invariant: the client gets the answers that it would get
// without, with two exceptions. The first write of a file, the size that it is given
// behind that, and the open of a new file beside one that was opened, written and
// closed with nothing between, may be answered before they are done, to a client that
// looks at what a close says: then an error of theirs is that of the close, which is
// always the host's. And a small file that is read and closed at once is what it was
// when it was opened. Host keeps a second one, with a gateway or not: what a client
// does not wait for is done as if it had.
//
//	client              gateway                               host
//	 | init ------------->|-- init, extension ----------------->|
//	 |<---------- version |<------------- version, extension ---|  both know it
//	 | open, to read ---->|------------------------------------>|
//	 |<----------- handle |<-- TypeData (all of it), handle ----|  as one write
//	 | read, to the end ->|                                     |
//	 | close ------------>|  kept until something else goes     |
//	 | open, to write --->|-- TypeQuietClose, open ------------>|  which is not answered when it is well
//	 |<----------- handle |<------------------------------------|
//	 | write ------------>|  kept, as above                     |
//	 |<-------------- ok  |                                     |
//	 | close ------------>|-- TypeQuietWrite, close ----------->|  as that
//	 |<----------- status |<-- TypeFailed, if so; status -------|
//	 | open, the next --->|  kept, as above                     |
//	 |<- a virtual handle |                                     |
//	 | write ------------>|  kept                               |
//	 |<-------------- ok  |                                     |
//	 | close ------------>|-- TypeQuietOpen, …Write, close ---->|  knows the handle by that name
//	 |<----------- status |<-- TypeFailed, if so; status -------|
package ahead

import (
	"bytes"
	"encoding/binary"
	"math"
	"strings"
)

// The extension by which both ends know that there are two.
const (
	extension = "ahead@remotegpu"
	revision  = "2"
)

// most is the longest message that is looked at, others pass; and so more than
// what is read or written ahead of a file.
const (
	most     = 16 << 10
	mostData = most - 1<<10
)

// Types of message of draft-ietf-secsh-filexfer-02.
const (
	typeInit     = 1
	typeVersion  = 2
	typeOpen     = 3
	typeClose    = 4
	typeRead     = 5
	typeWrite    = 6
	typeFstat    = 8
	typeFsetstat = 10
	typeRemove   = 13
	typeRmdir    = 15
	typeRename   = 18
	typeStatus   = 101
	typeHandle   = 102
	typeDataRead = 103
	typeExtended = 200
)

// Types of our own, between gateway and host alone.
const (
	TypeQuietWrite    = 210 // a write whose success is not told
	TypeQuietClose    = 211 // a close, as well
	TypeData          = 212 // id of an open, and as a string all that is in the file; before the handle
	TypeFailed        = 213 // something quiet has failed: a handle, and the fields of a status
	TypeQuietOpen     = 214 // an open, with the handle that its file is known by before its path
	TypeQuietFsetstat = 215 // as a write
)

// What the gateway keeps for a client.
const (
	maxKept  = 64 << 10 // bytes, for the host
	maxFiles = 64       // whose answers it has given, or may give
	maxOpen  = 8 << 10  // bytes of an open that it answers
)

// extensionSync asks for a file to be on the disk.
const extensionSync = "fsync@openssh.com"

const (
	virtualPrefix = "ahead-" // of the gateway's handles; those of the host's server are numbers
	maxHandle     = 256      // bytes, says the draft
	maxWhy        = 1 << 10  // bytes of what the server says of a failure
)

// QuietOpen returns the handle that a TypeQuietOpen gives its file, and the fields of
// the open, from what follows its id; not ok: it is none, and must open nothing.
func QuietOpen(rest []byte) (handle string, open []byte, ok bool) {
	in := &fields{rest: rest}
	handle = in.text()
	open = in.rest
	_ = in.text() // path
	flags := in.number()
	ok = !in.bad && isNew(flags) && len(handle) <= maxHandle && strings.HasPrefix(handle, virtualPrefix)
	return handle, open, ok
}

const (
	flagRead     = 1
	flagWrite    = 2
	flagAppend   = 4
	flagCreate   = 8
	flagTruncate = 16

	attributeSize = 1

	statusOK      = 0
	statusEOF     = 1
	statusFailure = 4

	headBytes = 9 // length, type, id
)

func kindOf(m []byte) byte { return m[4] }

func idOf(m []byte) uint32 { return binary.BigEndian.Uint32(m[5:]) }

// message returns a message of a type and id.
func message(kind byte, id uint32, fields ...[]byte) []byte {
	body := bytes.Join(fields, nil)
	m := binary.BigEndian.AppendUint32(nil, uint32(5+len(body)))
	m = binary.BigEndian.AppendUint32(append(m, kind), id)
	return append(m, body...)
}

func number(n uint32) []byte { return binary.BigEndian.AppendUint32(nil, n) }

func text(s string) []byte { return append(number(uint32(len(s))), s...) }

func status(id, code uint32) []byte {
	words := map[uint32]string{statusOK: "Success", statusEOF: "End of file"}
	return message(typeStatus, id, number(code), text(words[code]), text(""))
}

// isNew reports whether an open with these flags makes what is not there, to write.
func isNew(flags uint32) bool { return flags&^flagTruncate == flagWrite|flagCreate }

func isOK(m []byte) bool { return kindOf(m) == typeStatus && fieldsOf(m).number() == statusOK }

// fields reads what follows a message's id.
type fields struct {
	rest []byte
	bad  bool // something was missing
}

func fieldsOf(m []byte) *fields { return &fields{rest: m[headBytes:]} }

func (f *fields) take(n int) []byte {
	if n < 0 || n > len(f.rest) {
		f.bad, f.rest = true, nil
		return make([]byte, 8)[:min(max(n, 0), 8)]
	}
	b := f.rest[:n]
	f.rest = f.rest[n:]
	return b
}

func (f *fields) number() uint32 { return binary.BigEndian.Uint32(f.take(4)) }

func (f *fields) long() uint64 { return binary.BigEndian.Uint64(f.take(8)) }

func (f *fields) text() string { return string(f.take(int(f.number()))) }

// splitter finds messages in a stream of bytes.
type splitter struct {
	part []byte // of a message that is looked at
	pass int    // bytes that are still to come of one that is not
}

// take calls whole for each message, and piece for the parts of those that are
// too long for that; last says that it ends there.
func (s *splitter) take(p []byte, whole func(m []byte), piece func(p []byte, last bool)) {
	for len(p) > 0 {
		if s.pass > 0 {
			n := min(s.pass, len(p))
			s.pass -= n
			piece(p[:n], s.pass == 0)
			p = p[n:]
			continue
		}
		if missing := 5 - len(s.part); missing > 0 {
			n := min(missing, len(p))
			s.part = append(s.part, p[:n]...)
			p = p[n:]
			if len(s.part) < 5 {
				return
			}
		}
		size := 4 + int(binary.BigEndian.Uint32(s.part))
		if size > most || size < headBytes {
			s.pass = size - len(s.part)
			if size < headBytes { // it is no message, nor is anything after it
				s.pass = math.MaxInt
			}
			piece(s.part, s.pass == 0)
			s.part = s.part[:0]
			continue
		}
		n := min(size-len(s.part), len(p))
		s.part = append(s.part, p[:n]...)
		p = p[n:]
		if len(s.part) == size {
			whole(s.part)
			s.part = s.part[:0]
		}
	}
}
