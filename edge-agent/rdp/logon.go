package rdp

import (
	"encoding/binary"
	"unicode/utf16"
)

// The client's info unit, MS-RDPBCGR 2.2.1.11: four bytes of security flags;
// code page and flags of four bytes each; five lengths of texts without their
// closing zero; the texts (domain, user, password, shell, folder); and more.
const (
	securityInfo = 0x40 // SEC_INFO_PKT

	infoFixed     = 4 + 4 + 4 + 5*2
	infoFlagsAt   = 8
	infoLengthsAt = 12
	infoAutologon = 0x8
	infoUnicode   = 0x10
	infoTexts     = 5
)

// clientInfo returns data with the flag without which xrdp asks for a password
// that it has, and with l's credentials unless l is zero. False means that data
// is no such unit.
func clientInfo(data []byte, l Login, autologon bool) (changed []byte, ok bool) {
	if len(data) < infoFixed || binary.LittleEndian.Uint16(data)&securityInfo == 0 {
		return data, false
	}
	flags := binary.LittleEndian.Uint32(data[infoFlagsAt:])
	if flags&infoUnicode == 0 {
		return data, false
	}
	texts, rest, ok := infoStrings(data)
	if !ok {
		return data, false
	}
	if l != (Login{}) {
		texts[0], texts[1], texts[2] = nil, encode(l.User), encode(l.Password)
	}
	if autologon || l != (Login{}) {
		flags |= infoAutologon
	}
	changed = append(changed, data[:infoFlagsAt]...)
	changed = binary.LittleEndian.AppendUint32(changed, flags)
	for _, t := range texts {
		changed = binary.LittleEndian.AppendUint16(changed, uint16(len(t)))
	}
	for _, t := range texts {
		changed = append(append(changed, t...), 0, 0)
	}
	return append(changed, rest...), true
}

func infoStrings(data []byte) (texts [infoTexts][]byte, rest []byte, ok bool) {
	rest = data[infoFixed:]
	for i := range texts {
		n := int(binary.LittleEndian.Uint16(data[infoLengthsAt+2*i:]))
		if n+2 > len(rest) {
			return texts, nil, false
		}
		texts[i], rest = rest[:n], rest[n+2:]
	}
	return texts, rest, true
}

func encode(text string) (p []byte) {
	for _, u := range utf16.Encode([]rune(text)) {
		p = binary.LittleEndian.AppendUint16(p, u)
	}
	return p
}
