package recording

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/remotegpu/remotegpu/control/auth"
	"github.com/remotegpu/remotegpu/protocol"
)

const (
	partEvery  = 2 * time.Second // so much is lost when a server dies, of a session that ends with it
	partBytes  = 512 << 10       // a part that is so large does not wait
	storeWait  = 20 * time.Second
	retryEvery = 200 * time.Millisecond
)

// Recorder records one session. A nil Recorder records nothing, so that
// callers need not ask. It may be used by several goroutines.
type Recorder struct {
	svc *Service
	id  string

	mu    sync.Mutex // guards what follows
	cast  cast
	part  []byte
	parts int
	bytes int64
	held  *journal // nil: the session ends with this server
	err   error    // the store takes no more
	done  bool
	timer *time.Timer
}

// Begin starts the recording of a session that c has in sub, or returns nil
// where the workspace wants none.
func (s *Service) Begin(ctx context.Context, c auth.Caller, sub Subject, ses Session) (*Recorder, error) {
	p, err := policy(ctx, s.pool, sub.Workspace)
	if err != nil || !p.Wants(ses.Term != "") {
		return nil, err
	}
	now := time.Now()
	rec := Recording{
		ID: protocol.NewID(protocol.PrefixRecording), Workspace: sub.Workspace, Environment: sub.ID, EnvironmentName: sub.Name,
		User: c.ID, UserName: c.Name, Via: ses.Via, StartedAt: now, ExpiresAt: now.AddDate(0, 0, p.KeepDays),
	}
	r := &Recorder{svc: s, id: rec.ID, cast: cast{start: now}}
	r.part = r.cast.header(ses, sub.Name+" "+c.Name)
	if err := insert(ctx, s.pool, rec); err != nil {
		return nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.flush(ctx); r.err != nil {
		r.done = true
		s.forget(context.WithoutCancel(ctx), rec.ID)
		return nil, r.err
	}
	r.timer = time.AfterFunc(partEvery, r.tick)
	return r, nil
}

// Output records what the terminal shows. An error means that it is not
// recorded, and that the session must end; it is a sentence for the person.
func (r *Recorder) Output(p []byte) error {
	if r == nil {
		return nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.add(r.cast.output(time.Now(), p))
}

// Resize records the terminal's new size.
func (r *Recorder) Resize(cols, rows uint16) error {
	if r == nil {
		return nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.add(r.cast.resize(time.Now(), cols, rows))
}

// Err returns what Output says from now on.
func (r *Recorder) Err() error {
	if r == nil {
		return nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.err
}

// add needs mu.
func (r *Recorder) add(line []byte) error {
	if r.err == nil && !r.done {
		if r.part = append(r.part, line...); len(r.part) >= partBytes && r.held == nil {
			r.flush(context.Background())
		}
	}
	return r.err
}

func (r *Recorder) tick() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.done || r.err != nil {
		return
	}
	r.flush(context.Background())
	r.timer.Reset(partEvery)
}

// flush writes what has gathered as a part, and shows that the recording goes
// on. What is held waits for Store. It needs mu.
func (r *Recorder) flush(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, storeWait)
	defer cancel()
	if r.held == nil || r.held.stored == len(r.part) {
		if r.err = r.writePart(ctx); r.err != nil {
			return
		}
	}
	r.touch(ctx)
}

// touch notes how much there is. It needs mu.
func (r *Recorder) touch(ctx context.Context) {
	if err := touch(ctx, r.svc.pool, r.id, r.writer(), r.bytes); err != nil {
		r.svc.log.Warn("recording not touched", "recording", r.id, "err", err) // the parts are there all the same
	}
}

// writePart needs mu.
func (r *Recorder) writePart(ctx context.Context) error {
	if len(r.part) == 0 {
		return nil
	}
	if err := r.svc.write(ctx, partKey(r.id, r.parts+1), r.part); err != nil {
		r.svc.log.Error("recording is not taken by the store", "recording", r.id, "err", err)
		return notTaken(err)
	}
	r.parts++
	r.bytes += int64(len(r.part))
	r.part = nil
	if r.held == nil {
		return nil
	}
	return r.turn(ctx)
}

func (r *Recorder) writer() int {
	if r.held == nil {
		return 0
	}
	return r.held.writer
}

// stop does the last that is done for the recording, once.
func (r *Recorder) stop(last func(ctx context.Context)) {
	if r == nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.done {
		return
	}
	r.done = true
	r.timer.Stop()
	ctx, cancel := context.WithTimeout(context.Background(), 2*storeWait)
	defer cancel()
	last(ctx)
}

// Close ends the recording, unless another one goes on with it.
func (r *Recorder) Close() {
	r.stop(func(ctx context.Context) {
		if !r.claim(ctx) {
			return
		}
		if r.err == nil {
			r.err = r.writePart(ctx)
			r.touch(ctx)
		}
		if err := r.svc.finish(ctx, r.id, r.err != nil); err != nil {
			r.svc.log.Warn("recording not finished; it is tried again", "recording", r.id, "err", err)
		}
	})
}

// Discard ends a recording of what never began, and keeps nothing of it.
func (r *Recorder) Discard() {
	r.stop(func(ctx context.Context) { r.svc.forget(ctx, r.id) })
}

func partKey(id string, n int) string { return fmt.Sprintf("%s%08d.cast", partsOf(id), n) }
func partsOf(id string) string        { return "recordings/" + id + "/" }
func castKey(id string) string        { return "recordings/" + id + ".cast" }
