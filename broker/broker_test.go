package broker

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http/httptest"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/eclipse/paho.golang/packets"
	"github.com/eclipse/paho.golang/paho"
	"github.com/gorilla/websocket"

	"github.com/remotegpu/remotegpu/protocol"
)

const (
	hostA = "host_aaaaaaaaaaaaaaaaaaaa"
	hostB = "host_bbbbbbbbbbbbbbbbbbbb"
)

// people are who may come in; everybody's password is "ok".
var people = map[string]Principal{
	hostA:    {Kind: KindHost, ID: hostA},
	hostB:    {Kind: KindHost, ID: hostB},
	"ann":    {Kind: KindUser, ID: "usr_ann", Workspaces: []string{"ws_1"}},
	"root":   {Kind: KindUser, ID: "usr_root", Admin: true},
	"nobody": {Kind: KindUser, ID: "usr_nobody"},
}

func newBroker(t *testing.T, cfg Config) (*Broker, string) {
	t.Helper()
	cfg.Log = slog.New(slog.DiscardHandler)
	if cfg.Authenticate == nil {
		cfg.Authenticate = func(_ context.Context, c Credentials) (Principal, error) {
			p, ok := people[c.User]
			if !ok || string(c.Password) != "ok" {
				return Principal{}, errors.New("who?")
			}
			return p, nil
		}
	}
	b, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { b.Serve(ctx, l); close(done) }()
	t.Cleanup(func() {
		cancel()
		<-done
		closed := make(chan struct{})
		go func() { b.Close(); close(closed) }()
		select {
		case <-closed:
		case <-time.After(5 * time.Second):
			t.Error("Close hangs")
		}
	})
	return b, l.Addr().String()
}

// client is a paho client; what it is sent arrives on got.
type client struct {
	*paho.Client
	got  chan *paho.Publish
	gone chan struct{}
}

func dial(t *testing.T, addr, user, id string, change ...func(*paho.Connect)) (*client, error) {
	t.Helper()
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	return connect(t, conn, user, id, change...)
}

func connect(t *testing.T, conn net.Conn, user, id string, change ...func(*paho.Connect)) (*client, error) {
	t.Helper()
	c := &client{got: make(chan *paho.Publish, 1000), gone: make(chan struct{}, 8)}
	gone := func() { c.gone <- struct{}{} }
	c.Client = paho.NewClient(paho.ClientConfig{
		Conn: conn,
		OnPublishReceived: []func(paho.PublishReceived) (bool, error){func(p paho.PublishReceived) (bool, error) {
			c.got <- p.Packet
			return true, nil
		}},
		OnClientError:      func(error) { gone() },
		OnServerDisconnect: func(*paho.Disconnect) { gone() },
	})
	cp := &paho.Connect{ClientID: id, Username: user, UsernameFlag: true, Password: []byte("ok"), PasswordFlag: true, KeepAlive: 30, CleanStart: true}
	for _, f := range change {
		f(cp)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	_, err := c.Connect(ctx, cp)
	t.Cleanup(func() { conn.Close() })
	return c, err
}

func mustDial(t *testing.T, addr, user, id string) *client {
	t.Helper()
	c, err := dial(t, addr, user, id)
	if err != nil {
		t.Fatalf("%s connects: %v", user, err)
	}
	return c
}

func (c *client) sub(t *testing.T, filter string, qos byte) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	ack, err := c.Subscribe(ctx, &paho.Subscribe{Subscriptions: []paho.SubscribeOptions{{Topic: filter, QoS: qos}}})
	if err == nil && ack.Reasons[0] > 0 {
		err = errors.New("granted more than QoS 0")
	}
	return err
}

func (c *client) pub(t *testing.T, topic string, payload []byte) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	_, err := c.Publish(ctx, &paho.Publish{Topic: topic, QoS: 1, Payload: payload, Retain: true})
	return err
}

