package sshd

import (
	"encoding/binary"
	"net"
)

// packets brings each packet of AES-GCM to a socket by one system call. The
// library's buffer is smaller than a packet of bulk: it brings the first 4 KiB
// apart, and each piece wakes the client.
type packets struct {
	held []byte // of the packet under way
}

const (
	packetHead = 4 // its length, in the clear (RFC 5647, 7.3)
	packetTag  = 16
	maxPacket  = 256 << 10 // the library's
)

func (w *packets) write(c net.Conn, p []byte) (int, error) {
	head, there := p, len(p)
	if len(w.held) > 0 {
		head, there = w.held, there+len(w.held)
	}
	if there < packetSize(head) {
		w.held = append(w.held, p...)
		return len(p), nil
	}
	if len(w.held) == 0 {
		return c.Write(p)
	}
	pieces := net.Buffers{w.held, p}
	_, err := pieces.WriteTo(c)
	w.held = w.held[:0]
	if err != nil {
		return 0, err
	}
	return len(p), nil
}

// packetSize is how long the packet is that begins with head; 0: it is none.
func packetSize(head []byte) int {
	if len(head) < packetHead {
		return 0
	}
	size := binary.BigEndian.Uint32(head)
	if size > maxPacket {
		return 0
	}
	return packetHead + int(size) + packetTag
}
