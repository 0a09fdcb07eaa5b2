package broker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/eclipse/paho.golang/packets"
	"github.com/eclipse/paho.golang/paho"
	"github.com/gorilla/websocket"

	"github.com/remotegpu/remotegpu/protocol"
)

const patience = 10 * time.Second

func knock(_ context.Context, c Credentials) (Principal, error) {
	p, ok := people[c.User]
	switch {
	case c.User == "database down":
		return Principal{}, fmt.Errorf("look up user: %w", ErrUnavailable)
	case !ok || string(c.Password) != "ok":
		return Principal{}, errors.New("who?")
	}
	return p, nil
}

func newBroker(t testing.TB, cfg Config) (*Broker, string) {
	t.Helper()
	cfg.Log = slog.New(slog.DiscardHandler)
	if cfg.Authenticate == nil {
		cfg.Authenticate = knock
	}
	b, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- b.Serve(context.Background(), l) }()
	t.Cleanup(func() {
		start := time.Now()
		if err := b.Close(); err != nil || time.Since(start) > patience {
			t.Errorf("Close: %v after %v", err, time.Since(start))
		}
		if err := <-served; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	return b, l.Addr().String()
}

// client is a paho client; what it is sent arrives on got.
type client struct {
	*paho.Client
	t    testing.TB
	conn net.Conn
	got  chan *paho.Publish
	gone chan byte // reason code of a DISCONNECT; 0: cut without one
	ack  *paho.Connack
}

func dial(t testing.TB, addr, user, id string, change ...func(*paho.Connect)) (*client, error) {
	t.Helper()
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	return connect(t, conn, user, id, change...)
}

func connect(t testing.TB, conn net.Conn, user, id string, change ...func(*paho.Connect)) (*client, error) {
	t.Helper()
	c := &client{t: t, conn: conn, got: make(chan *paho.Publish, 10_000), gone: make(chan byte, 8)}
	c.Client = paho.NewClient(paho.ClientConfig{
		Conn: conn,
		OnPublishReceived: []func(paho.PublishReceived) (bool, error){func(p paho.PublishReceived) (bool, error) {
			c.got <- p.Packet
			return true, nil
		}},
		OnClientError:      func(error) { c.gone <- 0 },
		OnServerDisconnect: func(d *paho.Disconnect) { c.gone <- d.ReasonCode },
	})
	cp := &paho.Connect{ClientID: id, Username: user, UsernameFlag: true, Password: []byte("ok"), PasswordFlag: true, KeepAlive: 30, CleanStart: true}
	for _, f := range change {
		f(cp)
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	var err error
	c.ack, err = c.Connect(ctx, cp)
	t.Cleanup(func() { conn.Close() })
	return c, err
}

func mustDial(t testing.TB, addr, user, id string, change ...func(*paho.Connect)) *client {
	t.Helper()
	c, err := dial(t, addr, user, id, change...)
	if err != nil {
		t.Fatalf("%s connects as %s: %v", user, id, err)
	}
	return c
}

// sub returns an error when the filter is not granted.
func (c *client) sub(filter string, change ...func(*paho.SubscribeOptions)) error {
	o := paho.SubscribeOptions{Topic: filter, QoS: 2}
	for _, f := range change {
		f(&o)
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	ack, err := c.Subscribe(ctx, &paho.Subscribe{Subscriptions: []paho.SubscribeOptions{o}})
	if err == nil && ack.Reasons[0] > 0 {
		err = errors.New("granted more than QoS 0")
	}
	return err
}

func (c *client) mustSub(filter string, change ...func(*paho.SubscribeOptions)) {
	c.t.Helper()
	if err := c.sub(filter, change...); err != nil {
		c.t.Fatalf("subscribe to %s: %v", filter, err)
	}
}

func (c *client) pub(topic string, payload []byte) error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	_, err := c.Publish(ctx, &paho.Publish{Topic: topic, QoS: 1, Payload: payload, Retain: true})
	return err
}

func (c *client) next() string {
	c.t.Helper()
	select {
	case p := <-c.got:
		return string(p.Payload)
	case <-time.After(patience):
		c.t.Fatal("nothing arrives")
		return ""
	}
}

func (c *client) wentWith(want byte) {
	c.t.Helper()
	select {
	case got := <-c.gone:
		if got != want {
			c.t.Errorf("ended with reason %#x, want %#x", got, want)
		}
	case <-time.After(patience):
		c.t.Fatal("still connected")
	}
}

func (c *client) stays() {
	c.t.Helper()
	select {
	case code := <-c.gone:
		c.t.Errorf("was thrown out with reason %#x", code)
	default:
	}
}

// until waits for what is about to come true.
func until(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within %v: %s", patience, what)
		}
	}
}

