package link

import (
	"bufio"
	"errors"
	"io"
	"net"
	"sync"
	"time"

	"github.com/remotegpu/remotegpu/protocol"
)

// maxPacket is the largest MQTT packet that is read, in bytes: a document with
// its topic and properties.
const maxPacket = protocol.MaxPayload + 4<<10

// guard is an MQTT connection that swallows packets over maxPacket, so that a
// broker cannot make the agent hold what it will refuse anyway.
type guard struct {
	net.Conn
	sync.Mutex // held by the client while it writes a packet

	in       *bufio.Reader
	oversize func(bytes int)
	head     []byte // of the current packet, still to be handed on
	left     int    // bytes of the current packet behind head
}

func newGuard(conn net.Conn, oversize func(bytes int)) *guard {
	return &guard{Conn: conn, in: bufio.NewReaderSize(conn, 16<<10), oversize: oversize}
}

// Write gives up after a while, so that a peer that is gone cannot hold the
// client, which writes its pings here too.
func (g *guard) Write(p []byte) (int, error) {
	g.SetWriteDeadline(time.Now().Add(sayWithin))
	return g.Conn.Write(p)
}

// Read hands on the bytes of packets that are small enough.
func (g *guard) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	for len(g.head) == 0 && g.left == 0 {
		if err := g.next(); err != nil {
			return 0, err
		}
	}
	if len(g.head) > 0 {
		n := copy(p, g.head)
		g.head = g.head[n:]
		return n, nil
	}
	n, err := g.in.Read(p[:min(len(p), g.left)])
	g.left -= n
	return n, err
}

// next reads the fixed header of a packet: type, then the length of the rest in
// up to four bytes of seven bits, lowest first (MQTT 5, section 1.5.5).
func (g *guard) next() error {
	kind, err := g.in.ReadByte()
	if err != nil {
		return err
	}
	head := []byte{kind}
	length := 0
	for shift := 0; ; shift += 7 {
		if shift == 28 {
			return errors.New("broker sent a packet with a length of more than four bytes")
		}
		b, err := g.in.ReadByte()
		if err != nil {
			return err
		}
		head = append(head, b)
		length |= int(b&0x7f) << shift
		if b&0x80 == 0 {
			break
		}
	}
	if length > maxPacket {
		_, err := io.CopyN(io.Discard, g.in, int64(length))
		if err == nil {
			g.oversize(length)
		}
		return err
	}
	g.head, g.left = head, length
	return nil
}
