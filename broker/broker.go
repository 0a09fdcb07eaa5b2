// Package broker is the MQTT 5 broker inside the control plane.
//
// It owns connections, limits and who may publish and read what (acl.go); who
// somebody is, is asked by a func field. It is a pipe and no store: PostgreSQL
// is the truth, retained messages are published anew at start. Its invariant:
// nothing that a client does makes Publish wait or memory grow without bound.
//
// What mochi really does under stress shapes this package: everything down
// goes at QoS 0, for its QoS 1 delivery can deadlock under fan-in; a client
// whose queue is full is cut; our own side subscribes inline.
package broker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"time"

	mqtt "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/packets"

	"github.com/remotegpu/remotegpu/protocol"
)

// Credentials are what a client shows.
type Credentials struct {
	ClientID string
	User     string
	Password []byte
	Remote   netip.Addr
}

// Principal is who a client is.
type Principal struct {
	Kind       string    // KindHost or KindUser
	ID         string    // host_… or usr_…
	Admin      bool      // platform admin
	Workspaces []string  // ids, of a user
	Expires    time.Time // the connection is ended then; zero: never
}

// Message is something to publish.
type Message struct {
	Topic   string
	Payload []byte
	Retain  bool
	Expiry  time.Duration // dropped when undelivered for so long; 0: never
}

// Config is what the broker needs from others.
type Config struct {
	// Authenticate says who shows these credentials; its error is logged, the
	// client learns only that it may not.
	Authenticate func(ctx context.Context, c Credentials) (Principal, error)
	// Retained returns what is retained at start; nil: nothing.
	Retained func(ctx context.Context) ([]Message, error)
	Log      *slog.Logger

	MaxPerAddress int // connections of one address that have not authenticated yet; 0: 256
}

const (
	connectTimeout = 10 * time.Second // from accept to CONNECT
	authTimeout    = 10 * time.Second
	maxPacket      = protocol.MaxPayload + 4096
)

// Broker is the MQTT broker of one server.
type Broker struct {
	cfg    Config
	server *mqtt.Server

	mu      sync.Mutex              // guards what follows
	pending map[netip.Addr]int      // connections that have not authenticated
	conns   map[net.Conn]netip.Addr // all, for Close; the address is invalid after settle
	closed  bool
	nextSub int
}

// New returns a running broker without listeners.
func New(cfg Config) (*Broker, error) {
	if cfg.MaxPerAddress == 0 {
		cfg.MaxPerAddress = 256
	}
	caps := mqtt.NewDefaultServerCapabilities()
	caps.MaximumPacketSize = maxPacket
	caps.MaximumClientWritesPending = 256
	caps.MaximumMessageExpiryInterval = 0 // never: mochi would drop retained messages after a day
	caps.MaximumSessionExpiryInterval = 3600
	caps.MaximumInflight = 256
	caps.TopicAliasMaximum = 0 // they break resent messages
	caps.MinimumProtocolVersion = 4
	b := &Broker{cfg: cfg, pending: map[netip.Addr]int{}, conns: map[net.Conn]netip.Addr{}}
	b.server = mqtt.New(&mqtt.Options{
		Capabilities: caps, InlineClient: true, SysTopicResendInterval: 3600,
		Logger: slog.New(quiet{cfg.Log.Handler()}), ClientNetReadBufferSize: 4096, ClientNetWriteBufferSize: 4096,
	})
	if err := b.server.AddHook(&hook{broker: b, log: cfg.Log}, nil); err != nil {
		return nil, fmt.Errorf("add broker hook: %w", err)
	}
	if err := b.server.Serve(); err != nil {
		return nil, fmt.Errorf("start broker: %w", err)
	}
	return b, b.retain(context.Background())
}

func (b *Broker) retain(ctx context.Context) error {
	if b.cfg.Retained == nil {
		return nil
	}
	all, err := b.cfg.Retained(ctx)
	if err != nil {
		return fmt.Errorf("load retained messages: %w", err)
	}
	for _, m := range all {
		m.Retain = true
		if err := b.Publish(m); err != nil {
			return err
		}
	}
	return nil
}

