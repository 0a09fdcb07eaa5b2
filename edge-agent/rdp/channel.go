package rdp

import (
	"encoding/binary"
	"fmt"
)

// MCS units that carry data (T.125, 7): after the X.224 data header the choice
// in the upper six bits, who sends, the channel (big endian), a byte of
// priority and segmentation, and the length of the data.
const (
	sendRequest    = 25 << 2 // from the client
	sendIndication = 26 << 2 // from the server
	allOfIt        = 0x70    // high priority, first and last segment
)

// message is what a unit carries on a channel.
type message struct {
	choice  byte
	sender  uint16
	channel uint16
	data    []byte // a part of the unit
}

// readable fails on a unit with data that parseMessage does not understand and
// a server may: servers differ in what they overlook.
func readable(unit []byte) error {
	if len(unit) <= dataHead || !hasPrefixAt(unit, tpktHead, 2, 0xf0, 0x80) {
		return fmt.Errorf("%w: a unit without an X.224 data header", errUnreadable)
	}
	choice := unit[dataHead] &^ 3
	if _, ok := parseMessage(unit); choice == sendIndication || choice == sendRequest && !ok {
		return fmt.Errorf("%w: a unit with data on no channel", errUnreadable)
	}
	return nil
}

// parseMessage returns what unit carries; false for units of other kinds.
func parseMessage(unit []byte) (m message, ok bool) {
	if len(unit) < dataHead+7 || !hasPrefixAt(unit, tpktHead, 2, 0xf0, 0x80) {
		return m, false
	}
	p := unit[dataHead:]
	m = message{choice: p[0] &^ 3, sender: binary.BigEndian.Uint16(p[1:]), channel: binary.BigEndian.Uint16(p[3:])}
	if m.choice != sendRequest && m.choice != sendIndication {
		return m, false
	}
	n, data, ok := perLength(p[6:])
	if !ok || n > len(data) {
		return m, false
	}
	m.data = data[:n]
	return m, true
}

// unit makes the TPKT that carries m. Data is at most 16,383 bytes.
func (m message) unit() []byte {
	p := []byte{tpktVersion, 0, 0, 0, 2, 0xf0, 0x80, m.choice}
	p = binary.BigEndian.AppendUint16(p, m.sender)
	p = binary.BigEndian.AppendUint16(p, m.channel)
	p = append(putPERLength(append(p, allOfIt), len(m.data)), m.data...)
	binary.BigEndian.PutUint16(p[2:], uint16(len(p)))
	return p
}
