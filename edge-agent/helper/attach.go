package main

import (
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"time"

	"github.com/remotegpu/remotegpu/protocol"
	"github.com/remotegpu/remotegpu/protocol/resume"
)

// attach serves one connection to a session that outlives it.
func (s *server) attach(c *net.UnixConn, payload []byte) {
	var a protocol.Attach
	if err := protocol.Unmarshal(payload, &a); err != nil {
		resume.Refuse(c, "The request for a session cannot be read: "+err.Error()+".")
		return
	}
	if a.Subsystem == protocol.SubsystemSFTP {
		if err := s.handOver(c, a); err != nil {
			resume.Refuse(c, text(err))
		}
		return
	}
	v, err := s.viewer(a)
	if err != nil {
		resume.Refuse(c, text(err))
		return
	}
	_ = v.pipe.Serve(c, a.Received) // however it ends, the client comes back or it does not
}

var errNoSession = errors.New("this session is no longer there: its program has ended, nobody came back to it in time, or the environment was restarted")

// viewer returns the client that a names, and makes it, or its session, when
// that is what it wants.
func (s *server) viewer(a protocol.Attach) (*viewer, error) {
	s.mu.Lock()
	h := s.held[a.Session]
	if h == nil && a.Op == protocol.AttachCreate {
		h = newHeld(s, a)
		if len(s.live)+len(s.transfers) >= maxSessions {
			s.mu.Unlock()
			return nil, fmt.Errorf("this environment has %d sessions already; close some", maxSessions)
		}
		s.live[&h.session], s.held[a.Session] = struct{}{}, h
		go h.run(h.owner)
	}
	s.mu.Unlock()
	if h == nil {
		return nil, errNoSession
	}
	return h.admit(a)
}

// forget takes a session out that is over.
func (s *server) forget(h *held) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.live, &h.session)
	delete(s.held, h.id)
}

// query tells the agent which sessions there are for a user.
func (s *server) query(c *net.UnixConn, payload []byte) {
	var q protocol.SessionQuery
	if protocol.Unmarshal(payload, &q) != nil {
		return // nobody who may ask sends that
	}
	s.mu.Lock()
	var all []*held
	for _, h := range s.held {
		all = append(all, h)
	}
	list := protocol.SessionList{Version: protocol.Version}
	for _, t := range s.transfers {
		if t.live.User == q.User {
			list.Sessions = append(list.Sessions, t.live)
		}
	}
	s.mu.Unlock()
	for _, h := range all {
		if row, visible := h.describe(q.User); visible {
			list.Sessions = append(list.Sessions, row)
		}
	}
	slices.SortFunc(list.Sessions, func(a, b protocol.LiveSession) int {
		if a.Since != b.Since {
			return int(a.Since - b.Since)
		}
		return strings.Compare(a.ID, b.ID)
	})
	if protocol.WriteDocument(c, protocol.FrameSessions, list) == nil {
		_ = c.CloseWrite()
		_ = c.SetReadDeadline(time.Now().Add(lingerFor))
		_, _ = c.Read(make([]byte, 1)) // until the agent has read it
	}
}
