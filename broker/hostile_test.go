package broker

import (
	"bytes"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/eclipse/paho.golang/paho"

	"github.com/remotegpu/remotegpu/protocol"
)

// deaf connects and subscribes, and then never reads nor acknowledges.
func deaf(t *testing.T, addr, user string, filter string) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if err := c.(*net.TCPConn).SetReadBuffer(4096); err != nil {
		t.Fatal(err)
	}
	short := func(s string) []byte { return append([]byte{byte(len(s) >> 8), byte(len(s))}, s...) }
	packet := func(kind byte, parts ...[]byte) {
		body := bytes.Join(parts, nil)
		if len(body) > 127 {
			t.Fatal("packet is too long for this test")
		}
		if _, err := c.Write(append([]byte{kind, byte(len(body))}, body...)); err != nil {
			t.Fatal(err)
		}
	}
	answer := func(kind byte) {
		head := make([]byte, 2)
		if _, err := io.ReadFull(c, head); err != nil || head[0] != kind {
			t.Fatalf("answer %x, %v", head, err)
		}
		if _, err := io.CopyN(io.Discard, c, int64(head[1])); err != nil {
			t.Fatal(err)
		}
	}
	// MQTT 5, clean start, user and password, keep-alive 30 s, Receive Maximum 1.
	packet(0x10, short("MQTT"), []byte{5, 0xc2, 0, 30, 3, 0x21, 0, 1}, short("deaf"), short(user), short("ok"))
	answer(0x20)
	packet(0x82, []byte{0, 1, 0}, short(filter), []byte{1})
	answer(0x90)
	return c
}

func TestADeafSubscriberHoldsNobodyUp(t *testing.T) {
	t.Parallel()
	b, addr := newBroker(t, Config{})
	deaf(t, addr, "root", "rg/v1/#")
	var heard atomic.Int32
	b.Handle(protocol.TopicTelemetry, func(string, []byte) { heard.Add(1) })
	const each = 500
	var g sync.WaitGroup
	start := time.Now()
	for _, host := range []string{hostA, hostB} {
		c := mustDial(t, addr, host, host)
		c.mustSub(protocol.HostTopic(host, protocol.TopicAck))
		g.Go(func() {
			for range each {
				if err := c.pub(protocol.HostTopic(host, protocol.TopicTelemetry), make([]byte, 4096)); err != nil {
					t.Error(err)
					return
				}
			}
			c.stays()
		})
	}
	g.Wait()
	until(t, "all messages are heard", func() bool { return heard.Load() == 2*each }) // the last PUBACK leaves before its handler runs
	if took := time.Since(start); took > 3*patience {                                 // who is held up waits for one and a half keep-alives
		t.Errorf("it took %v", took)
	}
}

func heap() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// Not parallel: it measures memory.
func TestASlowClientIsCut(t *testing.T) {
	for _, test := range []struct {
		name         string
		size, number int
		most         int64 // bytes of memory
	}{
		{"small messages", 1 << 10, 100_000, 4 << 20},
		{"large messages", 1 << 20, 300, maxHeavy + 8<<20},
	} {
		t.Run(test.name, func(t *testing.T) {
			b, addr := newBroker(t, Config{})
			a := mustDial(t, addr, hostA, hostA)
			a.mustSub(protocol.HostTopic(hostA, protocol.TopicAck))
			quiet := time.Now()
			for range test.number / 10 {
				say(t, b, Message{Topic: protocol.WorkspaceEvent("ws_1", "x"), Payload: make([]byte, test.size)})
			}
			most := max(patience, 50*time.Since(quiet)) // five times what it takes without one, on a machine that is busy
			deaf(t, addr, "root", "rg/v1/#")
			before, peak := heap(), int64(0)
			start := time.Now()
			for i := range test.number {
				say(t, b, Message{Topic: protocol.WorkspaceEvent("ws_1", "x"), Payload: make([]byte, test.size)})
				if i%(test.number/10) == 0 {
					peak = max(peak, heap()-before)
				}
			}
			if d := time.Since(start); d > most {
				t.Errorf("publishing took %v: it waits for the slow client", d)
			}
			if peak > test.most {
				t.Errorf("memory grew by %d KiB", peak>>10)
			}
			until(t, "the slow client is cut", func() bool {
				b.mu.Lock()
				defer b.mu.Unlock()
				return b.sessions["usr_root/deaf"] == nil
			})
			if _, ok := b.server.Clients.Get("usr_root/deaf"); ok {
				t.Error("its session is kept")
			}
			say(t, b, down(protocol.TopicAck, "still here"))
			if got := a.next(); got != "still here" {
				t.Errorf("got %q", got)
			}
		})
	}
}

