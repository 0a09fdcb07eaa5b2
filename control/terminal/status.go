package terminal

import (
	"fmt"
	"sync"
	"time"

	"github.com/remotegpu/remotegpu/protocol/resume"
)

// status tells a person of interruptions that last.
type status struct {
	say func(string)

	mu    sync.Mutex // guards what follows
	timer *time.Timer
	told  bool
}

// changed is resume's Notify.
func (s *status) changed(now resume.State) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.timer != nil {
		s.timer.Stop()
		s.timer = nil
	}
	switch {
	case !now.Connected:
		s.timer = time.AfterFunc(quietFor, s.interrupted)
	case s.told:
		s.told = false
		s.say(fmt.Sprintf("connected again after %v; nothing was lost", time.Since(now.Since).Round(time.Second)))
	}
}

func (s *status) interrupted() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.timer != nil {
		s.timer, s.told = nil, true
		s.say("the connection is interrupted, trying again; ~. ends the session, ~d leaves it running")
	}
}
