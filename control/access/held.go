package access

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/remotegpu/remotegpu/control/auth"
	"github.com/remotegpu/remotegpu/control/environment"
	"github.com/remotegpu/remotegpu/control/errs"
	"github.com/remotegpu/remotegpu/control/recording"
	"github.com/remotegpu/remotegpu/protocol"
	"github.com/remotegpu/remotegpu/protocol/resume"
	"github.com/remotegpu/remotegpu/protocol/tunnel"
)

// heldRecordings are those of sessions that outlive their connections: one per
// client, over all of its connections. What passes is stored before anybody has
// it, so that the session and its recording go on at another server, however
// this one ends: the helper sends once more what the client has not had.
type heldRecordings struct {
	continuing sync.Mutex // held while a recording is taken over
	mu         sync.Mutex // guards byClient and conns of those in it
	byClient   map[string]*heldRecording
}

type heldRecording struct {
	key     string
	keep    time.Duration // for which the session waits for its client
	tap     *sessionTap
	in, out *resume.Tap
	conns   int         // of the client
	end     *time.Timer // runs while there is none

	mu    sync.Mutex // guards what follows, and orders what is stored
	state heldState
	due   bool // state has changed since it was stored
}

var errNotRecorded = errs.E(errs.Denied, "This workspace records sessions, and the recording of this one ended with the server that made it; begin a new session.")

// recordHeld returns the recording of a client's session, or nil where none is
// wanted.
func (s *Service) recordHeld(ctx context.Context, c auth.Caller, env environment.Environment, a protocol.Attach) (*heldRecording, error) {
	key := a.Session + a.Client
	if h := s.heldRecs.come(key); h != nil {
		err := h.tap.rec.Check(ctx)
		if err == nil {
			err = h.out.Err()
		}
		switch failed := cmp.Or(h.tap.rec.Err(), h.out.Err()); {
		case err == nil:
			return h, nil
		case errors.Is(err, recording.ErrTaken): // the client was elsewhere meanwhile
			s.forgetHeld(h)
		case failed == nil: // the database did not answer
			s.leaveHeld(h)
			return nil, err
		default:
			s.leaveHeld(h)
			return nil, errs.E(errs.Denied, errs.Text(failed), failed) // to try again changes nothing
		}
	}
	held := recording.Held{Environment: env.ID, User: c.ID, Client: key}
	if a.Op == protocol.AttachResume {
		h, err := s.continueHeld(ctx, held, a)
		if h == nil && err == nil {
			err = s.mayGoOn(ctx, env)
		}
		return h, err
	}
	rec, err := s.beginRecording(ctx, c, env, recording.Session{Via: recording.ViaTerminal, Term: "xterm-256color"})
	if rec == nil {
		return nil, err
	}
	h := s.newHeld(held, a, rec, heldState{})
	if err := rec.Hold(ctx, key, h.keep); err != nil {
		rec.Discard()
		return nil, err
	}
	came := s.heldRecs.add(h)
	if came != h { // of the same client, a moment ago
		rec.Discard()
	}
	return came, nil
}

func (s *Service) newHeld(held recording.Held, a protocol.Attach, rec *recording.Recorder, state heldState) *heldRecording {
	keep := time.Duration(cmp.Or(a.Keep, uint32(resume.Keep/time.Second)))*time.Second + time.Minute
	h := &heldRecording{key: held.Client, keep: keep, tap: newSessionTap(rec), state: state}
	h.tap.out.StandAt(state.OutPlace)
	h.tap.in.StandAt(state.InPlace)
	h.out, h.in = newTap(state.Out, h.seeOutput), newTap(state.In, h.seeInput)
	h.end = time.AfterFunc(time.Hour, func() { s.endHeld(h) })
	return h
}

// newTap returns a tap of a pipe that has been seen up to byte next.
func newTap(next uint64, see func(p []byte) error) *resume.Tap {
	if next == 0 {
		return resume.NewTap(see)
	}
	return resume.NewTapAt(next, see)
}

func (h *heldRecording) seeOutput(p []byte) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	err := h.tap.takeOutput(p)
	h.state.Out += uint64(len(p))
	h.state.OutPlace, h.due = h.tap.out.Place(), true
	return err
}

func (h *heldRecording) seeInput(p []byte) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	err := h.tap.takeInput(p)
	h.state.In += uint64(len(p))
	h.state.InPlace, h.due = h.tap.in.Place(), true
	return err
}

// store returns when what was seen is safe; only then may it go on its way.
func (h *heldRecording) store() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.due {
		return h.tap.rec.Err()
	}
	b, err := json.Marshal(h.state)
	if err != nil {
		return err
	}
	err = h.tap.rec.Store(b)
	h.due = err != nil
	return err
}

// come counts a connection of a client, if it has a recording here.
func (r *heldRecordings) come(key string) *heldRecording {
	r.mu.Lock()
	defer r.mu.Unlock()
	h := r.byClient[key]
	if h != nil {
		h.conns++
		h.end.Stop()
	}
	return h
}

