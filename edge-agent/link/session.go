package link

import (
	"bytes"
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/eclipse/paho.golang/autopaho"
	"github.com/eclipse/paho.golang/paho"

	"github.com/remotegpu/remotegpu/protocol"
)

const (
	heartbeat  = 30 * time.Second
	debounce   = 200 * time.Millisecond
	lastRepeat = 30 * time.Second
	lookWithin = 5 * time.Second // for inventory and usage
)

// session is the life of one connection.
type session struct {
	*Link
	cm        *autopaho.ConnectionManager
	inventory []byte // encoding of what hello told last
	usage     protocol.Usage

	sent   []byte // the last status, until it is acknowledged
	seq    uint64
	events uint64        // the highest that it holds
	repeat time.Duration // until it is said again
}

func (l *Link) session(ctx context.Context, cm *autopaho.ConnectionManager) error {
	s := &session{Link: l, cm: cm}
	if err := s.subscribe(ctx); err != nil {
		return err
	}
	if err := s.publish(ctx, cm, protocol.TopicPresence, s.presence(true)); err != nil {
		return err
	}
	if err := s.hello(ctx); err != nil {
		return err
	}
	return s.report(ctx)
}

func (s *session) subscribe(ctx context.Context) error {
	sub := &paho.Subscribe{}
	for _, topic := range protocol.DownTopics {
		sub.Subscriptions = append(sub.Subscriptions, paho.SubscribeOptions{Topic: protocol.HostTopic(s.host, topic), QoS: 0})
	}
	ctx, cancel := context.WithTimeout(ctx, sayWithin)
	defer cancel()
	if _, err := s.cm.Subscribe(ctx, sub); err != nil {
		return fmt.Errorf("subscribe to the host's topics: %w", err)
	}
	return nil
}

func (l *Link) publish(ctx context.Context, cm *autopaho.ConnectionManager, topic string, v any) error {
	payload, err := protocol.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode %s: %w", topic, err)
	}
	return l.send(ctx, cm, 1, topic, payload)
}

// send publishes. At QoS 1 it waits until the broker has it, and fails when that
// is silent for sayWithin.
func (l *Link) send(ctx context.Context, cm *autopaho.ConnectionManager, qos byte, topic string, payload []byte) error {
	ctx, cancel := context.WithTimeout(ctx, sayWithin)
	defer cancel()
	if _, err := cm.Publish(ctx, &paho.Publish{Topic: protocol.HostTopic(l.host, topic), QoS: qos, Payload: payload}); err != nil {
		return fmt.Errorf("publish %s: %w", topic, err)
	}
	return nil
}

// Telemetry says a batch of samples and waits until the broker has it. That it is
// stored, protocol.Ack says. Without a connection it fails at once.
func (l *Link) Telemetry(ctx context.Context, b *protocol.TelemetryBatch) error {
	l.mu.Lock()
	cm := l.manager
	l.mu.Unlock()
	if cm == nil {
		return autopaho.ConnectionDownError
	}
	return l.publish(ctx, cm, protocol.TopicTelemetry, b)
}

// hello tells who is here and what it has, if that is new on this connection.
func (s *session) hello(ctx context.Context) error {
	look, cancel := context.WithTimeout(ctx, lookWithin)
	defer cancel()
	inventory := s.cfg.Inventory(look)
	encoded, err := protocol.Marshal(inventory)
	if err != nil {
		return fmt.Errorf("encode inventory: %w", err)
	}
	if bytes.Equal(encoded, s.inventory) {
		return nil
	}
	s.inventory = encoded
	h := &protocol.Hello{
		Version: protocol.Version, Epoch: s.epoch.Load(), BootID: s.cfg.BootID, Agent: s.cfg.Agent,
		Capabilities: s.cfg.Capabilities, ClockOffset: s.cfg.Server.Offset().Milliseconds(), Inventory: inventory,
	}
	h.Observed, h.Digest = s.cfg.Store.Obeyed()
	_, applied := s.cfg.Workloads()
	h.Applied = min(applied, h.Observed)
	return s.publish(ctx, s.cm, protocol.TopicHello, h)
}

