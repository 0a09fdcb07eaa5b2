package broker

import (
	"bufio"
	"bytes"
	"compress/flate"
	"context"
	"encoding/binary"
	"io"
	"net"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/eclipse/paho.golang/paho"

	"github.com/remotegpu/remotegpu/protocol"
)

// wire is a client that speaks MQTT byte by byte.
type wire struct {
	net.Conn
	t testing.TB
}

func text(s string) []byte { return append([]byte{byte(len(s) >> 8), byte(len(s))}, s...) }

func packet(kind byte, parts ...[]byte) []byte {
	body := bytes.Join(parts, nil)
	return append(binary.AppendUvarint([]byte{kind}, uint64(len(body))), body...)
}

// speak connects as host, whose credentials are right.
func speak(t testing.TB, addr, host string) wire {
	t.Helper()
	return speakEvery(t, addr, host, 30)
}

// speakEvery is speak with a keep-alive in seconds.
func speakEvery(t testing.TB, addr, host string, seconds byte) wire {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	w := wire{c, t}
	w.say(packet(0x10, text("MQTT"), []byte{5, 0xc2, 0, seconds, 0}, text(host), text(host), text("ok")))
	if kind, body := w.hear(); kind != 0x20 || len(body) < 2 || body[1] != 0 {
		t.Fatalf("CONNACK %x %x", kind, body)
	}
	return w
}

func (w wire) say(b []byte) {
	w.t.Helper()
	if _, err := w.Write(b); err != nil {
		w.t.Fatal(err)
	}
}

func (w wire) hear() (kind byte, body []byte) {
	w.t.Helper()
	w.SetReadDeadline(time.Now().Add(patience))
	in := bufio.NewReaderSize(w.Conn, 16)
	kind, err := in.ReadByte()
	if err != nil {
		w.t.Fatal(err)
	}
	size, err := binary.ReadUvarint(in)
	if err != nil {
		w.t.Fatal(err)
	}
	body = make([]byte, size)
	if _, err := io.ReadFull(in, body); err != nil {
		w.t.Fatal(err)
	}
	return kind, body
}

// malformed are packets of a client that is in: each is answered by an end of
// its own connection, or by nothing, and by nothing else.
var malformed = map[string][]byte{
	"a packet of type 0":                          {0x00, 0x00},
	"AUTH out of turn":                            {0xf0, 0x02, 0x18, 0x00},
	"CONNECT again":                               packet(0x10, text("MQTT"), []byte{5, 0xc2, 0, 30, 0}, text(hostA), text(hostA), text("ok")),
	"a length that never ends":                    {0x30, 0xff, 0xff, 0xff, 0xff, 0x7f},
	"a length of 256 MB":                          {0x30, 0xff, 0xff, 0xff, 0x7f},
	"QoS 3":                                       packet(0x36, text("x"), []byte{0, 1, 0}, []byte("hi")),
	"a topic longer than its packet":              packet(0x30, []byte{0xff, 0xff}, []byte("hi")),
	"a topic that is not UTF-8":                   packet(0x30, text("rg/v1/\xff\xfe"), []byte{0}, []byte("hi")),
	"a topic with a zero byte":                    packet(0x30, text("rg/v1/\x00"), []byte{0}, []byte("hi")),
	"a topic with wildcards":                      packet(0x30, text("rg/v1/#"), []byte{0}, []byte("hi")),
	"no topic":                                    packet(0x30, text(""), []byte{0}, []byte("hi")),
	"a topic alias":                               packet(0x30, text(""), []byte{3, 0x23, 0, 7}, []byte("hi")),
	"a property that is none":                     packet(0x30, text("x"), []byte{2, 0x7f, 0}, []byte("hi")),
	"properties that never end":                   packet(0x30, text("x"), []byte{0xff, 0xff, 0xff, 0x7f}),
	"a property twice":                            packet(0x30, text("x"), []byte{4, 0x01, 0, 0x01, 0}, []byte("hi")),
	"packet id 0":                                 packet(0x32, text("x"), []byte{0, 0, 0}, []byte("hi")),
	"SUBSCRIBE with no filter":                    packet(0x82, []byte{0, 1, 0}),
	"SUBSCRIBE with wrong flags":                  packet(0x80, []byte{0, 1, 0}, text("x"), []byte{0}),
	"SUBSCRIBE with QoS 3":                        packet(0x82, []byte{0, 1, 0}, text("x"), []byte{3}),
	"SUBSCRIBE to a filter of 64K":                packet(0x82, []byte{0, 1, 0}, text(strings.Repeat("a/", 32767)), []byte{0}),
	"SUBSCRIBE shared":                            packet(0x82, []byte{0, 1, 0}, text("$share/g/rg/v1/#"), []byte{0}),
	"SUBSCRIBE to what the broker says of itself": packet(0x82, []byte{0, 1, 0}, text("$SYS/#"), []byte{0}),
	"SUBSCRIBE that ends before its QoS":          packet(0x82, []byte{0, 1, 0}, text("x")), // mochi v2.7.9 panics
	"UNSUBSCRIBE with no filter":                  packet(0xa2, []byte{0, 1, 0}),
	"PUBREL of nothing":                           {0x62, 0x02, 0x00, 0x07},
	"PUBACK of nothing":                           {0x40, 0x02, 0x00, 0x07},
	"PUBCOMP of nothing":                          {0x70, 0x02, 0x00, 0x07},
	"CONNACK from a client":                       {0x20, 0x03, 0x00, 0x00, 0x00},
	"PINGRESP from a client":                      {0xd0, 0x00},
	"PINGREQ with a body":                         {0xc0, 0x02, 0x00, 0x00},
	"DISCONNECT with half a reason":               {0xe0, 0x03, 0x04, 0xff, 0xff},
}