func TestHeavyMessagesPassThoseWhoRead(t *testing.T) {
	t.Parallel()
	b, addr := newBroker(t, Config{})
	root := mustDial(t, addr, "root", "r")
	root.mustSub("rg/v1/#")
	a := mustDial(t, addr, hostA, hostA)
	for range 64 { // four times what may wait
		if err := a.pub(protocol.HostTopic(hostA, protocol.TopicStatus), make([]byte, 512<<10)); err != nil {
			t.Fatal(err)
		}
		root.next()
	}
	root.stays()
	until(t, "nothing waits any more", func() bool {
		b.mu.Lock()
		defer b.mu.Unlock()
		return b.sessions["usr_root/r"].queued.Load() == 0
	})
}

func TestGarbageIsClosed(t *testing.T) {
	t.Parallel()
	_, addr := newBroker(t, Config{})
	for _, garbage := range []string{
		"GET / HTTP/1.1\r\n\r\n", "\x16\x03\x01\x02\x00", "\x30\x05hello", "\x00\x00\x00", "\x11\x02xx",
		"\x10\xff\xff\xff\x7f", "\x10\xff\xff\xff\xff\x01", "\x10\x80\x80\x08", "\x10\x00", "\x10\x02xx",
		"\x10\x0a\x00\x04MQTT\x05\x02\x00\x1e",
	} {
		c, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		io.WriteString(c, garbage)
		c.SetReadDeadline(time.Now().Add(patience / 2))
		if len(garbage) == 12 { // a CONNECT that ends early: we may only wait for the rest
			c.(*net.TCPConn).CloseWrite()
		}
		if got, err := io.ReadAll(c); errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%q keeps the connection and gets %q", garbage, got)
		}
		c.Close()
	}
}

func TestAPacketOfTwoMegabytes(t *testing.T) {
	t.Parallel()
	b, addr := newBroker(t, Config{})
	var seen atomic.Int32
	b.Handle(protocol.TopicStatus, func(string, []byte) { seen.Add(1) })
	a, other := mustDial(t, addr, hostA, hostA), mustDial(t, addr, hostB, hostB)
	go a.pub(protocol.HostTopic(hostA, protocol.TopicStatus), make([]byte, 2<<20)) // it never returns well
	<-a.gone
	if err := other.pub(protocol.HostTopic(hostB, protocol.TopicStatus), []byte("ok")); err != nil {
		t.Error(err)
	}
	until(t, "the other host is heard", func() bool { return seen.Load() == 1 })
	if err := b.Publish(Message{Topic: "rg/v1/x", Payload: make([]byte, 2<<20)}); err == nil {
		t.Error("we publish what is over the limit ourselves")
	}
}

func TestTooManySubscriptions(t *testing.T) {
	t.Parallel()
	_, addr := newBroker(t, Config{})
	ann := mustDial(t, addr, "ann", "x")
	for i := range maxFilters {
		ann.mustSub(protocol.WorkspaceEvent("ws_1", strings.Repeat("a", i+1)))
	}
	ann.stays()
	go ann.sub(protocol.WorkspaceEvent("ws_1", "b"))
	ann.wentWith(0x97)
}

