// Package link is the agent's MQTT session with the control plane.
//
// It owns connecting (MQTT 5 over WebSocket or TLS, through proxies), the
// tokens of the host, what is said up (presence, hello, status, and the telemetry
// that it is given) and the checks of what comes down (desired, dial, ack). It
// does not own state on disk, what is done with a document, samples, or streams.
// Its invariants: every connection has an epoch of its own and what is said of
// the host's state on it carries it; a status is repeated until it is
// acknowledged; nothing that comes down can make memory grow or stop the link;
// without a control plane the rest of the agent works on.
//
//	connect -> CONNACK -> subscribe -> presence, hello, status
//	  ^                                   | status: on change, every 30 s,
//	  |                                   v and again until acknowledged
//	  +-- full jitter 0.5-60 s <----- cut, refused, silent for 10 s after a question
package link

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net/url"
	"sync"
	"sync/atomic"
	"time"

	"github.com/eclipse/paho.golang/autopaho"
	"github.com/eclipse/paho.golang/paho"

	"github.com/remotegpu/remotegpu/edge-agent/reach"
	"github.com/remotegpu/remotegpu/edge-agent/state"
	"github.com/remotegpu/remotegpu/protocol"
)

const (
	keepAlive     = 45 // seconds; the kernel looks after the line, and a heartbeat comes in between
	proxyAlive    = 10 // the same where a proxy stands between, whose kernel knows nothing of the server
	sessionExpiry = 60 // seconds; above 0, so that a fast reconnect takes the old session over
	receiveMax    = 32 // messages that may wait here unhandled, each at most maxPacket
	sayWithin     = 10 * time.Second
	firstRepeat   = 5 * time.Second // until a status is said again; doubles
	clockEvery    = 24 * time.Hour
)

// Config is what a Link needs. All but MQTT, Capabilities, InUse and Log is required.
type Config struct {
	Server       *reach.Server
	MQTT         string // tls://HOST:PORT of a broker beside the server; empty: /mqtt of the server
	Store        *state.Store
	Agent        string   // version
	BootID       string   // of the kernel
	Capabilities []string // see protocol.Hello

	Desired   func(*protocol.Desired) // a new document is stored and is to be obeyed
	Dial      func(protocol.Dial)     // a stream is wanted; Expires is by the host's own clock
	InUse     func() bool             // somebody waits for this host when it is cut off; nil: never
	Inventory func(context.Context) protocol.Inventory
	Usage     func(context.Context) protocol.Usage
	Workloads func() (list []protocol.WorkloadStatus, applied uint64)
	Fault     func() string // as in protocol.Status; nil: there is never one
	Log       *slog.Logger
}

// Phases of a link.
const (
	Connecting = "connecting"
	Connected  = "connected"
	Refused    = "refused" // the server answers, but does not let this host in
)

// State is how the link is, for people.
type State struct {
	Phase   string    `json:"phase"`
	Since   time.Time `json:"since"`
	Message string    `json:"message,omitempty"` // why it is not connected and what to do
}

// Link keeps the session. Make it by New.
type Link struct {
	cfg     Config
	host    string
	signer  *Signer
	retry   retry
	refused *refusals
	changed chan struct{} // capacity 1: a status is due
	acked   chan struct{} // capacity 1: ackedSeq grew
	ackSeq  atomic.Uint64
	epoch   atomic.Uint64                   // of the connection that is or is being made
	cert    atomic.Pointer[tls.Certificate] // for a broker beside the server; nil: none yet

	firstRepeat time.Duration // the constant, but for tests

	obeying sync.Mutex // held while a document is taken: they may come in two ways

	mu       sync.Mutex // guards the fields below
	state    State
	conn     *guard
	manager  *autopaho.ConnectionManager // nil before Run
	cancel   context.CancelFunc          // of the session
	measured time.Time                   // the clock
	warned   time.Duration               // offset that was told last
	fetching context.Context             // of Run; nil before
	wanted   *wanted                     // what is being fetched; nil: nothing

	sessions sync.WaitGroup // and the fetching of documents
}

