package server

import (
	"context"
	"time"

	"github.com/remotegpu/remotegpu/broker"
	"github.com/remotegpu/remotegpu/control/host"
	"github.com/remotegpu/remotegpu/control/pg"
	"github.com/remotegpu/remotegpu/protocol"
)

// keepPresence keeps the retained copy of every host's presence that
// integrations read. It is made anew from the database at start, so a restart
// loses none, and every replica's broker has it.
func (s *Server) keepPresence(ctx context.Context) error {
	return pg.ListenMany(ctx, s.pool, host.Changed, func(ids []string) {
		within, cancel := context.WithTimeout(ctx, 10*time.Second)
		defer cancel()
		all, err := s.hosts.Presences(within, ids)
		if err != nil {
			s.log.Error("retain presence", "hosts", len(ids), "err", err)
			return
		}
		for _, seen := range all {
			if err := s.retainPresence(seen); err != nil {
				s.log.Error("retain presence", "host", seen.Host, "err", err)
			}
		}
	})
}

func (s *Server) retainPresence(seen host.Seen) error {
	m, err := presenceMessage(seen)
	if err == nil {
		err = s.broker.Publish(m)
	}
	if err == nil && s.leadsOutside() {
		err = s.outside.Publish(m)
	}
	return err
}

func (s *Server) retainOutside(seen host.Seen) error {
	m, err := presenceMessage(seen)
	if err == nil {
		err = s.outside.Publish(m)
	}
	return err
}

func presenceMessage(seen host.Seen) (broker.Message, error) {
	b, err := protocol.Marshal(seen.Presence)
	return broker.Message{Topic: protocol.HostTopic(seen.Host, protocol.TopicPresence), Payload: b, Retain: true}, err
}