// TestMalformedPackets: whoever is in and says what is no MQTT loses its own
// connection at most; nothing of it reaches a handler, and the host beside it
// goes on.
func TestMalformedPackets(t *testing.T) {
	t.Parallel()
	b, addr := newBroker(t, Config{AgainBurst: 1000})
	var heard atomic.Int32
	for _, topic := range protocol.UpTopics {
		b.Handle(topic, func(host string, _ []byte) {
			if host == hostA {
				heard.Add(1)
			}
		})
	}
	beside := mustDial(t, addr, hostB, hostB)
	beside.mustSub(protocol.HostTopic(hostB, protocol.TopicAck))
	for name, bytes := range malformed {
		w := speak(t, addr, hostA)
		w.say(bytes)
		w.Write([]byte{0xc0, 0x00}) // a ping; it may be too late for it
		w.SetReadDeadline(time.Now().Add(patience))
		for {
			kind := make([]byte, 2)
			if _, err := io.ReadFull(w, kind); os.IsTimeout(err) {
				t.Errorf("%s: neither an end nor an answer", name)
				break
			} else if err != nil || kind[0] == 0xd0 {
				break // gone, or it goes on
			}
			io.CopyN(io.Discard, w, int64(kind[1]))
		}
		w.Close()
		say(t, b, Message{Topic: protocol.HostTopic(hostB, protocol.TopicAck), Payload: []byte(name)})
		if got := beside.next(); got != name {
			t.Errorf("beside %s, the other host gets %q", name, got)
		}
	}
	beside.stays()
	if n := heard.Load(); n != 0 {
		t.Errorf("%d handlers were called for what is malformed", n)
	}
}

// FuzzPackets lets a client that is in say anything. The broker may end it; it
// must go on itself, and deliver.
func FuzzPackets(f *testing.F) {
	for _, bytes := range malformed {
		f.Add(bytes)
	}
	b, addr := newBroker(f, Config{AgainBurst: 1 << 30, ConnectBurst: 1 << 30})
	beside := mustDial(f, addr, hostB, hostB)
	beside.mustSub(protocol.HostTopic(hostB, protocol.TopicAck))
	f.Fuzz(func(t *testing.T, said []byte) {
		w := speak(t, addr, hostA)
		w.say(said)
		w.Close()
		beside.t = t
		say(t, b, Message{Topic: protocol.HostTopic(hostB, protocol.TopicAck), Payload: said[:min(len(said), 64)]})
		if got := beside.next(); got != string(said[:min(len(said), 64)]) {
			t.Errorf("the other host gets %q", got)
		}
	})
}

// TestAFloodIsItsOwn: a host that sends as fast as it can is read as fast as a
// host may send, whatever it sends, and waits for itself.
func TestAFloodIsItsOwn(t *testing.T) {
	t.Parallel()
	b, addr := newBroker(t, Config{PacketRate: 100, PacketBurst: 100, ByteRate: 1 << 20})
	var heard atomic.Int32
	b.Handle(protocol.TopicStatus, func(host string, _ []byte) {
		if host == hostA {
			heard.Add(1)
		}
	})
	flood := bytes.Repeat(packet(0x30, text(protocol.HostTopic(hostA, protocol.TopicStatus)), []byte{0}, make([]byte, 100)), 1000)
	began := time.Now()
	w := speak(t, addr, hostA)
	sent := make(chan int)
	go func() {
		n := 0
		for w.SetWriteDeadline(time.Now().Add(2 * time.Second)); ; {
			m, err := w.Write(flood)
			if n += m; err != nil {
				sent <- n
				return
			}
		}
	}()
	beside := mustDial(t, addr, hostB, hostB)
	start, slowest := time.Now(), time.Duration(0)
	for time.Since(start) < 2*time.Second {
		at := time.Now()
		if err := beside.pub(protocol.HostTopic(hostB, protocol.TopicStatus), []byte("x")); err != nil {
			t.Fatal(err)
		}
		slowest = max(slowest, time.Since(at))
		time.Sleep(20 * time.Millisecond)
	}
	n, lasted := heard.Load(), time.Since(began)
	if most := 100 + int32(100*lasted.Seconds()); n < 100 || n > most {
		t.Errorf("%d of its messages were worked on within %v, at 100 per second want 100 to %d", n, lasted, most)
	}
	t.Logf("sent %d KiB, %d messages worked on; beside it a message takes %v at most", <-sent>>10, heard.Load(), slowest)
}