// Publish sends m to everybody who listens, at QoS 0. It never waits for a
// client.
func (b *Broker) Publish(m Message) error {
	pk := packets.Packet{
		FixedHeader: packets.FixedHeader{Type: packets.Publish, Retain: m.Retain},
		TopicName:   m.Topic, Payload: m.Payload, ProtocolVersion: 5, Created: time.Now().Unix(),
	}
	if m.Expiry > 0 {
		pk.Properties.MessageExpiryInterval = uint32(max(1, m.Expiry/time.Second))
	}
	inline, ok := b.server.Clients.Get(mqtt.InlineClientId)
	if !ok {
		return errors.New("broker is closed")
	}
	if err := b.server.InjectPacket(inline, pk); err != nil {
		return fmt.Errorf("publish to %s: %w", m.Topic, err)
	}
	return nil
}

// Handle calls fn for every message that an agent publishes on topic, one of
// protocol.UpTopics: in order for each host, from the host's own goroutine, so
// a slow fn slows that host. Payload is fn's to keep.
func (b *Broker) Handle(topic string, fn func(host string, payload []byte)) {
	b.mu.Lock()
	b.nextSub++
	id := b.nextSub
	b.mu.Unlock()
	handler := func(_ *mqtt.Client, _ packets.Subscription, pk packets.Packet) {
		if host, _, ok := protocol.SplitHostTopic(pk.TopicName); ok {
			fn(host, pk.Payload)
		}
	}
	if err := b.server.Subscribe(protocol.AllHosts(topic), id, handler); err != nil {
		panic(err) // the filter is a constant of ours
	}
}

// Connected reports whether a client is connected to this broker.
func (b *Broker) Connected(client string) bool {
	cl, ok := b.server.Clients.Get(client)
	return ok && !cl.Closed()
}

// Disconnect ends a client's connection, as when its rights have changed.
func (b *Broker) Disconnect(client string) {
	if cl, ok := b.server.Clients.Get(client); ok {
		_ = b.server.DisconnectClient(cl, packets.ErrNotAuthorized) // returns the code it was given
	}
}

// Serve takes MQTT connections from l until ctx ends.
func (b *Broker) Serve(ctx context.Context, l net.Listener) error {
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()
	for {
		c, err := l.Accept()
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return fmt.Errorf("accept MQTT connection: %w", err)
		}
		go b.establish(c)
	}
}

// ServeHTTP takes one MQTT connection over WebSocket.
func (b *Broker) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	c, err := upgrade(w, r)
	if err != nil {
		b.cfg.Log.Debug("mqtt over websocket", "err", err)
		return
	}
	b.establish(c)
}

// establish serves one connection until it ends.
func (b *Broker) establish(c net.Conn) {
	defer c.Close()
	addr := address(c)
	if !b.enter(c, addr) {
		return
	}
	defer b.leave(c)
	_ = c.SetDeadline(time.Now().Add(connectTimeout)) // mochi moves it after CONNECT
	err := b.server.EstablishConnection("remotegpu", c)
	b.cfg.Log.Debug("mqtt connection ended", "remote", addr.String(), "err", err)
}

// enter counts a connection as not authenticated yet, and refuses what is too
// much from one address.
func (b *Broker) enter(c net.Conn, addr netip.Addr) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed || b.pending[addr] >= b.cfg.MaxPerAddress {
		return false
	}
	b.pending[addr]++
	b.conns[c] = addr
	return true
}

// settle says that a connection has authenticated.
func (b *Broker) settle(c net.Conn) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if addr := b.conns[c]; addr.IsValid() {
		b.conns[c] = netip.Addr{}
		if b.pending[addr]--; b.pending[addr] == 0 {
			delete(b.pending, addr)
		}
	}
}

func (b *Broker) leave(c net.Conn) {
	b.settle(c)
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.conns, c)
}

// Close ends all connections and the broker.
func (b *Broker) Close() error {
	b.mu.Lock()
	b.closed = true
	for c := range b.conns {
		c.Close()
	}
	b.mu.Unlock()
	return b.server.Close()
}

func address(c net.Conn) netip.Addr {
	ap, err := netip.ParseAddrPort(c.RemoteAddr().String())
	if err != nil {
		return netip.Addr{}
	}
	return ap.Addr().Unmap()
}

// quiet lets only what a person should act on through from mochi's log.
type quiet struct{ slog.Handler }

func (q quiet) Enabled(ctx context.Context, l slog.Level) bool {
	return l >= slog.LevelError && q.Handler.Enabled(ctx, l)
}
