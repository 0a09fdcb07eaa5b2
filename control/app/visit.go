package app

import (
	"context"
	"log/slog"
	"math"
	"sync"
	"time"

	"github.com/remotegpu/remotegpu/control/audit"
	"github.com/remotegpu/remotegpu/control/auth"
	"github.com/remotegpu/remotegpu/control/environment"
	"github.com/remotegpu/remotegpu/control/pg"
)

const visitIdle = time.Minute

// way is who reaches what, and how.
type way struct {
	user, remote string
	env          string
	via          string // forward, app
	target       string
}

// visits writes the audit log of what is many connections: an entry when a use
// begins, and one with what it came to when there was no connection for idle.
type visits struct {
	pool *pg.Pool
	log  *slog.Logger
	idle time.Duration

	mu   sync.Mutex // guards what follows
	uses map[way]*use
}

// use is somebody's use of one target, from its first connection to its last.
type use struct {
	caller    auth.Caller
	workspace string
	began     time.Time
	last      time.Time // when the last connection ended
	open      int
	count     int
	up, down  int64 // bytes, seen from the person
	timer     *time.Timer
}

// visit is one connection of a use.
type visit struct {
	all  *visits
	way  way
	pass func(n int) // waits until so many bytes may pass; nil: they may
}

// begin notes a connection. That it cannot be written down is a reason to
// refuse it.
func (v *visits) begin(ctx context.Context, c auth.Caller, e environment.Environment, via, target string) (visit, error) {
	w := way{user: c.ID, remote: c.Remote, env: e.ID, via: via, target: target}
	if !v.join(w) {
		err := audit.Record(ctx, v.pool, c, auth.EnvironmentAccess, e.ID, e.Workspace, map[string]any{"via": via, "target": target})
		if err != nil {
			return visit{}, err
		}
		v.start(w, c, e.Workspace)
	}
	return visit{all: v, way: w}, nil
}

// join counts a connection to a use that goes on.
func (v *visits) join(w way) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	u, goes := v.uses[w]
	if goes {
		u.enter()
	}
	return goes
}

func (v *visits) start(w way, c auth.Caller, workspace string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	u, goes := v.uses[w] // another connection may have been faster
	if !goes {
		u = &use{caller: c, workspace: workspace, began: time.Now()}
		v.uses[w] = u
	}
	u.enter()
}

func (u *use) enter() {
	u.open++
	u.count++
	if u.timer != nil {
		u.timer.Stop()
	}
}

// add counts bytes, as they go, so that a long connection is not lost with a
// server that stops.
func (v visit) add(up, down int64) {
	v.all.mu.Lock()
	if u := v.all.uses[v.way]; u != nil {
		u.up += up
		u.down += down
	}
	v.all.mu.Unlock()
	if v.pass != nil {
		v.pass(int(up + down))
	}
}

func (v visit) end() {
	v.all.mu.Lock()
	defer v.all.mu.Unlock()
	u := v.all.uses[v.way]
	if u == nil {
		return
	}
	if u.open--; u.open == 0 {
		u.last = time.Now()
		u.timer = time.AfterFunc(v.all.idle, func() { v.all.finish(v.way, u) })
	}
}

// finish writes the last entry of a use, unless it goes on.
func (v *visits) finish(w way, u *use) {
	v.mu.Lock()
	if u.open > 0 || v.uses[w] != u {
		v.mu.Unlock()
		return
	}
	delete(v.uses, w)
	v.mu.Unlock()
	v.write(w, u)
}

func (v *visits) write(w way, u *use) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	detail := audit.Ended{
		Via: w.via, Target: w.target, Connections: u.count, In: uint64(u.up), Out: uint64(u.down),
		Seconds: math.Round(u.last.Sub(u.began).Seconds()*1000) / 1000,
	}
	if err := audit.Record(ctx, v.pool, u.caller, auth.EnvironmentAccess, w.env, u.workspace, detail); err != nil {
		v.log.Error("end of an access is not in the audit log", "env", w.env, "user", w.user, "err", err)
	}
}

// close writes the last entries of all uses.
func (v *visits) close() {
	v.mu.Lock()
	uses := v.uses
	v.uses = map[way]*use{}
	v.mu.Unlock()
	for w, u := range uses {
		if u.open > 0 {
			u.last = time.Now()
		}
		if u.timer != nil {
			u.timer.Stop()
		}
		v.write(w, u)
	}
}