// New returns a link for the enrolled host of cfg.Store. It connects in Run.
func New(cfg Config) (*Link, error) {
	id := cfg.Store.Identity()
	if id == nil {
		return nil, state.ErrNotEnrolled
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.InUse == nil {
		cfg.InUse = func() bool { return false }
	}
	l := &Link{
		cfg: cfg, host: id.Host, signer: NewSigner(id, cfg.Server.Now),
		changed: make(chan struct{}, 1), acked: make(chan struct{}, 1),
		state: State{Phase: Connecting, Since: time.Now()}, firstRepeat: firstRepeat,
	}
	l.refused = newRefusals(cfg.Store.Append, l.Changed, cfg.Log)
	return l, nil
}

// Changed says that a status is due: a workload, an event or the document
// changed. It does not block.
func (l *Link) Changed() { poke(l.changed) }

func poke(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// Signer returns the maker of this host's tokens.
func (l *Link) Signer() *Signer { return l.signer }

// Spread is over how long the idle hosts of this server come back, as it said
// last.
func (l *Link) Spread() time.Duration { return l.retry.over() }

// State returns how the link is now.
func (l *Link) State() State {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.state
}

// Run keeps the session until ctx ends, then says goodbye.
func (l *Link) Run(ctx context.Context) error {
	address := l.cfg.Server.URL("wss", "/mqtt")
	if l.cfg.MQTT != "" {
		address = l.cfg.MQTT
	}
	u, err := url.Parse(address)
	if err != nil {
		return err
	}
	l.mu.Lock()
	l.fetching = ctx
	l.mu.Unlock()
	inner, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	cm, err := autopaho.NewConnection(inner, l.clientConfig(inner, u))
	if err != nil {
		return err
	}
	l.mu.Lock()
	l.manager = cm
	l.mu.Unlock()
	<-ctx.Done()
	l.leave(inner, cm)
	l.refused.flush(true)
	l.sessions.Wait()
	return nil
}

// leave tells the control plane that the agent goes, and closes.
func (l *Link) leave(ctx context.Context, cm *autopaho.ConnectionManager) {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	if l.State().Phase == Connected {
		short, cancel := context.WithTimeout(ctx, time.Second)
		l.publish(short, cm, protocol.TopicPresence, l.presence(false))
		cancel()
	}
	l.endSession()
	if cm.Disconnect(ctx) != nil {
		l.cut()
	}
}

func (l *Link) clientConfig(ctx context.Context, u *url.URL) autopaho.ClientConfig {
	return autopaho.ClientConfig{
		ServerUrls:            []*url.URL{u},
		KeepAlive:             l.keepAlive(u),
		SessionExpiryInterval: sessionExpiry,
		ConnectTimeout:        4 * sayWithin,
		ReconnectBackoff:      func(int) time.Duration { return l.retry.next(l.cfg.InUse()) },
		AttemptConnection:     l.open,
		ConnectPacketBuilder:  func(cp *paho.Connect, _ *url.URL) (*paho.Connect, error) { return l.connectPacket(ctx, cp) },
		OnConnectionUp:        func(cm *autopaho.ConnectionManager, _ *paho.Connack) { l.up(ctx, cm) },
		OnConnectionDown:      l.down,
		OnConnectError:        l.notConnected,
		ClientConfig: paho.ClientConfig{
			ClientID:           l.host,
			PacketTimeout:      sayWithin,
			OnPublishReceived:  []func(paho.PublishReceived) (bool, error){l.receive},
			OnServerDisconnect: l.sentAway,
			OnClientError:      func(err error) { l.cfg.Log.Info("link lost", "err", err) },
		},
	}
}

func (l *Link) keepAlive(u *url.URL) uint16 {
	if l.cfg.Server.Proxied(u.Host) {
		return proxyAlive
	}
	return keepAlive
}

// connectPacket fills in what is new with every connection: the epoch, the
// will that carries it, and a fresh token.
func (l *Link) connectPacket(ctx context.Context, cp *paho.Connect) (*paho.Connect, error) {
	l.mu.Lock()
	unsure := l.measured.IsZero() || l.state.Phase == Refused
	l.mu.Unlock()
	if unsure || l.cfg.Server.Stepped() {
		if err := l.measureClock(ctx); err != nil {
			return nil, err
		}
	}
	l.cfg.Store.CountFrom(l.cfg.Server.Now())
	l.epoch.Store(l.cfg.Store.NextEpoch())
	will, err := protocol.Marshal(l.presence(false))
	if err != nil {
		return nil, err
	}
	token, err := l.signer.Token(protocol.AudienceMQTT)
	if err != nil {
		return nil, err
	}
	expiry, maximum := uint32(sessionExpiry), uint16(receiveMax)
	cp.Properties = &paho.ConnectProperties{SessionExpiryInterval: &expiry, ReceiveMaximum: &maximum}
	cp.UsernameFlag, cp.Username = true, protocol.MQTTUserHost
	cp.PasswordFlag, cp.Password = true, []byte(token)
	cp.WillMessage = &paho.WillMessage{Topic: protocol.HostTopic(l.host, protocol.TopicPresence), Payload: will, QoS: 1}
	cp.WillProperties = &paho.WillProperties{}
	return cp, nil
}

func (l *Link) presence(online bool) *protocol.Presence {
	return &protocol.Presence{Version: protocol.Version, Epoch: l.epoch.Load(), Online: online}
}

// measureClock compares the clocks, and tells when they differ much. It takes a
// connection of its own, so a fleet that comes back must not do so.
func (l *Link) measureClock(ctx context.Context) error {
	l.mu.Lock()
	warned := l.warned
	l.mu.Unlock()
	offset, err := l.cfg.Server.Measure(ctx)
	if err != nil {
		return err
	}
	news := (offset - warned).Abs() > reach.Tolerated
	if news {
		l.cfg.Store.Append(clockEvent(offset))
		l.cfg.Log.Warn("clock differs from the server's", "offset", offset)
	}
	l.mu.Lock()
	l.measured = time.Now()
	if news {
		l.warned = offset
	}
	l.mu.Unlock()
	return nil
}

// FollowClock measures anew when this host's clock was set since the last time, or
// a day has passed, and reports whether it did: who was refused may be let in now.
func (l *Link) FollowClock(ctx context.Context) bool {
	l.mu.Lock()
	due := time.Since(l.measured) > clockEvery
	l.mu.Unlock()
	return (due || l.cfg.Server.Stepped()) && l.measureClock(ctx) == nil
}

func clockEvent(offset time.Duration) protocol.Event {
	if offset.Abs() <= reach.Tolerated {
		return protocol.Event{Severity: protocol.SeverityNormal, Reason: "ClockRight", Message: "This host's clock agrees with the control plane's again."}
	}
	return protocol.Event{
		Severity: protocol.SeverityWarning, Reason: "ClockWrong",
		Message: "This host's clock is " + reach.Wrong(offset) + " of the control plane's: set it, for example by `timedatectl set-ntp true`. The agent works on by the control plane's time.",
	}
}

// up begins the session of a new connection.
func (l *Link) up(ctx context.Context, cm *autopaho.ConnectionManager) {
	ctx, cancel := context.WithCancel(ctx)
	l.setState(Connected, "")
	l.retry.up()
	l.mu.Lock()
	l.cancel = cancel
	l.mu.Unlock()
	l.cfg.Log.Info("connected", "epoch", l.epoch.Load())
	l.sessions.Go(func() {
		defer cancel()
		if err := l.session(ctx, cm); err != nil && !errors.Is(err, context.Canceled) {
			l.cfg.Log.Warn("session ended", "err", err)
			l.cut()
		}
	})
}

func (l *Link) down() bool {
	l.retry.down()
	l.endSession()
	l.mu.Lock()
	if l.state.Phase == Connected {
		l.state = State{Phase: Connecting, Since: time.Now(), Message: "The connection to the server was lost; it is tried again."}
	}
	l.mu.Unlock()
	return true
}

func (l *Link) endSession() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.cancel != nil {
		l.cancel()
	}
}

// cut closes the connection under the client, which then makes a new one.
func (l *Link) cut() {
	l.mu.Lock()
	conn := l.conn
	l.mu.Unlock()
	if conn != nil {
		conn.Close()
	}
}

// setState returns whether something changed for a person.
func (l *Link) setState(phase, message string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.state.Phase == phase && l.state.Message == message {
		return false
	}
	if l.state.Phase != phase {
		l.state.Since = time.Now()
	}
	l.state.Phase, l.state.Message = phase, message
	return true
}
