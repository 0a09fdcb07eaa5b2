// Package broker is the MQTT 5 broker inside the control plane.
//
// It owns connections, limits and who may publish and read what (acl.go); who
// somebody is, is asked by a func field. It is a pipe and no store: PostgreSQL
// is the truth, and who retains messages publishes them anew at start. Its
// invariant: nothing that a client does makes Publish wait or memory grow without bound.
//
//	accept ─► limits ─► CONNECT ─► Authenticate ─► predecessor ended ─► session
//	          (limit.go) (serve.go) (hook.go)      (session.go)         (mochi)
//
// What mochi really does under stress shapes this package. Everything down
// goes at QoS 0, for its QoS 1 delivery can deadlock under fan-in; a client
// whose queue is full is cut; retained messages go past that queue; no session
// outlives its connection, and a connection starts after the one before it
// with the same client id has ended; our own side subscribes inline.
package broker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"runtime/debug"
	"sync"
	"time"

	mqtt "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/packets"

	"github.com/remotegpu/remotegpu/protocol"
)

// ErrUnavailable is for Authenticate to wrap when it cannot tell who somebody
// is: the client is told that the server is busy, not that it may not.
var ErrUnavailable = errors.New("authentication is unavailable")

// Credentials are what a client shows.
type Credentials struct {
	ClientID string
	User     string
	Password []byte
	Remote   netip.Addr
}

// Message is something to publish.
type Message struct {
	Topic   string
	Payload []byte        // at most protocol.MaxPayload; must not change after
	Retain  bool          // an empty payload removes what is retained
	Expiry  time.Duration // dropped when undelivered for so long; 0: never, as what is retained
}

// Config is what the broker needs from others. Limits may be zero.
type Config struct {
	// Authenticate says who shows these credentials; its error is logged, the
	// client gets a reason code.
	Authenticate func(ctx context.Context, c Credentials) (Principal, error)
	// Remote returns the address of who sends a request; nil: RemoteAddr. For
	// servers behind a proxy.
	Remote func(*http.Request) netip.Addr
	Log    *slog.Logger

	MaxClients      int           // connected; 0: 50,000
	MaxPerPrincipal int           // connections of one user or token; 0: 64
	MaxPerAddress   int           // connections of one address that have not authenticated yet; 0: 256
	MaxPending      int           // of all addresses; 0: 2048
	ConnectRate     float64       // connections per second of one address; 0: 100
	ConnectBurst    int           // 0: 1000
	AgainRate       float64       // connections per second of one host, user or token; 0: 2
	AgainBurst      int           // 0: 120
	AgainPause      time.Duration // until who comes more often is told so; 0: 3 s
	PacketRate      float64       // packets per second that are read of one client, after PacketBurst; 0: 200
	PacketBurst     int           // 0: 2000
	ByteRate        float64       // bytes per second that are read of one client, after 4 MiB; 0: 2 MiB
}

const (
	connectTimeout = 10 * time.Second // from accept to CONNECT
	authTimeout    = 10 * time.Second
	writeTimeout   = 20 * time.Second // for the next 64 KiB
	byeTimeout     = time.Second      // for the last words
	closeTimeout   = 15 * time.Second // for handlers that are busy
	keepAlive      = 60               // seconds, at most

	maxPacket  = protocol.MaxPayload // bytes, any packet
	maxConnect = 64 << 10            // bytes, a CONNECT: nobody knows yet who sends it
	maxQueue   = 256                 // messages that wait for one client
	maxHeavy   = 16 * heavy          // bytes of heavy messages that wait for one client
	heavy      = 256 << 10           // bytes, from where payloads are counted
	maxFilters = 64                  // per client
	maxBurst   = 4 << 20             // bytes that one client may send at once
	ownID      = "$control"          // origin of our own messages; no client id of others looks so
	day        = int64(24 * time.Hour / time.Second)
)

// Broker is the MQTT broker of one server.
type Broker struct {
	cfg    Config
	server *mqtt.Server
	own    *mqtt.Client // publishes for us
	limit  *limit
	order  turns
	wg     sync.WaitGroup

	mu        sync.Mutex // guards what follows
	conns     map[*conn]struct{}
	sessions  map[string]*session // by session id, the newest
	principal map[string]int      // connections of a user or token
	listeners map[net.Listener]struct{}
	closed    bool
	nextSub   int
}

// New returns a running broker without listeners.
func New(cfg Config) (*Broker, error) {
	cfg.defaults()
	b := &Broker{
		cfg: cfg, limit: newLimit(cfg), conns: map[*conn]struct{}{}, sessions: map[string]*session{},
		principal: map[string]int{}, listeners: map[net.Listener]struct{}{},
		order: turns{of: map[string]*turn{}},
	}
	b.server = mqtt.New(&mqtt.Options{
		Capabilities: capabilities(cfg), ClientNetReadBufferSize: 1024, InlineClient: true, SysTopicResendInterval: day,
		Logger: slog.New(slog.DiscardHandler), // it logs whole packets; hook.go logs what matters
	})
	if err := b.server.AddHook(&hook{broker: b, log: cfg.Log}, nil); err != nil {
		return nil, fmt.Errorf("add broker hook: %w", err)
	}
	b.own = b.server.NewClient(nil, mqtt.LocalListener, ownID, true)
	b.own.Properties.ProtocolVersion = 5 // older ones know no expiry
	// Its Serve is not called: it would listen, which we do, and copy all retained
	// messages and clients each second to look for expired ones, of which we have
	// none; a quarter of the time of a server with 3,000 idle hosts went into that.
	return b, nil
}

