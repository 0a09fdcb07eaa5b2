package dispatch

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/remotegpu/remotegpu/control/pg"
	"github.com/remotegpu/remotegpu/protocol"
)

// Hello takes the payload of a host's hello topic; it never blocks.
func (s *Service) Hello(host string, payload []byte) {
	var h protocol.Hello
	if s.decode(host, payload, &h) {
		s.lanes.change(host, func(t *todo) { t.hello = &h })
	}
}

// Status takes the payload of a host's status topic; it never blocks. Of two
// that wait the newer counts, but events of the older are not lost: the agent
// sends them until they are acknowledged.
func (s *Service) Status(host string, payload []byte) {
	var st protocol.Status
	if s.decode(host, payload, &st) {
		s.lanes.take(host, &st)
	}
}

func older(a, b *protocol.Status) bool {
	return a.Epoch < b.Epoch || a.Epoch == b.Epoch && a.Seq < b.Seq
}

// Presence takes the payload of a host's presence topic; it never blocks.
func (s *Service) Presence(host string, payload []byte) {
	var p protocol.Presence
	if s.decode(host, payload, &p) {
		s.lanes.change(host, func(t *todo) {
			t.presence = append(t.presence, p)
			t.presence = t.presence[max(0, len(t.presence)-maxPresence):]
		})
	}
}

func (s *Service) decode(host string, payload []byte, v any) bool {
	err := protocol.Unmarshal(payload, v)
	if err != nil {
		s.garbage.Do(func() {
			s.log.Warn("host says what cannot be read; it is dropped: upgrade or examine its agent", "host", host, "err", err)
		})
	}
	return err == nil
}

// work does all that waited for a host and returns when to look again without
// being asked; 0: never.
func (s *Service) work(ctx context.Context, ln *lane, now todo) time.Duration {
	changed := now.touched
	if !s.arrive(ctx, ln, &now) {
		return s.later(ln, now)
	}
	if now.status != nil && !s.takeStatus(ctx, ln, now.status) {
		return s.later(ln, now)
	}
	if now.touched {
		ln.tries, ln.nextPub = 0, time.Time{}
	} else if ln.newest > 0 && ln.has.generation == ln.newest && !ln.has.lost && !ln.unsure {
		return 0 // whoever changes its wishes tells
	}
	return s.publish(ctx, ln, changed)
}

// alone waits until there is a database connection for one host alone, for the
// caller to give back: people must not wait behind hosts.
func (s *Service) alone(ctx context.Context) error {
	select {
	case s.single <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// arrive takes what a host says of its connection.
func (s *Service) arrive(ctx context.Context, ln *lane, now *todo) bool {
	if len(now.presence) == 0 && now.hello == nil {
		return true
	}
	if err := s.alone(ctx); err != nil {
		return false
	}
	defer func() { <-s.single }()
	for len(now.presence) > 0 {
		if !s.done("presence", ln, s.cfg.Presence(ctx, ln.host, now.presence[0])) {
			return false
		}
		now.presence = now.presence[1:]
	}
	if now.hello == nil {
		return true
	}
	if !s.done("hello", ln, s.cfg.Hello(ctx, ln.host, *now.hello)) {
		return false
	}
	ln.has, now.touched = held{generation: now.hello.Observed, digest: now.hello.Digest}, true
	now.hello = nil
	return true
}

// later puts back what could not be done, as when the database is away.
func (s *Service) later(ln *lane, left todo) time.Duration {
	s.lanes.putBack(ln, left)
	return s.repeats[0] + rand.N(s.repeats[0])
}

// afford returns the oldest of a status's events that may be kept now. Only they
// are acknowledged, so the agent sends the others again.
func (ln *lane) afford(all []protocol.Event) []protocol.Event {
	for i := range all {
		if !ln.events.Allow() {
			return all[:i]
		}
	}
	return all
}

func (s *Service) takeStatus(ctx context.Context, ln *lane, st *protocol.Status) bool {
	kept := *st // which may be at work still when ctx has ended
	kept.Events = ln.afford(st.Events)
	if err := s.reports.Do(ctx, report{ln.host, &kept}); err != nil {
		return s.done("status", ln, err)
	}
	switch {
	case st.Observed == 0: // what the hello said to have been obeyed still is
		ln.has.lost = true
	case ln.has.lost || ln.has.generation != st.Observed:
		ln.has = held{generation: st.Observed}
	}
	s.lanes.taken(ln, st)
	return s.check("ack", ln, s.acknowledge(ln.host, st.Seq, lastEvent(&kept)))
}

// acknowledge tells a host which status and events are kept.
func (s *Service) acknowledge(host string, status, event uint64) error {
	b, err := protocol.Marshal(protocol.Ack{Version: protocol.Version, Status: status, Event: event, Spread: s.lanes.spread()})
	if err != nil {
		return fmt.Errorf("encode ack: %w", err)
	}
	return s.cfg.Publish(host, protocol.TopicAck, b)
}

// publish sends the document while the host has not acknowledged it.
func (s *Service) publish(ctx context.Context, ln *lane, changed bool) time.Duration {
	if !s.cfg.Connected(ln.host) {
		s.lanes.miss(ln.host)
		return 0
	}
	if wait := time.Until(ln.nextPub); wait > 0 {
		return wait
	}
	r, err := s.current(ctx, ln, changed)
	if !s.check("compile desired document", ln, err) {
		ln.unsure = true
		return s.again(ln)
	}
	ln.newest, ln.unsure = r.generation, false
	if ln.has.has(r) {
		ln.tries = 0
		return 0
	}
	if message, err := s.message(ln.host, r); s.check("refer to desired document", ln, err) {
		s.check("publish desired document", ln, s.cfg.Publish(ln.host, protocol.TopicDesired, message))
	}
	return s.again(ln)
}

// again returns how long to wait for an answer before the next try.
func (s *Service) again(ln *lane) time.Duration {
	wait := s.repeats[min(ln.tries, len(s.repeats)-1)]
	ln.tries++
	ln.nextPub = time.Now().Add(wait)
	return wait
}

// done is check for what a host has said: what the database will never take is
// done too, for trying again would go on for ever.
func (s *Service) done(doing string, ln *lane, err error) bool {
	if pg.IsData(err) {
		s.log.Warn("host says what cannot be kept; it is dropped: upgrade or examine its agent", "host", ln.host, "kind", doing, "err", err)
		return true
	}
	return s.check(doing, ln, err)
}

// check logs an error and reports whether there was none. What the end of the
// server interrupts is no error: the host says it again to the next one.
func (s *Service) check(doing string, ln *lane, err error) bool {
	if err != nil && !errors.Is(err, context.Canceled) {
		s.log.Error(doing, "host", ln.host, "err", err)
	}
	return err == nil
}