// observed is the generation of the document on disk; 0: none.
func (l *Link) observed() uint64 {
	d, _ := l.cfg.Store.Desired()
	if d == nil {
		return 0
	}
	return d.Generation
}

// report says the status: now, a moment after each change, with every
// heartbeat, and again until it is acknowledged.
func (s *session) report(ctx context.Context) error {
	beat := time.NewTicker(heartbeat)
	defer beat.Stop()
	again := time.NewTimer(time.Hour)
	defer again.Stop()
	var soon <-chan time.Time
	if err := s.status(ctx, true, again); err != nil {
		return err
	}
	for {
		var err error
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-s.changed:
			if soon == nil {
				soon = time.After(debounce)
			}
		case <-soon:
			soon = nil
			err = s.status(ctx, false, again)
		case <-beat.C:
			s.refused.flush(false)
			if err = s.hello(ctx); err == nil {
				err = s.status(ctx, true, again)
			}
		case <-s.acked:
			s.acknowledge(again)
		case <-again.C:
			err = s.sayAgain(ctx, again)
		}
		if err != nil {
			return err
		}
	}
}

// status says how things are now.
func (s *session) status(ctx context.Context, measure bool, again *time.Timer) error {
	if measure && s.FollowClock(ctx) {
		s.inventory = nil // the hello with it tells how far the clock is off
		if err := s.hello(ctx); err != nil {
			return err
		}
	}
	if measure {
		look, cancel := context.WithTimeout(ctx, lookWithin)
		s.usage = s.cfg.Usage(look)
		cancel()
	}
	st := &protocol.Status{
		Version: protocol.Version, Epoch: s.epoch.Load(), Seq: s.cfg.Store.NextStatusSeq(),
		Events: s.cfg.Store.Events(protocol.MaxEvents), Usage: s.usage,
	}
	st.Observed = s.observed()
	st.Workloads, st.Applied = s.cfg.Workloads()
	st.Applied = min(st.Applied, st.Observed)
	if s.cfg.Fault != nil {
		st.Fault = protocol.Cut(s.cfg.Fault())
	}
	encoded, err := encodeStatus(st)
	if err != nil {
		return err
	}
	qos := byte(0)
	if s.sent != nil { // the one before is not acknowledged: is anybody there?
		qos = 1
	}
	s.sent, s.seq, s.repeat = encoded, st.Seq, s.firstRepeat
	if n := len(st.Events); n > 0 {
		s.events = st.Events[n-1].Seq
	}
	again.Reset(s.repeat)
	return s.send(ctx, s.cm, qos, protocol.TopicStatus, encoded)
}

// encodeStatus shortens texts where a status would be larger than a document may
// be.
func encodeStatus(st *protocol.Status) ([]byte, error) {
	st.Fit()
	encoded, err := protocol.Marshal(st)
	if err != nil {
		return nil, fmt.Errorf("encode status: %w", err)
	}
	if len(encoded) <= protocol.MaxPayload {
		return encoded, nil
	}
	st.Events = st.Events[:min(8, len(st.Events))]
	for i := range st.Workloads {
		m := st.Workloads[i].Message
		st.Workloads[i].Message = strings.ToValidUTF8(m[:min(200, len(m))], "")
	}
	return protocol.Marshal(st)
}

func (s *session) acknowledge(again *time.Timer) {
	if s.sent == nil || s.ackSeq.Load() < s.seq {
		return
	}
	s.sent = nil
	again.Stop()
	if left := s.cfg.Store.Events(1); len(left) > 0 && left[0].Seq > s.events {
		s.Changed() // there were more events than one status holds
	}
}

// sayAgain says a status that nobody has acknowledged, and asks the broker whether
// it has that: one that does not answer is dead.
func (s *session) sayAgain(ctx context.Context, again *time.Timer) error {
	if s.sent == nil {
		return nil
	}
	s.repeat = min(2*s.repeat, lastRepeat)
	again.Reset(s.repeat)
	return s.send(ctx, s.cm, 1, protocol.TopicStatus, s.sent)
}
