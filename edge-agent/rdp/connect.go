package rdp

import (
	"bytes"
	"encoding/binary"
	"fmt"
)

// Blocks of the MCS Connect units, MS-RDPBCGR 2.2.1.3 and 2.2.1.4: each has a
// type and a length (little endian), which counts these four bytes.
const (
	clientCore = 0xc001
	clientNet  = 0xc003
	serverNet  = 0x0c03
)

// Keys before the blocks (T.124): whom the conference is of.
var (
	clientKey = []byte("Duca")
	serverKey = []byte("McDn")
)

// blocks calls fn with the blocks after key. The slices are parts of p.
func blocks(p, key []byte, fn func(kind uint16, block []byte)) error {
	i := bytes.Index(p, key)
	if i < 0 || bytes.Contains(p[i+1:], key) { // a second one may be the one that counts
		return fmt.Errorf("%w: no MCS Connect", errUnreadable)
	}
	_, rest, ok := perLength(p[i+len(key):])
	for len(rest) >= 4 {
		n := int(binary.LittleEndian.Uint16(rest[2:]))
		if n < 4 || n > len(rest) {
			ok = false
			break
		}
		fn(binary.LittleEndian.Uint16(rest), rest[:n])
		rest = rest[n:]
	}
	if !ok || len(rest) != 0 {
		return fmt.Errorf("%w: a block of MCS Connect is cut", errUnreadable)
	}
	return nil
}

// perLength reads a length determinant of PER (X.691, 11.9): one byte, or two
// with the high bit set.
func perLength(p []byte) (n int, rest []byte, ok bool) {
	switch {
	case len(p) > 0 && p[0]&0x80 == 0:
		return int(p[0]), p[1:], true
	case len(p) > 1 && p[0]&0xc0 == 0x80:
		return int(binary.BigEndian.Uint16(p) & 0x3fff), p[2:], true
	}
	return 0, nil, false
}

// putPERLength appends n in two bytes.
func putPERLength(p []byte, n int) []byte {
	return binary.BigEndian.AppendUint16(p, uint16(n)|0x8000)
}

// clipboardChannel is the name of the clipboard's static channel, and
// hiddenChannel what it is called where nothing may be copied: the numbers of
// the channels stay, and no server knows that one.
const (
	clipboardChannel = "cliprdr\x00"
	hiddenChannel    = "rgnone0\x00"
	channelEntry     = 12 // bytes: name and options
)

// Offsets in the client's core block and what xrdp 0.9 needs there, to send
// true colour as RemoteFX, and to resize.
const (
	coreLayout          = 16 // keyboardLayout
	coreBuild           = 20 // clientBuild
	coreHighColor       = 140
	coreSupportedColors = 142
	coreEarly           = 144 // earlyCapabilityFlags

	build11         = 22621
	trueColor       = 24
	supports32Bit   = 8
	wants32BitEarly = 2
)

// connectInitial changes the client's MCS Connect Initial in place and returns
// which of its channels is the clipboard's, -1 for none.
func (s *Session) connectInitial(p []byte, hideClipboard bool) (clipboard int, err error) {
	clipboard = -1
	lists, clipboards := 0, 0
	err = blocks(p, clientKey, func(kind uint16, block []byte) {
		switch kind {
		case clientCore:
			s.patchCore(block)
		case clientNet:
			lists++
			for i := 0; 8+(i+1)*channelEntry <= len(block); i++ {
				name := block[8+i*channelEntry:][:len(clipboardChannel)]
				if !bytes.EqualFold(name, []byte(clipboardChannel)) {
					continue
				}
				clipboard = i
				clipboards++
				if hideClipboard {
					copy(name, hiddenChannel)
				}
			}
		}
	})
	if err == nil && (lists > 1 || clipboards > 1) { // which of them counts, the server decides
		err = fmt.Errorf("%w: the client lists its channels twice", errUnreadable)
	}
	return clipboard, err
}

func (s *Session) patchCore(block []byte) {
	if s.req.Layout != 0 && len(block) >= coreLayout+4 {
		binary.LittleEndian.PutUint32(block[coreLayout:], s.req.Layout)
	}
	if !s.xrdp || len(block) < coreEarly+2 {
		return
	}
	binary.LittleEndian.PutUint32(block[coreBuild:], build11)
	binary.LittleEndian.PutUint16(block[coreHighColor:], trueColor)
	block[coreSupportedColors] |= supports32Bit
	block[coreEarly] |= wants32BitEarly
}

// channelIDs reads which numbers the server gives to the main channel and to
// those that the client asked for.
func channelIDs(p []byte) (main uint16, others []uint16, err error) {
	err = blocks(p, serverKey, func(kind uint16, block []byte) {
		if kind != serverNet || len(block) < 8 {
			return
		}
		main = binary.LittleEndian.Uint16(block[4:])
		n := int(binary.LittleEndian.Uint16(block[6:]))
		for i := 0; i < n && 8+(i+1)*2 <= len(block); i++ {
			others = append(others, binary.LittleEndian.Uint16(block[8+i*2:]))
		}
	})
	if err == nil && main == 0 {
		err = fmt.Errorf("%w: the server names no main channel", errUnreadable)
	}
	return main, others, err
}
