package rdp

import (
	"encoding/binary"
	"fmt"
)

// X.224 units of the negotiation and what they carry, MS-RDPBCGR 2.2.1.1 and
// 2.2.1.2: after the TPKT a length, the code, two references and a class; a
// request has a cookie line next; then eight bytes: type, flags, length 8 (both
// ends little endian) and the protocols.
const (
	codeRequest = 0xe0
	codeConfirm = 0xd0

	typeRequest  = 1
	typeResponse = 2
	typeFailure  = 3

	protocolRDP    = 0
	protocolTLS    = 1
	protocolHybrid = 2

	negotiationSize = 8
	x224Head        = tpktHead + 7
)

// checkRequest says whether p is a whole Connection Request.
func checkRequest(p []byte) error {
	if len(p) < x224Head || p[0] != tpktVersion || int(binary.BigEndian.Uint16(p[2:])) != len(p) || p[5]&0xf0 != codeRequest {
		return fmt.Errorf("%w: no X.224 Connection Request", errUnreadable)
	}
	return nil
}

// negotiated returns the protocols of a request, or the one of a response.
func negotiated(p []byte, kind byte) (protocols uint32, ok bool) {
	if len(p) < x224Head+negotiationSize {
		return 0, false
	}
	n := p[len(p)-negotiationSize:]
	if n[0] != kind || n[2] != negotiationSize || n[3] != 0 {
		return 0, false
	}
	return binary.LittleEndian.Uint32(n[4:]), true
}

// selected returns the protocol that the server chose; one that chose none, or
// refuses, is protocolRDP.
func selected(confirm []byte) (uint32, error) {
	if len(confirm) < x224Head || confirm[5]&0xf0 != codeConfirm {
		return 0, fmt.Errorf("%w: no X.224 Connection Confirm", errUnreadable)
	}
	chosen, _ := negotiated(confirm, typeResponse)
	return chosen, nil
}