// add counts a connection of a new client, or of the one that is there.
func (r *heldRecordings) add(h *heldRecording) *heldRecording {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.byClient == nil {
		r.byClient = map[string]*heldRecording{}
	}
	if other := r.byClient[h.key]; other != nil {
		h.end.Stop()
		h = other
	}
	r.byClient[h.key] = h
	h.conns++
	h.end.Stop()
	return h
}

// leaveHeld is the end of a connection. Where the helper never said that there
// is such a session, nothing is kept of it; where the last of it was seen, the
// recording is whole, though the client may come back for what it has not had.
func (s *Service) leaveHeld(h *heldRecording) {
	if h == nil {
		return
	}
	s.heldRecs.mu.Lock()
	h.conns--
	last := h.conns == 0 && s.heldRecs.byClient[h.key] == h
	never, whole := last && !h.out.Agreed(), last && h.tap.over
	if never {
		delete(s.heldRecs.byClient, h.key)
	} else if last {
		h.end.Reset(h.keep)
	}
	s.heldRecs.mu.Unlock()
	switch {
	case never:
		h.tap.rec.Discard()
	case whole:
		h.tap.close()
	}
}

// forgetHeld drops a recording that another server goes on with.
func (s *Service) forgetHeld(h *heldRecording) {
	s.heldRecs.mu.Lock()
	if s.heldRecs.byClient[h.key] == h {
		delete(s.heldRecs.byClient, h.key)
	}
	s.heldRecs.mu.Unlock()
	h.end.Stop()
	h.tap.rec.Leave()
}

// mayGoOn refuses a session that is not recorded where it should be.
func (s *Service) mayGoOn(ctx context.Context, env environment.Environment) error {
	if s.cfg.Records == nil {
		return nil
	}
	wanted, err := s.cfg.Records(ctx, env.Workspace, true)
	if err == nil && wanted {
		err = errNotRecorded
	}
	return err
}

// endHeld ends the recording of a client that has not come back.
func (s *Service) endHeld(h *heldRecording) {
	s.heldRecs.mu.Lock()
	gone := h.conns == 0 && s.heldRecs.byClient[h.key] == h
	if gone {
		delete(s.heldRecs.byClient, h.key)
	}
	s.heldRecs.mu.Unlock()
	if gone {
		h.tap.close()
	}
}

// heldState is where the recording of a session that goes on stands: the numbers
// of the bytes that come next, and the places in the frames that they are of.
type heldState struct {
	Out      uint64              `json:"out"` // from the program
	OutPlace protocol.FramePlace `json:"out_place"`
	In       uint64              `json:"in"`
	InPlace  protocol.FramePlace `json:"in_place"`
}

// closeHeld lets go of all recordings, when the server stops: the next one goes
// on with those whose sessions do.
func (s *Service) closeHeld() {
	s.heldRecs.mu.Lock()
	all := s.heldRecs.byClient
	s.heldRecs.byClient = nil
	s.heldRecs.mu.Unlock()
	for _, h := range all {
		h.end.Stop()
		h.out.Stop()
		h.in.Stop()
		if h.tap.over || !h.out.Agreed() {
			h.tap.close()
		} else {
			h.tap.rec.Leave()
		}
	}
}

// continueHeld goes on with a recording that another server has begun; nil:
// there is none. What the client has had of the session was seen there, and the
// helper sends the rest once more.
func (s *Service) continueHeld(ctx context.Context, held recording.Held, a protocol.Attach) (*heldRecording, error) {
	if s.cfg.Continue == nil {
		return nil, nil
	}
	s.heldRecs.continuing.Lock()
	defer s.heldRecs.continuing.Unlock()
	if h := s.heldRecs.come(held.Client); h != nil { // meanwhile
		return h, nil
	}
	rec, b, err := s.cfg.Continue(ctx, held)
	if rec == nil {
		return nil, err
	}
	var state heldState
	if len(b) > 0 {
		err = json.Unmarshal(b, &state)
	}
	if err != nil {
		rec.Close()
		return nil, fmt.Errorf("read where a recording stands: %w", err)
	}
	return s.heldRecs.add(s.newHeld(held, a, rec, state)), nil
}

// through returns the two ends of a connection so that what is read from them
// is recorded.
func (h *heldRecording) through(client, host *tunnel.Conn) (fromClient, fromHost io.Reader) {
	if h == nil {
		return client, host
	}
	return tapped{client, h.in.Transport(), h.store}, tapped{host, h.out.Transport(), h.store}
}

// tapped shows and stores what is read; an error of these ends the reading.
type tapped struct {
	io.Reader
	show  func(p []byte) error
	store func() error
}

func (t tapped) Read(p []byte) (int, error) {
	n, err := t.Reader.Read(p)
	if shown := t.show(p[:n]); shown != nil {
		return 0, shown
	}
	if stored := t.store(); stored != nil {
		return 0, stored
	}
	return n, err
}
