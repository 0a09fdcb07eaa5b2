// Package external is the control plane's side of an MQTT 5 broker that somebody
// else runs, beside its own.
//
// It owns two connections: each replica's, which publishes, and the one that
// takes what hosts say, which one replica has at a time. Who may connect and
// publish what is the broker's configuration. Its invariants: nothing is taken
// for a host's that the broker has retained, which may be our own; and no host
// has more of what is taken than the built-in broker would read of it.
//
//	host ─► broker ─► "control", the replica that leads ─► handlers
//	host ◄─ broker ◄─ every replica
//
// The broker keeps the session of "control" while nobody leads, so that what
// hosts say then is not lost, and in order.
package external

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/url"
	"sync"
	"time"

	"github.com/eclipse/paho.golang/autopaho"
	"github.com/eclipse/paho.golang/paho"

	"github.com/remotegpu/remotegpu/broker"
	"github.com/remotegpu/remotegpu/protocol"
)

const (
	keepAlive     = 15               // seconds
	receiver      = "control"        // client id of the one that takes what hosts say
	receiverLife  = 300              // seconds that its session waits for the next one
	publishWithin = 2 * time.Second  // or it is told that it was not
	silentAfter   = 60 * time.Second // a host that says nothing for so long is not there
	backoffMost   = 5 * time.Second
	tellAgain     = time.Minute // between warnings of the same host
)

// Config is what a client needs; all of it is required.
type Config struct {
	URL  *url.URL // tls://HOST:PORT
	TLS  *tls.Config
	Name string // client id of the connection that publishes, of this replica alone
	Log  *slog.Logger
}

// Client is one replica's.
type Client struct {
	cfg       Config
	publisher *autopaho.ConnectionManager
	stop      context.CancelFunc
	handlers  map[string]func(host string, payload []byte) // by topic; set before Receive

	mu    sync.Mutex // guards hosts
	hosts map[string]*voice
}

// voice is what is known of a host that was heard.
type voice struct {
	last time.Time
	pace broker.Pace
	told time.Time // when it was last said that it is over its pace
}

// New returns a client that connects, and stays so until Close.
func New(cfg Config) (*Client, error) {
	ctx, stop := context.WithCancel(context.Background())
	c := &Client{cfg: cfg, stop: stop, handlers: map[string]func(string, []byte){}, hosts: map[string]*voice{}}
	var err error
	if c.publisher, err = autopaho.NewConnection(ctx, c.config(cfg.Name)); err != nil {
		stop()
		return nil, fmt.Errorf("connect to broker: %w", err)
	}
	return c, nil
}

func (c *Client) config(id string) autopaho.ClientConfig {
	return autopaho.ClientConfig{
		ServerUrls: []*url.URL{c.cfg.URL}, TlsCfg: c.cfg.TLS, KeepAlive: keepAlive, ConnectTimeout: 5 * time.Second,
		CleanStartOnInitialConnection: true,
		ReconnectBackoff:              backoff,
		OnConnectionUp: func(*autopaho.ConnectionManager, *paho.Connack) {
			c.cfg.Log.Info("connected to the external broker", "client", id)
		},
		OnConnectError: func(err error) {
			c.cfg.Log.Warn("not connected to the external broker; it is tried again", "client", id, "err", err)
		},
		ClientConfig: paho.ClientConfig{
			ClientID:      id,
			OnClientError: func(err error) { c.cfg.Log.Warn("connection to the external broker lost", "client", id, "err", err) },
		},
	}
}

// backoff is full jitter.
func backoff(try int) time.Duration {
	if try == 0 {
		return 0
	}
	return 50*time.Millisecond + rand.N(min(backoffMost, 250*time.Millisecond<<min(try, 6)))
}

// Close says goodbye.
func (c *Client) Close() {
	ctx, cancel := context.WithTimeout(context.Background(), publishWithin)
	defer cancel()
	_ = c.publisher.Disconnect(ctx) // it may be cut off
	c.stop()
}