// TestWillsByTheThousand: a host that comes and goes leaves a will each time;
// it is let in so often only.
func TestWillsByTheThousand(t *testing.T) {
	t.Parallel()
	b, addr := newBroker(t, Config{AgainRate: 1, AgainBurst: 10, AgainPause: time.Millisecond})
	began := time.Now()
	var wills atomic.Int32
	b.Handle(protocol.TopicPresence, func(string, []byte) { wills.Add(1) })
	refused := 0
	for range 100 {
		c, err := dial(t, addr, hostA, hostA, func(cp *paho.Connect) {
			cp.WillMessage = &paho.WillMessage{Topic: protocol.HostTopic(hostA, protocol.TopicPresence), Payload: []byte("gone"), Retain: true}
		})
		switch {
		case err == nil:
		case c.ack != nil && c.ack.ReasonCode == 0x9f:
			refused++
		default:
			t.Fatal(err)
		}
		c.conn.Close() // no DISCONNECT: the will is sent
	}
	if least := 100 - 10 - int(time.Since(began).Seconds()+1); refused < least {
		t.Errorf("only %d of 100 were refused, want %d", refused, least)
	}
	mustDial(t, addr, hostB, hostB) // from the same address
	if n := int(wills.Load()); n > 100-refused {
		t.Errorf("%d wills of %d connections", n, 100-refused)
	}
}

// TestSlowLoris: who says its CONNECT byte by byte is ended by the clock, and
// so is who is in and says a packet so.
func TestSlowLoris(t *testing.T) {
	t.Parallel()
	_, addr := newBroker(t, Config{})
	t.Run("before authentication", func(t *testing.T) {
		t.Parallel()
		c, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		endsSlowly(t, c, packet(0x10, text("MQTT"), []byte{5, 0xc2, 0, 30, 0}, text(strings.Repeat("x", 100))), connectTimeout)
	})
	t.Run("after it", func(t *testing.T) {
		t.Parallel()
		c := speakEvery(t, addr, hostB, 4)
		endsSlowly(t, c, packet(0x30, text(protocol.HostTopic(hostB, protocol.TopicStatus)), []byte{0}, make([]byte, 100)), 4*time.Second*3/2)
	})
}

// endsSlowly says something byte by byte, and is ended after a time.
func endsSlowly(t *testing.T, c net.Conn, said []byte, after time.Duration) {
	t.Helper()
	start := time.Now()
	for _, one := range said { // for 50 s and more
		_, err := c.Write([]byte{one})
		if err == nil {
			c.SetReadDeadline(time.Now().Add(500 * time.Millisecond))
			_, err = io.Copy(io.Discard, c)
		}
		if took := time.Since(start); !os.IsTimeout(err) {
			if took < after*9/10 {
				t.Errorf("ended after %v, want %v: it has time until then", took, after)
			}
			return
		} else if took > after+patience {
			break
		}
	}
	t.Errorf("still there after %v", time.Since(start))
}

// TestCompressedBombs: nobody negotiates compression, so a compressed frame is
// an error and is never inflated.
func TestCompressedBombs(t *testing.T) {
	b, _ := newBroker(t, Config{})
	srv := httptest.NewServer(b)
	t.Cleanup(srv.Close)
	var bomb bytes.Buffer
	z, err := flate.NewWriter(&bomb, flate.BestCompression)
	if err != nil {
		t.Fatal(err)
	}
	for range 64 { // of 64 MB
		z.Write(make([]byte, 1<<20))
	}
	z.Flush()
	c, err := (&net.Dialer{}).DialContext(context.Background(), "tcp", strings.TrimPrefix(srv.URL, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	io.WriteString(c, "GET /mqtt HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"+
		"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Protocol: mqtt\r\nSec-WebSocket-Extensions: permessage-deflate\r\n\r\n")
	c.SetReadDeadline(time.Now().Add(patience))
	in := bufio.NewReader(c)
	for {
		line, err := in.ReadString('\n')
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(strings.ToLower(line), "permessage-deflate") {
			t.Error("compression was agreed on")
		}
		if line == "\r\n" {
			break
		}
	}
	before := heap()
	frame := binary.BigEndian.AppendUint64([]byte{0xc2, 0xff}, uint64(bomb.Len())) // final, RSV1, binary, masked
	c.Write(slices.Concat(frame, []byte{0, 0, 0, 0}, bomb.Bytes()))                // it may be cut in the middle
	if _, err := io.Copy(io.Discard, in); os.IsTimeout(err) {
		t.Error("it is kept")
	}
	if grown := heap() - before; grown > 4<<20 {
		t.Errorf("memory grew by %d KiB", grown>>10)
	}
}
