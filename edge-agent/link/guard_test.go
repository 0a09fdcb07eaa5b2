package link

import (
	"bytes"
	"io"
	"net"
	"testing"
)

type fixed struct {
	net.Conn
	io.Reader
}

func (f fixed) Read(p []byte) (int, error) { return f.Reader.Read(p) }

func packet(kind byte, n int) []byte {
	b := []byte{kind}
	for length := n; ; {
		c := byte(length & 0x7f)
		length >>= 7
		if length > 0 {
			b = append(b, c|0x80)
			continue
		}
		b = append(b, c)
		break
	}
	return append(b, bytes.Repeat([]byte{kind}, n)...)
}

func TestGuardSwallowsLargePackets(t *testing.T) {
	var in, want []byte
	var swallowed []int
	for _, n := range []int{0, 1, 127, 128, 20_000, maxPacket, maxPacket + 1, 2, 5 << 20, 3} {
		p := packet(0x30, n)
		in = append(in, p...)
		if n <= maxPacket {
			want = append(want, p...)
		}
	}
	g := newGuard(fixed{Reader: bytes.NewReader(in)}, func(n int) { swallowed = append(swallowed, n) })
	got, err := io.ReadAll(g)
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("read %d bytes of %d, %v", len(got), len(want), err)
	}
	if len(swallowed) != 2 || swallowed[0] != maxPacket+1 || swallowed[1] != 5<<20 {
		t.Errorf("swallowed %v", swallowed)
	}
}

func FuzzGuard(f *testing.F) {
	f.Add(packet(0x30, 5))
	f.Add([]byte{0x30, 0xff, 0xff, 0xff, 0xff, 1})
	f.Add([]byte{0x30, 0xff, 0xff, 0xff, 0x7f})
	f.Fuzz(func(t *testing.T, in []byte) {
		g := newGuard(fixed{Reader: bytes.NewReader(in)}, func(int) {})
		out, _ := io.ReadAll(g)
		if len(out) > len(in) {
			t.Fatalf("%d bytes from %d", len(out), len(in))
		}
	})
}