// Publish sends a message: at QoS 0 what expires, for who sends that sends it
// again, and else at QoS 1.
func (c *Client) Publish(m broker.Message) error {
	ctx, cancel := context.WithTimeout(context.Background(), publishWithin)
	defer cancel()
	p := &paho.Publish{Topic: m.Topic, Payload: m.Payload, Retain: m.Retain, QoS: 1}
	if m.Expiry > 0 {
		seconds := uint32(max(1, m.Expiry/time.Second))
		p.QoS, p.Properties = 0, &paho.PublishProperties{MessageExpiry: &seconds}
	}
	if _, err := c.publisher.Publish(ctx, p); err != nil {
		return fmt.Errorf("publish to %s at the external broker: %w", m.Topic, err)
	}
	return nil
}

// Handle calls fn for every message that a host publishes on topic, one of
// protocol.UpTopics, while this replica receives: in order, one at a time. Call
// it before Receive.
func (c *Client) Handle(topic string, fn func(host string, payload []byte)) { c.handlers[topic] = fn }

// Connected reports whether a host is there, as far as this replica hears.
func (c *Client) Connected(host string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	v := c.hosts[host]
	return v != nil && time.Since(v.last) < silentAfter
}

// Expect takes hosts for connected that were so a moment ago, when another
// replica heard them.
func (c *Client) Expect(hosts []string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, host := range hosts {
		c.voice(host).last = time.Now()
	}
}

// voice is called with mu held.
func (c *Client) voice(host string) *voice {
	v := c.hosts[host]
	if v == nil {
		v = &voice{pace: broker.NewPace(broker.Config{})}
		c.hosts[host] = v
	}
	return v
}

// Receive takes what hosts say until ctx ends: in one replica at a time.
func (c *Client) Receive(ctx context.Context) error {
	defer c.forget()
	inner, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	cfg := c.config(receiver)
	cfg.CleanStartOnInitialConnection, cfg.SessionExpiryInterval = false, receiverLife
	cfg.OnConnectionUp = func(cm *autopaho.ConnectionManager, _ *paho.Connack) { go c.subscribe(inner, cm) }
	cfg.OnPublishReceived = []func(paho.PublishReceived) (bool, error){c.receive}
	cm, err := autopaho.NewConnection(inner, cfg)
	if err != nil {
		return fmt.Errorf("connect to broker: %w", err)
	}
	<-ctx.Done()
	last, cancel := context.WithTimeout(inner, publishWithin)
	defer cancel()
	_ = cm.Disconnect(last) // it may be cut off
	return nil
}

func (c *Client) forget() {
	c.mu.Lock()
	defer c.mu.Unlock()
	clear(c.hosts)
}

// subscribe tries until it is done or the connection has gone.
func (c *Client) subscribe(ctx context.Context, cm *autopaho.ConnectionManager) {
	sub := &paho.Subscribe{}
	for topic := range c.handlers {
		sub.Subscriptions = append(sub.Subscriptions, paho.SubscribeOptions{
			Topic: protocol.AllHosts(topic), QoS: 1, RetainHandling: 2, RetainAsPublished: true,
		})
	}
	for {
		within, cancel := context.WithTimeout(ctx, publishWithin)
		_, err := cm.Subscribe(within, sub)
		cancel()
		switch {
		case err == nil:
			c.cfg.Log.Info("this replica takes what hosts say at the external broker")
			return
		case errors.Is(err, autopaho.ConnectionDownError), ctx.Err() != nil:
			return // the next connection subscribes
		}
		c.cfg.Log.Error("subscribe at the external broker", "err", err)
		select {
		case <-ctx.Done():
		case <-time.After(publishWithin):
		}
	}
}

func (c *Client) receive(r paho.PublishReceived) (bool, error) {
	host, topic, ok := protocol.SplitHostTopic(r.Packet.Topic)
	fn := c.handlers[topic]
	if !ok || fn == nil || r.Packet.Retain || len(r.Packet.Payload) > protocol.MaxPayload {
		return true, nil
	}
	if c.hear(host, len(r.Packet.Payload)) {
		fn(host, r.Packet.Payload)
	}
	return true, nil
}

// hear notes that a host has said something, and reports whether it is taken.
// What all hosts say comes by one connection, so who sends too much cannot be
// made to wait; a host says a status and telemetry again, and its hello when it
// connects anew.
func (c *Client) hear(host string, size int) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	v := c.voice(host)
	v.last = time.Now()
	ok := v.pace.Allow(size)
	if !ok && time.Since(v.told) > tellAgain {
		v.told = v.last
		c.cfg.Log.Warn("a host says too much at the external broker; some of it is not taken", "host", host)
	}
	return ok
}
