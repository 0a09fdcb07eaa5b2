package broker

import (
	"bytes"
	"context"
	"log/slog"
	"sync"
	"time"

	mqtt "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/packets"
)

// hook is where mochi asks us.
type hook struct {
	mqtt.HookBase
	broker *Broker
	log    *slog.Logger
	known  sync.Map // *mqtt.Client → *member
}

// member is a client that has authenticated.
type member struct {
	Principal
	expiry *time.Timer // nil: never expires
}

func (h *hook) ID() string { return "remotegpu" }

func (h *hook) Provides(b byte) bool {
	return bytes.Contains([]byte{
		mqtt.OnConnectAuthenticate, mqtt.OnACLCheck, mqtt.OnSubscribe, mqtt.OnPublish,
		mqtt.OnDisconnect, mqtt.OnPublishDropped,
	}, []byte{b})
}

// OnConnectAuthenticate lets a client in, or not. The client id of a user gets
// the user's id in front, so that nobody can take over somebody else's session
// by its name.
func (h *hook) OnConnectAuthenticate(cl *mqtt.Client, pk packets.Packet) bool {
	ctx, cancel := context.WithTimeout(context.Background(), authTimeout)
	defer cancel()
	p, err := h.broker.cfg.Authenticate(ctx, Credentials{
		ClientID: cl.ID, User: string(pk.Connect.Username), Password: pk.Connect.Password, Remote: address(cl.Net.Conn),
	})
	switch {
	case err != nil:
		h.log.Info("mqtt client refused", "client", cl.ID, "remote", cl.Net.Remote, "err", err)
		return false
	case !mayBe(p, cl.ID):
		h.log.Warn("mqtt client id is somebody else's", "client", cl.ID, "user", p.ID, "remote", cl.Net.Remote)
		return false
	case pk.Connect.WillFlag && !mayWrite(p, pk.Connect.WillTopic):
		h.log.Warn("mqtt will refused", "client", cl.ID, "user", p.ID, "topic", pk.Connect.WillTopic)
		return false
	}
	if p.Kind != KindHost {
		cl.ID = p.ID + "/" + cl.ID
	}
	m := &member{Principal: p}
	if !p.Expires.IsZero() {
		m.expiry = time.AfterFunc(time.Until(p.Expires), func() {
			_ = h.broker.server.DisconnectClient(cl, packets.ErrNotAuthorized) // returns the code it was given
		})
	}
	h.known.Store(cl, m)
	h.broker.settle(cl.Net.Conn)
	return true
}

// OnACLCheck is asked for every subscription, publication and delivery.
func (h *hook) OnACLCheck(cl *mqtt.Client, topic string, write bool) bool {
	if cl.Net.Inline {
		return true
	}
	m, ok := h.known.Load(cl)
	if !ok {
		return false
	}
	if write {
		return mayWrite(m.(*member).Principal, topic)
	}
	return mayRead(m.(*member).Principal, topic)
}

// OnSubscribe grants QoS 0 at most: mochi's delivery at QoS 1 can hang under
// fan-in, and then publishers hang too.
func (h *hook) OnSubscribe(cl *mqtt.Client, pk packets.Packet) packets.Packet {
	if !cl.Net.Inline {
		for i := range pk.Filters {
			pk.Filters[i].Qos = 0
		}
	}
	return pk
}

// OnPublish keeps what clients publish from being retained: nothing that we
// retain comes from outside.
func (h *hook) OnPublish(cl *mqtt.Client, pk packets.Packet) (packets.Packet, error) {
	if !cl.Net.Inline {
		pk.FixedHeader.Retain = false
	}
	return pk, nil
}

// OnPublishDropped cuts a client that does not read what it subscribed to: it
// would miss messages without knowing.
func (h *hook) OnPublishDropped(cl *mqtt.Client, pk packets.Packet) {
	if cl.Net.Inline || cl.Closed() {
		return
	}
	h.log.Warn("mqtt client is too slow and was cut", "client", cl.ID, "topic", pk.TopicName)
	go cl.Stop(packets.ErrQuotaExceeded) // not DisconnectClient: its write would wait for the client
}

func (h *hook) OnDisconnect(cl *mqtt.Client, _ error, _ bool) {
	if m, ok := h.known.LoadAndDelete(cl); ok && m.(*member).expiry != nil {
		m.(*member).expiry.Stop()
	}
}