func say(t testing.TB, b *Broker, m Message) {
	t.Helper()
	if err := b.Publish(m); err != nil {
		t.Fatal(err)
	}
}

func down(topic, text string) Message {
	return Message{Topic: protocol.HostTopic(hostA, topic), Payload: []byte(text)}
}

func TestRulesHoldFromOutside(t *testing.T) {
	t.Parallel()
	b, addr := newBroker(t, Config{})
	heard := make(chan string, 10)
	b.Handle(protocol.TopicStatus, func(host string, payload []byte) { heard <- host + " " + string(payload) })
	a := mustDial(t, addr, hostA, hostA)
	if err := a.pub(protocol.HostTopic(hostA, protocol.TopicStatus), []byte("mine")); err != nil {
		t.Error(err)
	}
	if got := <-heard; got != hostA+" mine" {
		t.Errorf("heard %q", got)
	}
	for name, p := range people {
		if p.ID == "" || name == "forged" {
			continue
		}
		c := a
		if name != hostA {
			c = mustDial(t, addr, name, name)
		}
		for topic, who := range writes {
			if topic == "" || strings.ContainsAny(topic, "+#$") || among(name, who) {
				continue // what mochi does not answer
			}
			if err := c.pub(topic, []byte("forged")); err == nil {
				t.Errorf("%s publishes to %s", name, topic)
			}
		}
		for filter, who := range reads {
			if filter == "" || strings.Contains(filter, "\x00") || len(filter) > maxFilter {
				continue
			}
			if err := c.sub(filter); (err == nil) && !among(name, who) {
				t.Errorf("%s listens to %s", name, filter)
			}
		}
	}
	select {
	case got := <-heard:
		t.Errorf("heard %q", got)
	default:
	}
}

func TestNobodyComesInAsAnother(t *testing.T) {
	t.Parallel()
	b, addr := newBroker(t, Config{})
	a := mustDial(t, addr, hostA, hostA)
	a.mustSub(protocol.HostTopic(hostA, protocol.TopicDesired))
	will := func(topic string) func(*paho.Connect) {
		return func(cp *paho.Connect) { cp.WillMessage = &paho.WillMessage{Topic: topic, Payload: []byte("dead")} }
	}
	for _, try := range []struct {
		user, id string
		code     byte
		change   func(*paho.Connect)
	}{
		{hostB, hostA, 0x85, nil},
		{"ann", hostA, 0x85, nil},
		{"root", hostA, 0x85, nil},
		{hostA, hostB, 0x85, nil},
		{hostA, "", 0x85, nil},
		{"stranger", "x", 0x86, nil},
		{hostA, hostA, 0x86, func(cp *paho.Connect) { cp.Password = []byte("wrong") }},
		{"", "", 0x86, func(cp *paho.Connect) { cp.UsernameFlag, cp.PasswordFlag, cp.Password = false, false, nil }},
		{"database down", "x", 0x88, nil},
		{hostB, hostB, 0x87, will(protocol.HostTopic(hostA, protocol.TopicPresence))},
		{hostB, hostB, 0x87, will(protocol.HostTopic(hostB, protocol.TopicDesired))},
		{"root", "x", 0x87, will(protocol.HostTopic(hostA, protocol.TopicPresence))},
		{"ann", "x", 0x87, will(protocol.WorkspaceEvent("ws_1", "x"))},
	} {
		c, err := dial(t, addr, try.user, try.id, func(cp *paho.Connect) {
			if try.change != nil {
				try.change(cp)
			}
		})
		if err == nil || c.ack == nil || c.ack.ReasonCode != try.code {
			t.Errorf("%s as %q: ack %+v, err %v; want reason %#x", try.user, try.id, c.ack, err, try.code)
		}
	}
	ann := mustDial(t, addr, "ann", "same")
	ann.mustSub(protocol.WorkspacePrefix("ws_1") + "#")
	nobody := mustDial(t, addr, "nobody", "same", func(cp *paho.Connect) { cp.CleanStart = false })
	say(t, b, Message{Topic: protocol.WorkspaceEvent("ws_1", "x"), Payload: []byte("for ann")})
	if got := ann.next(); got != "for ann" {
		t.Errorf("got %q", got)
	}
	say(t, b, down(protocol.TopicDesired, "for a"))
	if got := a.next(); got != "for a" || !b.Connected(hostA) {
		t.Errorf("got %q, connected %v", got, b.Connected(hostA))
	}
	a.stays()
	ann.stays()
	if len(nobody.got) > 0 {
		t.Error("a session was inherited by somebody else")
	}
}

