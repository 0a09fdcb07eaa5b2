package broker

import (
	"bytes"
	"context"
	"errors"
	"log/slog"

	mqtt "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/packets"
)

// hook is where mochi asks us.
type hook struct {
	mqtt.HookBase
	broker *Broker
	log    *slog.Logger
}

func (h *hook) ID() string { return "remotegpu" }

func (h *hook) Provides(b byte) bool {
	return bytes.Contains([]byte{
		mqtt.OnConnect, mqtt.OnConnectAuthenticate, mqtt.OnACLCheck, mqtt.OnSubscribe, mqtt.OnSubscribed,
		mqtt.OnPacketRead, mqtt.OnPacketProcessed, mqtt.OnPacketEncode, mqtt.OnPublish, mqtt.OnPublishDropped, mqtt.OnWill,
	}, []byte{b})
}

// sessionOf returns nil for our own inline clients and before authentication.
func sessionOf(cl *mqtt.Client) *session {
	if c, ok := cl.Net.Conn.(*conn); ok {
		return c.session.Load()
	}
	return nil
}

// OnConnect bounds what a client asks for, before it is answered.
func (h *hook) OnConnect(cl *mqtt.Client, _ packets.Packet) error {
	if k := cl.State.Keepalive; cl.Properties.ProtocolVersion == 5 && (k == 0 || k > keepAlive) {
		cl.State.Keepalive, cl.State.ServerKeepalive = keepAlive, true
	}
	cl.Properties.Props.TopicAliasMaximum = 0
	cl.Properties.Will.WillDelayInterval = 0 // the session ends with the connection, and the will with the session
	return nil
}

// OnConnectAuthenticate lets a client in, or not.
func (h *hook) OnConnectAuthenticate(cl *mqtt.Client, pk packets.Packet) bool {
	c := cl.Net.Conn.(*conn)
	p, code := h.admit(c, cl, pk)
	if code == packets.CodeSuccess {
		cl.ID = sessionID(p, cl.ID)
		code = h.broker.begin(&session{broker: h.broker, id: cl.ID, who: p, client: cl, conn: c, pace: NewPace(h.broker.cfg), done: make(chan struct{})})
	}
	if code == packets.CodeSuccess {
		return true
	}
	_ = h.broker.server.SendConnack(cl, code, false, nil) // mochi knows one code alone; it is closed next
	cl.Stop(code)
	return false
}

func (h *hook) admit(c *conn, cl *mqtt.Client, pk packets.Packet) (Principal, packets.Code) {
	ctx, cancel := context.WithTimeout(context.Background(), authTimeout)
	defer cancel()
	log := h.log.With("client", cl.ID, "remote", c.remote.String())
	if pk.Properties.AuthenticationMethod != "" {
		return Principal{}, packets.ErrBadAuthenticationMethod
	}
	var p Principal
	var err error
	aside(func() {
		p, err = h.broker.cfg.Authenticate(ctx, Credentials{
			ClientID: cl.ID, User: string(pk.Connect.Username), Password: pk.Connect.Password, Remote: c.remote,
		})
	})
	switch {
	case errors.Is(err, ErrUnavailable), errors.Is(err, context.DeadlineExceeded):
		log.Error("mqtt client could not be authenticated", "err", err)
		return p, packets.ErrServerUnavailable
	case err != nil:
		log.Info("mqtt client refused", "err", err)
		return p, packets.ErrBadUsernameOrPassword
	case !mayBe(p, cl.ID):
		log.Warn("mqtt client id is not this client's", "principal", p.ID)
		return p, packets.ErrClientIdentifierNotValid
	case pk.Connect.WillFlag && !mayWrite(p, pk.Connect.WillTopic):
		log.Warn("mqtt will refused", "principal", p.ID, "topic", pk.Connect.WillTopic)
		return p, packets.ErrNotAuthorized
	}
	return p, packets.CodeSuccess
}

// OnPacketRead comes from the client's own reader, before anything else is done
// with the packet: here it waits when it is one of a flood.
func (h *hook) OnPacketRead(cl *mqtt.Client, pk packets.Packet) (packets.Packet, error) {
	if s := sessionOf(cl); s != nil {
		s.pace.wait(pk.FixedHeader.Remaining)
	}
	return pk, nil
}

// OnACLCheck is asked for every subscription, publication and delivery.
func (h *hook) OnACLCheck(cl *mqtt.Client, topic string, write bool) bool {
	if cl.Net.Inline {
		return true
	}
	s := sessionOf(cl)
	switch {
	case s == nil || s.over.Load():
		return false
	case write:
		return mayWrite(s.who, topic)
	}
	return mayRead(s.who, topic)
}

// OnSubscribe grants QoS 0 at most: mochi's delivery at QoS 1 can hang under
// fan-in, and then publishers hang too. Retained messages are ours to send.
func (h *hook) OnSubscribe(cl *mqtt.Client, pk packets.Packet) packets.Packet {
	s := sessionOf(cl)
	if s == nil {
		return pk
	}
	if cl.State.Subscriptions.Len()+len(pk.Filters) > maxFilters {
		s.end(packets.ErrQuotaExceeded)
	}
	s.wanted = s.wanted[:0]
	for i := range pk.Filters {
		f := &pk.Filters[i]
		_, existed := cl.State.Subscriptions.Get(f.Filter)
		if f.RetainHandling == 2 || f.RetainHandling == 1 && existed {
			s.wanted = append(s.wanted, packets.Subscription{})
		} else {
			s.wanted = append(s.wanted, *f)
		}
		f.Qos, f.RetainHandling = 0, 2
	}
	return pk
}

// OnSubscribed notes what was granted; SUBACK goes out after it.
func (h *hook) OnSubscribed(cl *mqtt.Client, _ packets.Packet, codes []byte) {
	s := sessionOf(cl)
	if s == nil {
		return
	}
	for i, sub := range s.wanted {
		if sub.Filter != "" && codes[i] < packets.ErrUnspecifiedError.Code {
			s.replay = append(s.replay, sub)
		}
	}
}

// OnPacketProcessed comes from the client's own reader, after its SUBACK.
func (h *hook) OnPacketProcessed(cl *mqtt.Client, pk packets.Packet, _ error) {
	if s := sessionOf(cl); s != nil && pk.FixedHeader.Type == packets.Subscribe {
		s.sendRetained()
	}
}

// OnPacketEncode sees what leaves a client's queue.
func (h *hook) OnPacketEncode(cl *mqtt.Client, pk packets.Packet) packets.Packet {
	if s := sessionOf(cl); s != nil && pk.FixedHeader.Type == packets.Publish && len(pk.Payload) >= heavy {
		s.queued.Add(-int64(len(pk.Payload)))
	}
	return pk
}

// OnPublish keeps what clients publish from being retained: nothing that we
// retain comes from outside.
func (h *hook) OnPublish(cl *mqtt.Client, pk packets.Packet) (packets.Packet, error) {
	if !cl.Net.Inline {
		pk.FixedHeader.Retain = false
	}
	h.broker.count(pk)
	return pk, nil
}

// OnWill does the same for wills.
func (h *hook) OnWill(_ *mqtt.Client, will mqtt.Will) (mqtt.Will, error) {
	will.Retain = false
	return will, nil
}

func (h *hook) OnPublishDropped(cl *mqtt.Client, pk packets.Packet) {
	if s := sessionOf(cl); s != nil {
		s.slow(pk.TopicName)
	}
}
