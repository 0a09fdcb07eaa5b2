package sshd

import (
	"bytes"
	"encoding/binary"
	"net"
	"slices"
	"testing"
)

// sent notes what each write brings.
type sent struct {
	net.Conn
	writes [][]byte
}

func (s *sent) Write(p []byte) (int, error) {
	s.writes = append(s.writes, bytes.Clone(p))
	return len(p), nil
}

// TestPackets: nothing of a packet leaves before all of it is there, nothing
// stays behind, and what is no packet passes.
func TestPackets(t *testing.T) {
	packet := func(n int) []byte {
		return append(binary.BigEndian.AppendUint32(nil, uint32(n)), bytes.Repeat([]byte{byte(n)}, n+packetTag)...)
	}
	small, large, odd := packet(32), packet(32<<10), packet(4096-packetHead-packetTag)
	for _, tt := range []struct {
		name   string
		pieces [][]byte
		left   []int // bytes that are on the wire after each piece
	}{
		{"small", [][]byte{small, small}, []int{len(small), 2 * len(small)}},
		{"large", [][]byte{large[:4096], large[4096:], small}, []int{0, len(large), len(large) + len(small)}},
		{"in three", [][]byte{large[:4096], large[4096:8192], large[8192:]}, []int{0, 0, len(large)}},
		{"as long as a piece", [][]byte{odd, small}, []int{len(odd), len(odd) + len(small)}},
		{"none", [][]byte{bytes.Repeat([]byte{255}, 4096), []byte("x")}, []int{4096, 4097}},
	} {
		var w packets
		c := &sent{}
		for i, p := range tt.pieces {
			if n, err := w.write(c, p); n != len(p) || err != nil {
				t.Fatalf("%s: %d, %v", tt.name, n, err)
			}
			if got := len(slices.Concat(c.writes...)); got != tt.left[i] {
				t.Errorf("%s: after piece %d, %d bytes are on the wire, want %d", tt.name, i, got, tt.left[i])
			}
		}
		if !bytes.Equal(slices.Concat(c.writes...), slices.Concat(tt.pieces...)) {
			t.Errorf("%s: other bytes arrive", tt.name)
		}
	}
}