// The old connection of an id has ended, with its will, before the new one is
// let in, and the new one can be reached.
func TestAClientTakesItsOwnPlace(t *testing.T) {
	t.Parallel()
	b, addr := newBroker(t, Config{})
	var mu sync.Mutex
	var heard []string
	b.Handle(protocol.TopicPresence, func(_ string, payload []byte) {
		mu.Lock()
		defer mu.Unlock()
		heard = append(heard, string(payload))
	})
	topic := protocol.HostTopic(hostA, protocol.TopicPresence)
	const rounds = 100
	for i := range rounds {
		c := mustDial(t, addr, hostA, hostA, func(cp *paho.Connect) {
			cp.CleanStart = i%2 == 0
			cp.WillMessage = &paho.WillMessage{Topic: topic, Payload: fmt.Appendf(nil, "%d dead", i), QoS: 1, Retain: true}
		})
		if i%3 == 0 {
			defer c.conn.Close()
		} else {
			c.conn.Close() // no goodbye, and the next comes at once
		}
		if i%3 == 0 {
			c.mustSub(protocol.HostTopic(hostA, protocol.TopicAck))
			if err := c.pub(topic, fmt.Appendf(nil, "%d born", i)); err != nil {
				t.Fatal(err)
			}
			say(t, b, down(protocol.TopicAck, "you"))
			if got := c.next(); got != "you" {
				t.Fatalf("got %q", got)
			}
		}
	}
	last := -1
	mu.Lock()
	defer mu.Unlock()
	for _, s := range heard {
		var n int
		fmt.Sscanf(s, "%d", &n)
		if n < last {
			t.Errorf("heard %q after something of connection %d", s, last)
		}
		last = n
	}
	until(t, "one session is left", func() bool {
		b.mu.Lock()
		defer b.mu.Unlock()
		return len(b.sessions) <= 1
	})
}

func TestRetainedComesFromUsAlone(t *testing.T) {
	t.Parallel()
	topic := protocol.HostTopic(hostA, protocol.TopicPresence)
	b, addr := newBroker(t, Config{})
	say(t, b, Message{Topic: topic, Payload: []byte("kept"), Retain: true})
	heard := make(chan string, 10)
	b.Handle(protocol.TopicPresence, func(_ string, payload []byte) { heard <- string(payload) })
	a := mustDial(t, addr, hostA, hostA, func(cp *paho.Connect) {
		cp.WillMessage = &paho.WillMessage{Topic: topic, Payload: []byte("will, with retain"), Retain: true}
	})
	if err := a.pub(topic, []byte("from outside, with retain")); err != nil {
		t.Fatal(err)
	}
	a.conn.Close()
	for _, want := range []string{"from outside, with retain", "will, with retain"} {
		if got := <-heard; got != want {
			t.Errorf("the handler heard %q, want %q and not what we say ourselves", got, want)
		}
	}
	root := mustDial(t, addr, "root", "r")
	root.mustSub(topic)
	if got := root.next(); got != "kept" {
		t.Errorf("retained is %q", got)
	}
	say(t, b, Message{Topic: topic, Payload: []byte("newer"), Retain: true})
	root = mustDial(t, addr, "root", "s")
	root.mustSub("rg/v1/hosts/#")
	if got := root.next(); got != "newer" {
		t.Errorf("replaced, retained is %q", got)
	}
}

func TestRetainedIsMoreThanAQueue(t *testing.T) {
	t.Parallel()
	const many = 5000
	b, addr := newBroker(t, Config{})
	for i := range many {
		say(t, b, Message{Topic: fmt.Sprintf("rg/v1/hosts/host_%d/presence", i), Payload: []byte("x"), Retain: true})
	}
	root := mustDial(t, addr, "root", "r")
	all := protocol.AllHosts(protocol.TopicPresence)
	handling := func(h byte) func(*paho.SubscribeOptions) {
		return func(o *paho.SubscribeOptions) { o.RetainHandling = h }
	}
	receive := func(want int) {
		t.Helper()
		say(t, b, Message{Topic: protocol.HostTopic("host_end", protocol.TopicPresence), Payload: []byte("end")})
		n := 0
		for p := range root.got {
			if string(p.Payload) == "end" {
				break
			}
			if n++; !p.Retain {
				t.Fatal("a retained message does not say so")
			}
		}
		for range want - n {
			root.next() // those that "end" has overtaken
		}
		if n > want {
			t.Errorf("%d messages, want %d", n, want)
		}
	}
	root.mustSub(all, handling(2))
	receive(0)
	root.mustSub(all, handling(1)) // it is no new subscription
	receive(0)
	root.mustSub(all)
	receive(many)
	root.stays()
	say(t, b, Message{Topic: "rg/v1/hosts/host_1/presence", Retain: true})
	until(t, "an empty message removes", func() bool {
		return len(b.server.Topics.Messages("rg/v1/hosts/host_1/presence")) == 0
	})
	if err := b.Publish(Message{Topic: "rg/v1/hosts/host_2/presence", Payload: []byte("short"), Retain: true, Expiry: time.Second}); err == nil {
		t.Error("a retained message that nobody would remove")
	}
}