func TestWhoMayDoWhat(t *testing.T) {
	t.Parallel()
	ws := protocol.WorkspacePrefix("ws_1")
	reads := map[string]string{ // filter → who may
		protocol.HostTopic(hostA, protocol.TopicDesired):   hostA + " root",
		protocol.HostTopic(hostA, protocol.TopicDial):      hostA + " root",
		protocol.HostTopic(hostA, protocol.TopicAck):       hostA + " root",
		protocol.HostTopic(hostA, protocol.TopicStatus):    "root",
		protocol.HostTopic(hostA, protocol.TopicTelemetry): "root",
		protocol.HostTopic(hostA, "#"):                     "root",
		protocol.HostTopic("+", protocol.TopicDesired):     "root",
		protocol.AllHosts(protocol.TopicStatus):            "root",
		"rg/v1/#":                                          "root",
		ws + "#":                                           "ann root",
		ws + "events/environment/+":                        "ann root",
		protocol.WorkspacePrefix("ws_12") + "#":            "root",
		protocol.WorkspacePrefix("+") + "#":                "root",
		"#":                                                "",
		"+/v1/#":                                           "",
		"$SYS/#":                                           "",
		"$share/g/rg/v1/#":                                 "",
	}
	writes := map[string]string{
		protocol.HostTopic(hostA, protocol.TopicHello):     hostA,
		protocol.HostTopic(hostA, protocol.TopicStatus):    hostA,
		protocol.HostTopic(hostA, protocol.TopicPresence):  hostA,
		protocol.HostTopic(hostA, protocol.TopicTelemetry): hostA,
		protocol.HostTopic(hostA, protocol.TopicDesired):   "",
		protocol.HostTopic(hostA, protocol.TopicDial):      "",
		protocol.HostTopic(hostA, protocol.TopicAck):       "",
		ws + "events/x": "",
		"anything":      "",
	}
	for name, p := range people {
		for filter, who := range reads {
			if got, want := mayRead(p, filter), strings.Contains(" "+who+" ", " "+name+" "); got != want {
				t.Errorf("%s reads %s: %v, want %v", name, filter, got, want)
			}
		}
		for topic, who := range writes {
			if got, want := mayWrite(p, topic), strings.Contains(" "+who+" ", " "+name+" "); got != want {
				t.Errorf("%s writes %s: %v, want %v", name, topic, got, want)
			}
		}
	}
}

