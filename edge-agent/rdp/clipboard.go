package rdp

import (
	"encoding/binary"

	"github.com/remotegpu/remotegpu/protocol"
)

// A channel's chunk has a total length and flags of four bytes each, MS-RDPBCGR
// 2.2.6.1; the clipboard's messages begin with type and flags of two bytes each
// and a length of four, MS-RDPECLIP 2.2.1.
const (
	chunkHead = 8
	clipHead  = 8

	chunkFirst      = 1
	chunkLast       = 2
	chunkCompressed = 0x200000

	clipFormats         = 2 // what there is to be had
	clipFormatsResponse = 3
	clipDataRequest     = 4
	clipDataResponse    = 5
	clipFileRequest     = 8
	clipFileResponse    = 9

	clipOK   = 1
	clipFail = 2
)

// gives are the messages by which a side gives what it has copied, takes those
// by which it takes what the other has.
var (
	gives = map[uint16]bool{clipFormats: true, clipDataResponse: true, clipFileResponse: true}
	takes = map[uint16]bool{clipDataRequest: true, clipFileRequest: true}
)

// direction is one way through the clipboard's channel.
type direction struct {
	mayGive, mayTake bool
	passing          bool // the rest of a message whose first chunk has passed
}

func toHost(policy string) direction {
	return direction{
		mayGive: policy == protocol.ClipboardBoth || policy == protocol.ClipboardToHost,
		mayTake: policy == protocol.ClipboardBoth || policy == protocol.ClipboardFromHost,
	}
}

func fromHost(policy string) direction {
	d := toHost(policy)
	return direction{mayGive: d.mayTake, mayTake: d.mayGive}
}

// pass says whether a chunk may go on. Answer, if any, is a chunk for who sent
// it: both sides wait for answers, whether or not the other got the question.
func (d *direction) pass(chunk []byte) (ok bool, answer []byte) {
	if d.mayGive && d.mayTake {
		return true, nil
	}
	if len(chunk) < chunkHead {
		return false, nil
	}
	flags := binary.LittleEndian.Uint32(chunk[4:])
	if flags&chunkFirst != 0 {
		var drop bool
		drop, answer = d.judge(chunk[chunkHead:], flags)
		d.passing = !drop
	}
	ok = d.passing
	if flags&chunkLast != 0 {
		d.passing = false
	}
	return ok, answer
}

// judge says whether a message is dropped; one that cannot be read is.
func (d *direction) judge(m []byte, flags uint32) (drop bool, answer []byte) {
	if flags&chunkCompressed != 0 || len(m) < clipHead {
		return true, nil
	}
	kind := binary.LittleEndian.Uint16(m)
	switch {
	case gives[kind] && !d.mayGive:
		if kind == clipFormats {
			answer = clipMessage(clipFormatsResponse, clipOK)
		}
		return true, answer
	case takes[kind] && !d.mayTake:
		if kind == clipDataRequest {
			answer = clipMessage(clipDataResponse, clipFail)
		}
		return true, answer
	}
	return false, nil
}

// clipMessage is a chunk with a message that has no body.
func clipMessage(kind, flags uint16) []byte {
	p := binary.LittleEndian.AppendUint32(nil, clipHead)
	p = binary.LittleEndian.AppendUint32(p, chunkFirst|chunkLast)
	p = binary.LittleEndian.AppendUint16(p, kind)
	p = binary.LittleEndian.AppendUint16(p, flags)
	return append(p, 0, 0, 0, 0)
}