func TestTooManyConnections(t *testing.T) {
	t.Parallel()
	b, addr := newBroker(t, Config{MaxPerAddress: 4, MaxPerPrincipal: 2})
	mustDial(t, addr, "ann", "1")
	mustDial(t, addr, "ann", "2")
	if c, err := dial(t, addr, "ann", "3"); err == nil || c.ack.ReasonCode != 0x97 {
		t.Errorf("a third connection: %v", err)
	}
	mustDial(t, addr, "bot", "1")
	idle := make([]net.Conn, 4) // they stay to the end: Close must not wait for them
	for i := range idle {
		c, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		idle[i] = c
	}
	pending := func(n int) func() bool {
		return func() bool {
			b.limit.mu.Lock()
			defer b.limit.mu.Unlock()
			return b.limit.pending == n
		}
	}
	until(t, "all idle sockets are taken in", pending(4))
	if _, err := dial(t, addr, hostB, hostB); err == nil {
		t.Error("the limit of one address does not hold")
	}
	idle[0].Close()
	until(t, "one idle socket is gone", pending(3))
	mustDial(t, addr, hostB, hostB)
}

func TestConnectRate(t *testing.T) {
	t.Parallel()
	now := time.Unix(1e9, 0)
	l := newLimit(Config{MaxPerAddress: 100, MaxPending: 6, ConnectRate: 1, ConnectBurst: 2})
	l.now = func() time.Time { return now }
	try := func(a string, want bool) {
		t.Helper()
		if got := l.enter(netip.MustParseAddr(a)); got != want {
			t.Errorf("%s at %v: %v, want %v", a, now, got, want)
		}
	}
	try("10.0.0.1", true)
	try("10.0.0.1", true)
	try("::ffff:10.0.0.1", false) // the same address
	try("10.0.0.2", true)
	try("2001:db8::1", true)
	try("2001:db8::2", true)
	try("2001:db8::3", false) // the same network
	try("2001:db8:0:1::1", true)
	try("10.0.0.3", false) // too many of all
	l.settle(netip.MustParseAddr("10.0.0.1"))
	try("10.0.0.1", false)
	now = now.Add(time.Second)
	try("10.0.0.1", true)
	for a, n := range map[string]int{"10.0.0.1": 2, "10.0.0.2": 1, "2001:db8::9": 2, "2001:db8:0:1::9": 1} {
		for range n {
			l.settle(netip.MustParseAddr(a))
		}
	}
	now = now.Add(time.Hour)
	try("10.0.0.9", true)
	if len(l.from) != 1 || l.pending != 1 {
		t.Errorf("%d addresses are remembered, %d pending", len(l.from), l.pending)
	}
	if l.enter(netip.Addr{}); len(l.from) != 2 {
		t.Error("an address that cannot be read has no limit")
	}
}

func TestKeepAliveIsBounded(t *testing.T) {
	t.Parallel()
	_, addr := newBroker(t, Config{})
	c := mustDial(t, addr, "ann", "x", func(cp *paho.Connect) { cp.KeepAlive = 0 })
	if k := c.ack.Properties.ServerKeepAlive; k == nil || *k != keepAlive {
		t.Errorf("server keep alive %v", k)
	}
	if e := mustDial(t, addr, "ann", "y", func(cp *paho.Connect) {
		cp.Properties = &paho.ConnectProperties{SessionExpiryInterval: paho.Uint32(1 << 30)}
	}).ack.Properties.SessionExpiryInterval; e == nil || *e != 0 {
		t.Errorf("session expiry %v", e)
	}
}

func FuzzSniff(f *testing.F) {
	f.Add([]byte("\x10\x0a\x00\x04MQTT\x05\x02\x00\x1e"))
	f.Add([]byte("\x10\xff\xff\xff\x7f"))
	f.Fuzz(func(t *testing.T, b []byte) {
		near, far := net.Pipe()
		go func() { far.Write(b); far.Close() }()
		c := &conn{Conn: near, raw: near}
		if c.sniff() == nil {
			got, err := io.ReadAll(c)
			if err != nil || !bytes.Equal(got, b) {
				t.Errorf("read %x, %v; want %x", got, err, b)
			}
		}
		near.Close()
	})
}
