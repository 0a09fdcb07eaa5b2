package recording

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/remotegpu/remotegpu/control/errs"
	"github.com/remotegpu/remotegpu/control/pg"
)

// Held names the one who may go on with a recording: a client of a session in
// an environment.
type Held struct{ Environment, User, Client string }

// suspended is what a recorder leaves for the one after it.
type suspended struct {
	Parts int             `json:"parts"`
	Tail  []byte          `json:"tail"`  // of the cast
	State json.RawMessage `json:"state"` // of who suspends
	until time.Time
}

// Suspend stops without an end: until a time Continue goes on with it for the
// same client, and gets state.
func (r *Recorder) Suspend(client string, state json.RawMessage, until time.Time) {
	r.stop(func(ctx context.Context) {
		if r.err == nil {
			r.flush(ctx)
		}
		err := r.err
		if err == nil {
			err = suspend(ctx, r.svc.pool, r.id, client, suspended{r.parts, r.cast.tail, state, until})
		}
		if err != nil {
			r.svc.log.Warn("recording cannot be gone on with; it ends", "recording", r.id, "err", err)
			r.finish(ctx, true)
		}
	})
}

// Continue goes on with what was suspended and returns its state; nil where
// there is none. Of several who ask one gets it.
func (s *Service) Continue(ctx context.Context, h Held) (*Recorder, json.RawMessage, error) {
	rec, b, err := resume(ctx, s.pool, h)
	if pg.IsNone(err) {
		return nil, nil, nil
	} else if err != nil {
		return nil, nil, err
	}
	var was suspended
	if err := json.Unmarshal(b, &was); err != nil {
		return nil, nil, errs.E(errs.Internal, "", fmt.Errorf("read state of recording: %w", err))
	}
	r := &Recorder{svc: s, id: rec.ID, cast: cast{start: rec.StartedAt, tail: was.Tail}, parts: was.Parts, bytes: rec.Bytes}
	r.mu.Lock() // the timer may be early
	defer r.mu.Unlock()
	r.timer = time.AfterFunc(partEvery, r.tick)
	return r, was.State, nil
}
