package broker

import (
	"sync/atomic"
	"time"

	mqtt "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/packets"
)

// session is a client that has authenticated. It is no longer than its
// connection.
type session struct {
	broker *Broker
	id     string
	who    Principal
	client *mqtt.Client
	conn   *conn
	pace   Pace
	expiry *time.Timer   // nil: never expires
	over   atomic.Bool   // may do nothing any more
	queued atomic.Int64  // bytes of heavy messages that wait for it
	done   chan struct{} // closed when nothing of it is left

	wanted []packets.Subscription // asked for, retained messages too; its reader's alone
	replay []packets.Subscription // granted, retained messages not sent yet; its reader's alone
}

// begin makes a connection the session of its id, after the one before it has
// ended: mochi's own take-over mixes up wills and can leave the new client
// where no message finds it.
func (b *Broker) begin(s *session) packets.Code {
	b.mu.Lock()
	if b.closed {
		b.mu.Unlock()
		return packets.ErrServerShuttingDown
	}
	if s.who.Kind != KindHost && b.principal[s.who.ID] >= b.cfg.MaxPerPrincipal {
		b.mu.Unlock()
		return packets.ErrQuotaExceeded
	}
	if !b.limit.again(s.who.ID) {
		b.mu.Unlock()
		b.cfg.Log.Warn("mqtt client comes anew too often: it is refused for some seconds", "client", s.id, "principal", s.who.ID)
		time.Sleep(b.cfg.AgainPause) // or it would come at once, and each time costs us a handshake
		return packets.ErrConnectionRateExceeded
	}
	before := b.sessions[s.id]
	b.sessions[s.id] = s
	b.principal[s.who.ID]++
	s.conn.session.Store(s)
	b.mu.Unlock()
	b.limit.settle(s.conn.remote)
	if before != nil {
		before.end(packets.ErrSessionTakenOver)
		select {
		case <-before.done:
		case <-time.After(5 * time.Second): // a handler is at work; mochi takes over as it can
		}
	}
	if !s.who.Expires.IsZero() {
		s.expiry = time.AfterFunc(time.Until(s.who.Expires), func() { s.end(packets.ErrMaxConnectTime) })
	}
	return packets.CodeSuccess
}

// end takes all rights at once and closes soon, without waiting.
func (s *session) end(why packets.Code) {
	if s.over.Swap(true) {
		return
	}
	s.conn.hurry()
	go func() {
		_ = s.broker.server.DisconnectClient(s.client, why) // returns the code that it was given
	}()
}

// forget cleans up after a session. Mochi leaves subscriptions of some behind.
func (b *Broker) forget(s *session) {
	s.over.Store(true)
	if s.expiry != nil {
		s.expiry.Stop()
	}
	if now, ok := b.server.Clients.Get(s.id); ok && now == s.client {
		s.client.ClearInflights()
		b.server.UnsubscribeClient(s.client)
		b.server.Clients.Delete(s.id)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.sessions[s.id] == s {
		delete(b.sessions, s.id)
	}
	if b.principal[s.who.ID]--; b.principal[s.who.ID] == 0 {
		delete(b.principal, s.who.ID)
	}
	close(s.done)
}

// count notes a heavy message that is about to be queued for every subscriber.
// A queue of 256 is a bound for small ones; of large ones it would be 256 MiB.
func (b *Broker) count(pk packets.Packet) {
	if len(pk.Payload) < heavy {
		return
	}
	subscribers := b.server.Topics.Subscribers(pk.TopicName).Subscriptions
	b.mu.Lock()
	defer b.mu.Unlock()
	for id := range subscribers {
		if s := b.sessions[id]; s != nil && s.queued.Add(int64(len(pk.Payload))) > maxHeavy {
			s.slow(pk.TopicName)
		}
	}
}

// slow cuts a client that does not read what it subscribed to: it would miss
// messages without knowing.
func (s *session) slow(topic string) {
	if !s.over.Load() {
		s.broker.cfg.Log.Warn("mqtt client is too slow and was cut", "client", s.id, "topic", topic)
	}
	s.end(packets.ErrQuotaExceeded)
}

// sendRetained sends what is retained for new subscriptions, past the queue and
// at the client's pace: the queue would drop what is more than it holds.
func (s *session) sendRetained() {
	for _, sub := range s.replay {
		for _, pk := range s.broker.server.Topics.Messages(sub.Filter) {
			out := pk.Copy(false)
			out.FixedHeader.Retain, out.FixedHeader.Qos = true, 0
			if sub.Identifier > 0 {
				out.Properties.SubscriptionIdentifier = []int{sub.Identifier}
			}
			if len(out.Payload) >= heavy {
				s.queued.Add(int64(len(out.Payload)))
			}
			if s.over.Load() || s.client.WritePacket(out) != nil {
				return // it is ending
			}
		}
	}
	s.replay = nil
}
