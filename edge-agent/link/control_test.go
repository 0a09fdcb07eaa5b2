package link

import (
	"bufio"
	"context"
	"crypto/ed25519"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/gorilla/websocket"
	mqtt "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/packets"

	"github.com/remotegpu/remotegpu/edge-agent/reach"
	"github.com/remotegpu/remotegpu/edge-agent/state"
	"github.com/remotegpu/remotegpu/protocol"
)

const patience = time.Minute

// control is a control plane as far as a link sees one: a real broker behind a
// real HTTPS server.
type control struct {
	t       *testing.T
	http    *httptest.Server
	broker  *mqtt.Server
	key     ed25519.PrivateKey // signs documents
	said    chan message       // what hosts published
	hostKey atomic.Pointer[ed25519.PublicKey]
	asked   atomic.Int32 // for documents
	timed   atomic.Int32 // asked what time it is
	before  atomic.Int32 // the last connection, as timed

	documents atomic.Pointer[http.HandlerFunc] // what they are answered; nil: none is there

	mu    sync.Mutex // guards conns
	conns []*muted
}

// muted is a connection whose other end hears nothing any more, once it hangs.
type muted struct {
	net.Conn
	hangs atomic.Bool
}

func (m *muted) Write(p []byte) (int, error) {
	if m.hangs.Load() {
		return len(p), nil
	}
	return m.Conn.Write(p)
}

type message struct {
	topic   string
	qos     byte
	payload []byte
}

func newControl(t *testing.T) *control {
	t.Helper()
	_, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	c := &control{t: t, key: key, said: make(chan message, 10_000)}
	c.broker = mqtt.New(&mqtt.Options{InlineClient: true, Logger: slog.New(slog.DiscardHandler)})
	if err := c.broker.AddHook(&door{control: c}, nil); err != nil {
		t.Fatal(err)
	}
	if err := c.broker.Serve(); err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/healthz", func(http.ResponseWriter, *http.Request) { c.timed.Add(1) })
	mux.HandleFunc("/mqtt", c.serveMQTT)
	mux.HandleFunc("/api/v1/agent/desired/{generation}", c.serveDocument)
	c.http = httptest.NewTLSServer(mux)
	t.Cleanup(func() { c.cut(); c.http.Close(); c.broker.Close() })
	return c
}

func (c *control) serveMQTT(w http.ResponseWriter, r *http.Request) {
	up := websocket.Upgrader{Subprotocols: []string{"mqtt"}}
	ws, err := up.Upgrade(w, r, nil)
	if err != nil {
		return
	}
	c.serve(&wsConn{Conn: ws})
}

// serveDocument answers hosts that show who they are.
func (c *control) serveDocument(w http.ResponseWriter, r *http.Request) {
	bearer := strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer ")
	if host, err := c.hostOf(bearer, protocol.AudienceAPI); err != nil || host != testHost {
		w.WriteHeader(http.StatusUnauthorized)
		return
	}
	c.asked.Add(1)
	if serve := c.documents.Load(); serve != nil {
		(*serve)(w, r)
		return
	}
	w.WriteHeader(http.StatusConflict)
}

// hostOf returns whose token it is.
func (c *control) hostOf(token, audience string) (string, error) {
	var claims jwt.RegisteredClaims
	_, err := jwt.ParseWithClaims(token, &claims, func(*jwt.Token) (any, error) { return *c.hostKey.Load(), nil },
		jwt.WithValidMethods([]string{"EdDSA"}), jwt.WithAudience(audience), jwt.WithExpirationRequired(), jwt.WithIssuedAt())
	if err == nil && time.Until(claims.ExpiresAt.Time) > 10*time.Minute {
		err = errors.New("token lives too long")
	}
	return claims.Subject, err
}

func (c *control) serve(raw net.Conn) {
	conn := &muted{Conn: raw}
	c.mu.Lock()
	c.conns = append(c.conns, conn)
	c.mu.Unlock()
	defer conn.Close()
	c.broker.EstablishConnection("test", conn)
}

// cut closes every connection that there is.
func (c *control) cut() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, conn := range c.conns {
		conn.Close()
	}
	c.conns = nil
}

// hang has the broker answer nothing on the connections that there are.
func (c *control) hang() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, conn := range c.conns {
		conn.hangs.Store(true)
	}
}

func (c *control) caPEM() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.http.Certificate().Raw})
}

// say publishes to the host.
func (c *control) say(topic string, payload []byte) {
	c.t.Helper()
	if err := c.broker.Publish(protocol.HostTopic(testHost, topic), payload, false, 0); err != nil {
		c.t.Fatal(err)
	}
}

func (c *control) sayDocument(topic string, v any) {
	c.t.Helper()
	payload, err := protocol.Marshal(v)
	if err != nil {
		c.t.Fatal(err)
	}
	c.say(topic, payload)
}

func (c *control) sign(d protocol.Desired) []byte {
	c.t.Helper()
	return signBy(c.t, c.key, d)
}