func TestRightsEnd(t *testing.T) {
	t.Parallel()
	var in atomic.Pointer[time.Duration]
	b, addr := newBroker(t, Config{Authenticate: func(ctx context.Context, c Credentials) (Principal, error) {
		p, err := knock(ctx, c)
		if d := in.Load(); d != nil {
			p.Expires = time.Now().Add(*d)
		}
		return p, err
	}})
	one, two := mustDial(t, addr, "bot", "1"), mustDial(t, addr, "bot", "2")
	a := mustDial(t, addr, hostA, hostA)
	b.Disconnect("tok_bot")
	one.wentWith(0x98)
	two.wentWith(0x98)
	a.stays()
	b.Disconnect(hostA)
	if b.Connected(hostA) {
		t.Error("connected after Disconnect")
	}
	a.wentWith(0x98)
	soon, past := 3*time.Second, -time.Second // it is let in before that, on a slow machine too
	in.Store(&soon)
	mustDial(t, addr, "bot", "1").wentWith(0xa0)
	in.Store(&past)
	if c, err := dial(t, addr, "bot", "1"); err == nil {
		c.wentWith(0xa0)
	}
}

func TestHandlersAreInOrderAndSurvive(t *testing.T) {
	t.Parallel()
	b, addr := newBroker(t, Config{})
	heard := make(chan string, 1000)
	b.Handle(protocol.TopicTelemetry, func(_ string, payload []byte) {
		if string(payload) == "50" {
			panic("a bug")
		}
		heard <- string(payload)
	})
	a := mustDial(t, addr, hostA, hostA)
	for i := range 100 {
		if err := a.pub(protocol.HostTopic(hostA, protocol.TopicTelemetry), fmt.Append(nil, i)); err != nil {
			t.Fatal(err)
		}
	}
	for i := range 100 {
		if i == 50 {
			continue
		}
		if got := <-heard; got != fmt.Sprint(i) {
			t.Fatalf("heard %s, want %d", got, i)
		}
	}
}

// TestTelemetryThatNobodyTakes is acknowledged, and nothing of it stays.
func TestTelemetryThatNobodyTakes(t *testing.T) {
	t.Parallel()
	b, addr := newBroker(t, Config{})
	a := mustDial(t, addr, hostA, hostA)
	topic := protocol.HostTopic(hostA, protocol.TopicTelemetry)
	for range 1000 {
		if err := a.pub(topic, make([]byte, 4096)); err != nil {
			t.Fatal(err)
		}
	}
	until(t, "nothing is in flight", func() bool { return atomic.LoadInt64(&b.server.Info.Inflight) == 0 })
	if kept := b.server.Topics.Messages(protocol.TopicRoot + "#"); len(kept) > 0 {
		t.Errorf("%d messages are retained", len(kept))
	}
	a.stays()
}

func dialWS(t *testing.T, url string, protocols ...string) (*websocket.Conn, error) {
	d := websocket.Dialer{Subprotocols: protocols}
	ws, _, err := d.Dial("ws"+strings.TrimPrefix(url, "http"), nil)
	if err == nil {
		t.Cleanup(func() { ws.Close() })
	}
	return ws, err
}

func TestOverWebSocket(t *testing.T) {
	t.Parallel()
	b, _ := newBroker(t, Config{})
	srv := httptest.NewServer(b)
	defer srv.Close()
	ws, err := dialWS(t, srv.URL, "mqtt")
	if err != nil || ws.Subprotocol() != "mqtt" {
		t.Fatalf("subprotocol %q, %v", ws.Subprotocol(), err)
	}
	a, err := connect(t, packets.NewThreadSafeConn(&wsConn{Conn: ws}), hostA, hostA)
	if err != nil {
		t.Fatal(err)
	}
	a.mustSub(protocol.HostTopic(hostA, protocol.TopicDesired))
	big := make([]byte, protocol.MaxDesired)
	say(t, b, Message{Topic: protocol.HostTopic(hostA, protocol.TopicDesired), Payload: big})
	if got := a.next(); len(got) != len(big) {
		t.Errorf("got %d bytes", len(got))
	}
	heard := make(chan int, 1)
	b.Handle(protocol.TopicStatus, func(_ string, payload []byte) { heard <- len(payload) })
	large := make([]byte, protocol.MaxPayload-4096)
	if err := a.pub(protocol.HostTopic(hostA, protocol.TopicStatus), large); err != nil {
		t.Error(err)
	}
	if n := <-heard; n != len(large) {
		t.Errorf("heard %d bytes", n)
	}
	other, err := dialWS(t, srv.URL)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := other.ReadMessage(); !websocket.IsCloseError(err, websocket.CloseProtocolError) {
		t.Errorf("without the subprotocol: %v", err)
	}
}
