package recording

import (
	"context"
	"errors"
	"time"

	"github.com/remotegpu/remotegpu/control/errs"
	"github.com/remotegpu/remotegpu/control/pg"
)

// Held names the one who may go on with a recording: a client of a session in
// an environment.
type Held struct{ Environment, User, Client string }

// ErrTaken is the error of a recorder whose recording another one goes on with.
var ErrTaken = errors.New("the recording goes on elsewhere")

var errLeft = errors.New("the recording was left to another server")

// journal is what a recorder that another one may go on with has in the
// database. Its rows are of the part that gathers; a row comes before the blob
// that has the same, so that one who has lost the recording, and does not know
// it yet, can write no blob that the other one would not.
type journal struct {
	writer int    // of the recording, when it was ours
	n      int64  // of the last row
	stored int    // bytes of Recorder.part that are in rows
	state  []byte // of the last row
}

// Hold lets another server go on with the recording when this one dies, for the
// same client, unless nothing is heard of it for keep. Who holds must Store what
// passes before anybody has it.
func (r *Recorder) Hold(ctx context.Context, client string, keep time.Duration) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := hold(ctx, r.svc.pool, r.id, client, keep); err != nil {
		return err
	}
	r.held = &journal{}
	return r.turn(ctx)
}

// Store returns when all that was recorded is safe from the end of this
// server, together with the state of its session. Its errors are those of
// Output, and ErrTaken.
func (r *Recorder) Store(state []byte) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.err == nil && r.done {
		r.err = errLeft
	}
	if r.err != nil {
		return r.err
	}
	ctx, cancel := context.WithTimeout(context.Background(), storeWait)
	defer cancel()
	r.held.state = state
	if r.err = r.journal(ctx, r.part[r.held.stored:]); r.err != nil {
		return r.err
	}
	if r.held.stored = len(r.part); r.held.stored >= partBytes {
		r.flush(ctx)
	}
	return r.err
}

// Check returns ErrTaken when another one goes on with the recording.
func (r *Recorder) Check(ctx context.Context) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.err != nil {
		return r.err
	}
	err := isWriter(ctx, r.svc.pool, r.id, r.held.writer)
	if pg.IsNone(err) {
		err = ErrTaken
	}
	return err
}

// journal appends a row. The database may be away for a moment, as when it is
// started anew. It needs mu.
func (r *Recorder) journal(ctx context.Context, shown []byte) error {
	for {
		err := r.append(ctx, shown)
		if err == nil || errors.Is(err, ErrTaken) {
			return err
		}
		r.svc.log.Warn("journal of recording not written; it is tried again", "recording", r.id, "err", err)
		select {
		case <-time.After(retryEvery):
		case <-ctx.Done():
			return notTaken(err)
		}
	}
}

func (r *Recorder) append(ctx context.Context, shown []byte) error {
	h := r.held
	err := appendRow(ctx, r.svc.pool, r.id, h.writer, row{h.n + 1, r.parts + 1, shown, r.cast.tail, h.state})
	if err == nil {
		h.n++
	}
	return err
}

// turn begins the rows of the next part; those before it have become a blob. It
// needs mu.
func (r *Recorder) turn(ctx context.Context) error {
	if err := r.journal(ctx, nil); err != nil {
		return err
	}
	r.held.stored = 0
	if err := dropRows(ctx, r.svc.pool, r.id, r.held.n); err != nil {
		r.svc.log.Warn("journal of recording not shortened", "recording", r.id, "err", err) // the next turn does it
	}
	return nil
}

// Leave stops without an end, for another server to go on.
func (r *Recorder) Leave() { r.stop(func(context.Context) {}) }

// Continue takes a recording over from whoever held it, and returns the state
// that was stored last; nil where there is none. From then on the one before
// can store nothing more.
func (s *Service) Continue(ctx context.Context, h Held) (*Recorder, []byte, error) {
	rec, writer, err := take(ctx, s.pool, h)
	if pg.IsNone(err) {
		return nil, nil, nil
	} else if err != nil {
		return nil, nil, err
	}
	last, bytes, err := s.recover(ctx, rec.ID)
	if err != nil {
		return nil, nil, err
	}
	r := &Recorder{svc: s, id: rec.ID, cast: cast{start: rec.StartedAt, tail: last.Tail}, parts: last.Part, bytes: rec.Bytes + int64(bytes)}
	if bytes == 0 {
		r.parts--
	}
	r.held = &journal{writer: writer, n: last.N, state: last.State}
	r.mu.Lock() // the timer may be early
	defer r.mu.Unlock()
	if err := r.turn(ctx); err != nil {
		return nil, nil, err
	}
	r.timer = time.AfterFunc(partEvery, r.tick)
	return r, last.State, nil
}

// recover makes a part of what is in the rows, and returns the last of them and
// how many bytes there were.
func (s *Service) recover(ctx context.Context, id string) (last row, bytes int, err error) {
	all, err := rows(ctx, s.pool, id)
	if err != nil || len(all) == 0 {
		return last, 0, err
	}
	var part []byte
	for _, row := range all {
		part = append(part, row.Shown...)
	}
	last = all[len(all)-1]
	if len(part) > 0 {
		err = s.write(ctx, partKey(id, last.Part), part)
	}
	return last, len(part), err
}

// claim reports whether the recording is still ours to end, and lets nobody go
// on with it. It needs mu.
func (r *Recorder) claim(ctx context.Context) bool {
	if r.held == nil {
		return true
	}
	writer, err := claim(ctx, r.svc.pool, r.id, r.held.writer)
	if err != nil {
		if !pg.IsNone(err) {
			r.svc.log.Warn("recording not ended; that is done when nobody goes on with it", "recording", r.id, "err", err)
		}
		return false
	}
	r.held.writer = writer
	return true
}

// notTaken is what the person of a session is told whose recording cannot be
// kept.
func notTaken(err error) error {
	return errs.E(errs.Unavailable, "This workspace records sessions, and the store for recordings takes no more; the session ends. Tell a platform admin.", err)
}