func signBy(t *testing.T, key ed25519.PrivateKey, d protocol.Desired) []byte {
	t.Helper()
	d.Version = protocol.Version
	if d.Host == "" {
		d.Host = testHost
	}
	b, err := protocol.Sign(&d, key)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// door lets in whoever has a right token, by the clock of the test machine.
type door struct {
	mqtt.HookBase
	control *control
}

func (d *door) ID() string { return "door" }

func (d *door) Provides(b byte) bool {
	return b == mqtt.OnConnectAuthenticate || b == mqtt.OnACLCheck || b == mqtt.OnPublished || b == mqtt.OnWillSent
}

func (d *door) OnConnectAuthenticate(cl *mqtt.Client, pk packets.Packet) bool {
	d.control.before.Store(d.control.timed.Load())
	if d.control.hostKey.Load() == nil || string(pk.Connect.Username) != protocol.MQTTUserHost {
		return false
	}
	host, err := d.control.hostOf(string(pk.Connect.Password), protocol.AudienceMQTT)
	return err == nil && host == cl.ID
}

func (d *door) OnACLCheck(*mqtt.Client, string, bool) bool { return true }

func (d *door) OnPublished(_ *mqtt.Client, pk packets.Packet) {
	if _, topic, ok := protocol.SplitHostTopic(pk.TopicName); ok {
		d.control.said <- message{topic, pk.FixedHeader.Qos, append([]byte(nil), pk.Payload...)}
	}
}

func (d *door) OnWillSent(_ *mqtt.Client, pk packets.Packet) { d.OnPublished(nil, pk) }

// next waits for a document on a topic that fits and returns it; others before
// it are dropped.
func next[T any](c *control, topic string, fits func(*T) bool) *T {
	c.t.Helper()
	deadline := time.After(patience)
	for {
		select {
		case m := <-c.said:
			if m.topic != topic {
				continue
			}
			v := new(T)
			if err := protocol.Unmarshal(m.payload, v); err != nil {
				c.t.Fatalf("host published something on %s that cannot be read: %v", topic, err)
			}
			if fits == nil || fits(v) {
				return v
			}
		case <-deadline:
			c.t.Fatalf("no fitting message on %s within %s", topic, patience)
		}
	}
}

// proxy is a CONNECT proxy that may ask for a login.
type proxy struct {
	net.Listener
	login string // "user:password"; empty: none is asked for
	used  atomic.Int32
}

func newProxy(t *testing.T, login string) *proxy {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{Listener: l, login: login}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go p.serve(conn)
		}
	}()
	return p
}

func (p *proxy) serve(conn net.Conn) {
	defer conn.Close()
	in := bufio.NewReader(conn)
	req, err := http.ReadRequest(in)
	if err != nil || req.Method != http.MethodConnect {
		return
	}
	want := "Basic " + base64.StdEncoding.EncodeToString([]byte(p.login))
	if p.login != "" && req.Header.Get("Proxy-Authorization") != want {
		io.WriteString(conn, "HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n")
		return
	}
	to, err := net.Dial("tcp", req.Host)
	if err != nil {
		io.WriteString(conn, "HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n")
		return
	}
	defer to.Close()
	p.used.Add(1)
	io.WriteString(conn, "HTTP/1.1 200 OK\r\n\r\n")
	go func() { io.Copy(to, in); to.Close() }()
	io.Copy(conn, to)
}

// through returns the proxy setting for users of p.
func (p *proxy) through(login string) func(*http.Request) (*url.URL, error) {
	u := &url.URL{Scheme: "http", Host: p.Addr().String()}
	if user, password, ok := cutLogin(login); ok {
		u.User = url.UserPassword(user, password)
	}
	return http.ProxyURL(u)
}

// host is an agent's link and what the rest of the agent heard from it.
type host struct {
	*Link
	store   *state.Store
	desired chan *protocol.Desired
	dials   chan protocol.Dial
	stop    func()
}

type hostOption func(*reach.Config, *Config)

// newHost runs a link to c until the test ends. Its host is known to c.
func newHost(t *testing.T, c *control, dir string, options ...hostOption) *host {
	t.Helper()
	h := &host{desired: make(chan *protocol.Desired, 100), dials: make(chan protocol.Dial, 100)}
	h.store = newStore(t, c, dir)
	rc := reach.Config{URL: c.http.URL, CA: c.caPEM()}
	cfg := Config{
		Store: h.store, Agent: "1.2.3", BootID: "boot", Capabilities: []string{"session"},
		Desired:   func(d *protocol.Desired) { h.desired <- d },
		Dial:      func(d protocol.Dial) { h.dials <- d },
		Inventory: func(context.Context) protocol.Inventory { return protocol.Inventory{Hostname: "gpu-1", CPUs: 2} },
		Usage:     func(context.Context) protocol.Usage { return protocol.Usage{Load1: 1} },
		Workloads: func() ([]protocol.WorkloadStatus, uint64) { return nil, 0 },
		Log:       slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug})),
	}
	for _, o := range options {
		o(&rc, &cfg)
	}
	var err error
	if cfg.Server, err = reach.New(rc); err != nil {
		t.Fatal(err)
	}
	if h.Link, err = New(cfg); err != nil {
		t.Fatal(err)
	}
	h.firstRepeat = 300 * time.Millisecond
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); h.Run(ctx) }()
	h.stop = sync.OnceFunc(func() { cancel(); <-done; h.store.Close() })
	t.Cleanup(h.stop)
	return h
}

func newStore(t *testing.T, c *control, dir string) *state.Store {
	t.Helper()
	store, err := state.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	if store.Identity() != nil {
		return store
	}
	key, err := store.HostKey()
	if err != nil {
		t.Fatal(err)
	}
	public := key.Public().(ed25519.PublicKey)
	c.hostKey.Store(&public)
	err = store.SaveIdentity(&state.Identity{
		Server: c.http.URL, CA: string(c.caPEM()), Host: testHost, Name: "gpu-1",
		PrivateKey: key, Keys: []ed25519.PublicKey{c.key.Public().(ed25519.PublicKey)},
	})
	if err != nil {
		t.Fatal(err)
	}
	return store
}