func (c *Config) defaults() {
	if c.AgainPause == 0 {
		c.AgainPause = 3 * time.Second
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	for field, value := range map[*int]int{
		&c.MaxClients: 50_000, &c.MaxPerPrincipal: 64, &c.MaxPerAddress: 256, &c.MaxPending: 2048, &c.ConnectBurst: 1000,
		&c.AgainBurst: 120, &c.PacketBurst: 2000,
	} {
		if *field == 0 {
			*field = value
		}
	}
	for field, value := range map[*float64]float64{&c.ConnectRate: 100, &c.AgainRate: 2, &c.PacketRate: 200, &c.ByteRate: 2 << 20} {
		if *field == 0 {
			*field = value
		}
	}
}

func capabilities(cfg Config) *mqtt.Capabilities {
	c := mqtt.NewDefaultServerCapabilities()
	c.MaximumClients = int64(cfg.MaxClients)
	c.MaximumPacketSize = maxPacket
	c.MaximumClientWritesPending = maxQueue
	c.MaximumMessageExpiryInterval = 0 // never: mochi would drop retained messages after a day
	c.MaximumSessionExpiryInterval = 0 // no session outlives its connection
	c.MaximumInflight = 256
	c.ReceiveMaximum = 64
	c.MaximumQos = 1
	c.TopicAliasMaximum = 0 // they break resent messages
	c.SharedSubAvailable = 0
	c.MinimumProtocolVersion = 4
	c.Compatibilities.NoInheritedPropertiesOnAck = true
	return c
}

// Publish sends m to everybody who listens, at QoS 0. It never waits for a
// client. Handlers (Handle) do not see it.
func (b *Broker) Publish(m Message) error {
	if len(m.Payload) > protocol.MaxPayload {
		return fmt.Errorf("publish to %s: %d bytes are over the limit of %d", m.Topic, len(m.Payload), protocol.MaxPayload)
	}
	if m.Retain && m.Expiry > 0 {
		return fmt.Errorf("publish to %s: what is retained stays until it is replaced", m.Topic)
	}
	pk := packets.Packet{
		FixedHeader: packets.FixedHeader{Type: packets.Publish, Retain: m.Retain},
		TopicName:   m.Topic, Payload: m.Payload,
	}
	if m.Expiry > 0 {
		pk.Properties.MessageExpiryInterval = uint32(max(1, m.Expiry/time.Second))
	}
	if err := b.server.InjectPacket(b.own, pk); err != nil {
		return fmt.Errorf("publish to %s: %w", m.Topic, err)
	}
	return nil
}

// Handle calls fn for every message that an agent publishes on topic, one of
// protocol.UpTopics: in order and one at a time for each host, so a slow fn
// slows that host alone. Payload is fn's to keep.
func (b *Broker) Handle(topic string, fn func(host string, payload []byte)) {
	b.mu.Lock()
	b.nextSub++
	id := b.nextSub
	b.mu.Unlock()
	handler := func(_ *mqtt.Client, _ packets.Subscription, pk packets.Packet) {
		host, _, ok := protocol.SplitHostTopic(pk.TopicName)
		if ok && host == pk.Origin { // not what we said ourselves
			b.handle(host, pk, fn)
		}
	}
	if err := b.server.Subscribe(protocol.AllHosts(topic), id, handler); err != nil {
		panic(err) // the filter is a constant of ours
	}
}

// handle also stands between what a host may send and the life of the server.
func (b *Broker) handle(host string, pk packets.Packet, fn func(string, []byte)) {
	defer b.order.take(host)()
	aside(func() {
		defer func() {
			if p := recover(); p != nil {
				b.cfg.Log.Error("handler of a host's message panicked", "host", host, "topic", pk.TopicName, "err", fmt.Errorf("%v\n%s", p, debug.Stack()))
			}
		}()
		fn(host, pk.Payload)
	})
}

// aside runs fn on a stack of its own and waits. A client's goroutine keeps a
// stack as large as was needed once, and there are as many as clients.
func aside(fn func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		fn()
	}()
	<-done
}

// Connected reports whether a client with this id, a host id or a session's,
// is connected to this broker.
func (b *Broker) Connected(id string) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	s, ok := b.sessions[id]
	return ok && !s.over.Load()
}

// Disconnect ends every connection of a host, user or token, as when it is
// revoked or its rights have changed. From its return on they can do nothing;
// the sockets are closed within a second.
func (b *Broker) Disconnect(id string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, s := range b.sessions {
		if s.id == id || s.who.ID == id {
			s.end(packets.ErrAdministrativeAction)
		}
	}
}

// Close ends all connections and the broker. It waits for handlers that are
// at work, but not for ever.
func (b *Broker) Close() error {
	b.mu.Lock()
	if b.closed {
		b.mu.Unlock()
		return nil
	}
	b.closed = true
	for l := range b.listeners {
		l.Close()
	}
	for c := range b.conns {
		if s := c.session.Load(); s != nil {
			s.end(packets.ErrServerShuttingDown)
		} else {
			c.Close()
		}
	}
	b.mu.Unlock()
	done := make(chan struct{})
	go func() { b.wg.Wait(); close(done) }()
	select {
	case <-done:
		return b.server.Close()
	case <-time.After(closeTimeout):
		return errors.New("close broker: handlers are still at work")
	}
}