func TestRulesHoldFromOutside(t *testing.T) {
	t.Parallel()
	b, addr := newBroker(t, Config{})
	heard := make(chan string, 10)
	b.Handle(protocol.TopicStatus, func(host string, payload []byte) { heard <- host + " " + string(payload) })
	a := mustDial(t, addr, hostA, hostA)
	if err := a.pub(t, protocol.HostTopic(hostA, protocol.TopicStatus), []byte("mine")); err != nil {
		t.Error(err)
	}
	if got := <-heard; got != hostA+" mine" {
		t.Errorf("heard %q", got)
	}
	if err := a.pub(t, protocol.HostTopic(hostB, protocol.TopicStatus), []byte("forged")); err == nil {
		t.Error("a host publishes as another")
	}
	b2 := mustDial(t, addr, hostB, hostB)
	if err := b2.sub(t, protocol.HostTopic(hostA, protocol.TopicDesired), 0); err == nil {
		t.Error("a host listens to another's documents")
	}
	ann := mustDial(t, addr, "ann", "x")
	if err := ann.sub(t, "rg/v1/#", 0); err == nil {
		t.Error("a user listens to everything")
	}
	if err := ann.sub(t, protocol.WorkspacePrefix("ws_1")+"#", 2); err != nil {
		t.Errorf("a member listens to their workspace: %v", err)
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
	for _, try := range [][2]string{{hostB, hostA}, {"ann", hostA}, {"root", hostA}, {hostA, hostB}, {"stranger", "x"}} {
		if _, err := dial(t, addr, try[0], try[1]); err == nil {
			t.Errorf("%s connects as %s", try[0], try[1])
		}
	}
	if _, err := dial(t, addr, hostA, hostA, func(cp *paho.Connect) { cp.Password = []byte("wrong") }); err == nil {
		t.Error("a wrong password is let in")
	}
	will := func(cp *paho.Connect) {
		cp.WillMessage = &paho.WillMessage{Topic: protocol.HostTopic(hostA, protocol.TopicPresence), Payload: []byte("dead")}
	}
	if _, err := dial(t, addr, hostB, hostB, will); err == nil {
		t.Error("a host leaves a will as another")
	}
	mustDial(t, addr, "ann", "same")
	root := mustDial(t, addr, "root", "same")
	if err := root.sub(t, "rg/v1/#", 0); err != nil {
		t.Error(err)
	}
	select {
	case <-a.gone:
		t.Error("the host was thrown out by somebody else")
	default:
	}
	if !b.Connected(hostA) {
		t.Error("the host is not connected any more")
	}
}

func TestASlowClientIsCut(t *testing.T) {
	t.Parallel()
	b, addr := newBroker(t, Config{})
	slow := mustDial(t, addr, "root", "slow")
	if err := slow.sub(t, "rg/v1/#", 1); err != nil {
		t.Fatal(err)
	}
	block := make(chan struct{})
	defer close(block)
	slow.AddOnPublishReceived(func(paho.PublishReceived) (bool, error) { <-block; return true, nil })
	a := mustDial(t, addr, hostA, hostA)
	if err := a.sub(t, protocol.HostTopic(hostA, protocol.TopicAck), 0); err != nil {
		t.Fatal(err)
	}
	before := heap()
	payload := make([]byte, 64<<10)
	start := time.Now()
	for range 2000 { // 128 MB
		if err := b.Publish(Message{Topic: protocol.WorkspacePrefix("ws_1") + "events/x", Payload: payload}); err != nil {
			t.Fatal(err)
		}
	}
	if d := time.Since(start); d > 5*time.Second {
		t.Errorf("publishing took %v: it waits for the slow client", d)
	}
	if grown := int64(heap()) - int64(before); grown > 64<<20 {
		t.Errorf("memory grew by %d MiB", grown>>20)
	}
	for i := 0; b.Connected("usr_root/slow"); i++ {
		if i > 500 {
			t.Fatal("the slow client is still connected after 5 s")
		}
		time.Sleep(10 * time.Millisecond)
	}
	if err := b.Publish(Message{Topic: protocol.HostTopic(hostA, protocol.TopicAck), Payload: []byte("still here")}); err != nil {
		t.Fatal(err)
	}
	if p := <-a.got; string(p.Payload) != "still here" {
		t.Errorf("got %q", p.Payload)
	}
}

func heap() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

func TestRetainedComesFromUsAlone(t *testing.T) {
	t.Parallel()
	topic := protocol.HostTopic(hostA, protocol.TopicPresence)
	kept := func(context.Context) ([]Message, error) {
		return []Message{{Topic: topic, Payload: []byte("kept")}}, nil
	}
	_, addr := newBroker(t, Config{Retained: kept})
	a := mustDial(t, addr, hostA, hostA)
	if err := a.pub(t, topic, []byte("from outside, with retain")); err != nil {
		t.Fatal(err)
	}
	root := mustDial(t, addr, "root", "r")
	if err := root.sub(t, topic, 0); err != nil {
		t.Fatal(err)
	}
	if p := <-root.got; string(p.Payload) != "kept" {
		t.Errorf("retained is %q", p.Payload)
	}
}

func TestExpiredPrincipalsAreCut(t *testing.T) {
	t.Parallel()
	b, addr := newBroker(t, Config{Authenticate: func(context.Context, Credentials) (Principal, error) {
		return Principal{Kind: KindHost, ID: hostA, Expires: time.Now().Add(200 * time.Millisecond)}, nil
	}})
	a := mustDial(t, addr, hostA, hostA)
	<-a.gone
	for i := 0; b.Connected(hostA); i++ {
		if i > 200 {
			t.Fatal("still connected")
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func TestGarbageAndIdleSockets(t *testing.T) {
	t.Parallel()
	var seen atomic.Int32
	b, addr := newBroker(t, Config{MaxPerAddress: 4})
	b.Handle(protocol.TopicStatus, func(string, []byte) { seen.Add(1) })
	for _, garbage := range []string{"GET / HTTP/1.1\r\n\r\n", "\x10\xff\xff\xff\x7f", "\x30\x05hello", "\x00\x00\x00"} {
		c, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		io.WriteString(c, garbage)
		c.(*net.TCPConn).CloseWrite()
		c.SetReadDeadline(time.Now().Add(5 * time.Second))
		if _, err := io.ReadAll(c); errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%q keeps the connection", garbage)
		}
		c.Close()
	}
	a := mustDial(t, addr, hostA, hostA)
	_ = a.pub(t, protocol.HostTopic(hostA, protocol.TopicStatus), make([]byte, 2<<20))
	if seen.Load() != 0 {
		t.Error("a packet of 2 MiB came through")
	}
	for range 4 { // idle ones that stay: Close must not wait for them
		c, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
	}
	time.Sleep(50 * time.Millisecond) // until all four are taken in
	if _, err := dial(t, addr, hostB, hostB); err == nil {
		t.Error("the limit of one address does not hold")
	}
}

func TestOverWebSocket(t *testing.T) {
	t.Parallel()
	b, _ := newBroker(t, Config{})
	srv := httptest.NewServer(b)
	defer srv.Close()
	d := websocket.Dialer{Subprotocols: []string{"mqtt"}}
	ws, resp, err := d.Dial("ws"+strings.TrimPrefix(srv.URL, "http"), nil)
	if err != nil {
		t.Fatal(err)
	}
	if p := resp.Header.Get("Sec-WebSocket-Protocol"); p != "mqtt" {
		t.Errorf("subprotocol %q", p)
	}
	a, err := connect(t, packets.NewThreadSafeConn(&wsConn{Conn: ws}), hostA, hostA)
	if err != nil {
		t.Fatal(err)
	}
	if err := a.sub(t, protocol.HostTopic(hostA, protocol.TopicDesired), 0); err != nil {
		t.Fatal(err)
	}
	big := make([]byte, 300<<10)
	if err := b.Publish(Message{Topic: protocol.HostTopic(hostA, protocol.TopicDesired), Payload: big}); err != nil {
		t.Fatal(err)
	}
	if p := <-a.got; len(p.Payload) != len(big) {
		t.Errorf("got %d bytes", len(p.Payload))
	}
}
