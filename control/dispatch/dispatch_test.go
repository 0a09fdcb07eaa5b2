package dispatch

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/remotegpu/remotegpu/control/auth"
	"github.com/remotegpu/remotegpu/control/errs"
	"github.com/remotegpu/remotegpu/control/pgtest"
	"github.com/remotegpu/remotegpu/protocol"
)

func TestFirstDocument(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.hello()
	w.settle()
	if r := w.row(); r.Generation != 1 || w.agent.refused != 0 {
		t.Errorf("%+v, agent %+v", r, w.agent)
	}
	w.touch()
	w.touch()
	w.settle()
	if r := w.row(); r.Generation < 2 || r.Generation > 3 || r.Wish != 3 {
		t.Errorf("after two changes %+v", r)
	}
}

// TestNothingNewIsNotSent: an agent that has the document hears nothing.
func TestNothingNewIsNotSent(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.hello()
	w.settle()
	w.mu.Lock()
	clear(w.history)
	w.mu.Unlock()
	for range 5 {
		before := w.hellos.Load()
		w.hello()
		for w.hellos.Load() == before {
			time.Sleep(time.Millisecond)
		}
		w.status()
	}
	w.settle()
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.history) != 0 {
		t.Errorf("sent %d documents to an agent that has them", len(w.history))
	}
}

// TestRestoredBackup: control has forgotten generations that the agent has
// obeyed; the next one is above all of them.
func TestRestoredBackup(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		before, after, touched int
		lost                   bool // and the agent its document
	}{
		"behind":                     {before: 1, after: 4},
		"behind and changed":         {before: 1, after: 4, touched: 1},
		"the same generation":        {before: 1, after: 2, touched: 2},
		"ahead again":                {before: 1, after: 1, touched: 5},
		"from before the first word": {before: 0, after: 3},
		"behind, and lost":           {before: 1, after: 4, lost: true},
		"the same, and lost":         {before: 1, after: 2, touched: 2, lost: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			w.hello()
			w.settle()
			w.change(c.before)
			w.save()
			w.change(c.after)
			w.stop()
			w.restore()
			w.start()
			for range c.touched { // people change things before the agent is back
				w.touch()
				w.compileAlone()
			}
			generation := w.agent.generation
			if c.lost {
				w.lose()
			} else {
				w.hello()
			}
			w.settle()
			if w.agent.generation <= generation && w.agent.wish != w.row().Wish {
				t.Errorf("agent has %+v, database %+v", w.agent, w.row())
			}
		})
	}
}

// change changes the wish n times, each of which reaches the agent.
func (w *world) change(n int) {
	w.t.Helper()
	for range n {
		w.touch()
		w.settle()
	}
}

// save makes a backup.
func (w *world) save() {
	w.exec("drop table if exists backup_wishes, backup_documents")
	w.exec("create table backup_wishes as table wishes")
	w.exec("create table backup_documents as table desired_documents")
}

// restore brings the backup back; what was published since may come again with
// other contents, which is what agents must be spared.
func (w *world) restore() {
	w.exec(`lock table desired_documents, wishes; delete from wishes; delete from desired_documents;
		insert into wishes table backup_wishes; insert into desired_documents table backup_documents`) // in one transaction: the dispatcher is at work
	w.mu.Lock()
	clear(w.history)
	w.mu.Unlock()
}

// compileAlone compiles while the agent is away.
func (w *world) compileAlone() {
	w.t.Helper()
	if _, err := w.svc.current(w.t.Context(), &lane{host: w.host}, true); err != nil {
		w.t.Fatal(err)
	}
}

// TestAnyOrder: whatever happens in whatever order, in the end the agent has
// the newest document and its generation never went back.
func TestAnyOrder(t *testing.T) {
	t.Parallel()
	for seed := range uint64(12) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			w.save()
			r := rand.New(rand.NewPCG(seed, 1))
			w.hello()
			newest := uint64(0)
			for range 120 {
				w.step(r)
				w.mu.Lock()
				if w.agent.generation < newest {
					t.Errorf("generation %d after %d", w.agent.generation, newest)
				}
				newest = w.agent.generation
				w.mu.Unlock()
			}
			w.loss.Store(false)
			w.broken.Store(false)
			if !w.connected.Load() {
				w.hello()
			}
			w.settle()
		})
	}
}

func (w *world) step(r *rand.Rand) {
	switch n := r.IntN(100); {
	case n < 30:
		w.touch()
	case n < 50:
		w.status()
	case n < 60:
		w.loss.Store(!w.loss.Load())
	case n < 66:
		w.broken.Store(!w.broken.Load())
	case n < 72:
		w.connected.Store(false)
	case n < 82:
		w.hello()
	case n < 86: // the server starts anew: every connection ends
		w.stop()
		w.start()
	case n < 88:
		w.save()
	case n < 90:
		w.stop()
		w.restore()
		w.start()
	case n < 93:
		w.large.Store(!w.large.Load())
		w.touch()
	case n < 95:
		w.lose()
	default:
		time.Sleep(time.Duration(r.IntN(4)) * time.Millisecond) // lets the interleaving vary
	}
}

// TestLargeDocument: it goes by reference, and to its own host alone.
func TestLargeDocument(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.hello()
	w.change(1)
	if w.agent.fetched != 0 {
		t.Errorf("a small document went by reference")
	}
	w.large.Store(true)
	w.change(1)
	newest := w.agent.generation
	if w.agent.fetched == 0 || w.agent.refused != 0 {
		t.Errorf("agent %+v", *w.agent)
	}
	own := auth.Caller{Kind: auth.KindHost, ID: w.host}
	if b, err := w.svc.Document(t.Context(), own, newest); err != nil || len(b) <= protocol.MaxDesired {
		t.Errorf("its own document: %d bytes, %v", len(b), err)
	}
	other := auth.Caller{Kind: auth.KindHost, ID: protocol.NewID(protocol.PrefixHost)}
	for _, c := range []struct {
		name       string
		caller     auth.Caller
		generation uint64
		kind       errs.Kind
	}{
		{"another host", other, newest, errs.Conflict},
		{"an older generation", own, newest - 1, errs.Conflict},
		{"a generation to come", own, newest + 1, errs.Conflict},
		{"no generation", own, 0, errs.Conflict},
		{"a host without documents", other, 0, errs.Conflict},
		{"a platform admin", auth.Caller{Kind: auth.KindUser, ID: "usr_x", Admin: true}, newest, errs.Denied},
		{"nobody", auth.Caller{}, newest, errs.Unauthenticated},
	} {
		if b, err := w.svc.Document(t.Context(), c.caller, c.generation); len(b) != 0 || errs.KindOf(err) != c.kind {
			t.Errorf("%s: %d bytes, %v", c.name, len(b), err)
		}
	}
}

// TestGarbageIsTold: a host whose statuses cannot be read goes offline, and somebody
// has to find out why; one that sends nothing else must not fill the log.
func TestGarbageIsTold(t *testing.T) {
	t.Parallel()
	var log bytes.Buffer
	svc := New(nil, Config{}, slog.New(slog.NewTextHandler(&log, nil)))
	for range 100 {
		svc.Status("host_a", []byte("garbage"))
	}
	if n := strings.Count(log.String(), "host=host_a"); n != 1 {
		t.Errorf("%d lines tell of it, want 1: %.500s", n, log.String())
	}
}

// TestGarbage: what does not decode changes nothing and costs nothing.
func TestGarbage(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for _, b := range [][]byte{nil, {}, {0xff}, []byte("hello"), make([]byte, 1<<16), {0xbf}, {0xa1, 0x01, 0x19, 0xff, 0xff}} {
		w.svc.Hello(w.host, b)
		w.svc.Status(w.host, b)
		w.svc.Presence(w.host, b)
	}
	w.svc.lanes.mu.Lock()
	defer w.svc.lanes.mu.Unlock()
	if n := len(w.svc.lanes.all); n != 0 {
		t.Errorf("%d lanes after garbage", n)
	}
}

// TestFlood: of a flood only the newest waits, and other hosts get their turn.
func TestFlood(t *testing.T) {
	w := newWorld(t)
	w.broken.Store(true) // nothing is done
	var before, after runtime.MemStats
	payload := func(v any) []byte {
		b, err := protocol.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	started := time.Now()
	runtime.GC()
	runtime.ReadMemStats(&before)
	for i := range uint64(20_000) {
		w.svc.Hello(w.host, payload(protocol.Hello{Version: protocol.Version, Epoch: i, BootID: "b", Agent: "a"}))
		w.svc.Status(w.host, payload(protocol.Status{Version: protocol.Version, Epoch: 1, Seq: i}))
		w.svc.Presence(w.host, payload(protocol.Presence{Version: protocol.Version, Epoch: i, Online: true}))
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	if grown := int64(after.HeapAlloc) - int64(before.HeapAlloc); grown > 8<<20 {
		t.Errorf("a flood keeps %d bytes", grown)
	}
	t.Logf("60,000 messages in %v", time.Since(started))
	w.broken.Store(false)
	w.hello()
	w.settle()
	last := protocol.Presence{}
	for last.Epoch != 19_999 {
		last = <-w.presence
	}
}

// TestALiarPaysItself: events and work of one host are kept at the rate that a
// host may have, and none that was not kept is acknowledged.
func TestALiarPaysItself(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.hello()
	w.settle()
	lie := protocol.Status{Version: protocol.Version, Epoch: 1, Events: make([]protocol.Event, protocol.MaxEvents)}
	start, worked := time.Now(), w.statuses.Load()
	for seq := uint64(1); time.Since(start) < 3*time.Second || w.events.Load() < eventBurst && time.Since(start) < 30*time.Second; seq++ {
		lie.Seq = seq
		for i := range lie.Events {
			lie.Events[i] = protocol.Event{Seq: seq*protocol.MaxEvents + uint64(i), Severity: protocol.SeveritySecurity, Message: "wolf"}
		}
		w.send(w.svc.Status, lie)
		time.Sleep(time.Millisecond)
	}
	n := w.events.Load() // before it is said how many these may be
	if most := int64(eventBurst + eventRate*time.Since(start).Seconds() + 1); n < eventBurst || n > most {
		t.Errorf("%d events were kept, want %d to %d", n, eventBurst, most)
	}
	n = w.statuses.Load() - worked
	if most := int64(workBurst + workRate*time.Since(start).Seconds() + 1); n > most {
		t.Errorf("%d statuses were worked on, want at most %d", n, most)
	}
}

// TestWhatTheDatabaseNeverTakes is dropped, and does not come again for ever.
func TestWhatTheDatabaseNeverTakes(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.hello()
	w.settle()
	looked := w.whole.Load()
	w.send(w.svc.Status, protocol.Status{Version: protocol.Version, Epoch: 1, Seq: 1, Events: []protocol.Event{{Seq: 1, Message: "never"}}})
	w.svc.lanes.mu.Lock()
	ln := w.svc.lanes.all[w.host]
	w.svc.lanes.mu.Unlock()
	for w.whole.Load() == looked {
		time.Sleep(time.Millisecond)
	}
	time.Sleep(10 * quick[0])
	w.svc.lanes.mu.Lock()
	waiting := ln.todo.status
	w.svc.lanes.mu.Unlock()
	if waiting != nil {
		t.Error("it waits to be tried again")
	}
	before := w.statuses.Load()
	w.send(w.svc.Status, protocol.Status{Version: protocol.Version, Epoch: 1, Seq: 2})
	for end := time.Now().Add(30 * time.Second); w.statuses.Load() == before; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the next status is not taken")
		}
	}
}

// TestHeartbeats: a status that says nothing new is noted with others, and
// acknowledged; what is new, or comes from a host that is not as it was, is taken
// whole.
func TestHeartbeats(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.hello()
	w.settle()
	steps := []struct {
		name     string
		asBefore bool
		change   func(*protocol.Status)
		beat     bool
		whole    bool
	}{
		{"the same as before", true, func(*protocol.Status) {}, true, false},
		{"other use", true, func(st *protocol.Status) { st.Usage.CPUPercent = 50 }, true, false},
		{"another phase", true, func(st *protocol.Status) {
			st.Workloads = []protocol.WorkloadStatus{{ID: w.env, Phase: protocol.PhaseExited}}
		}, false, true},
		{"the phase before", true, func(*protocol.Status) {}, false, true},
		{"an event", true, func(st *protocol.Status) { st.Events = []protocol.Event{{Seq: 1, Message: "x"}} }, false, true},
		{"a sick GPU", true, func(st *protocol.Status) { st.Usage.GPUUsed = []protocol.GPUUsage{{UUID: "GPU-1"}} }, false, true},
		{"healed", true, func(*protocol.Status) {}, false, true},
		{"a host that is not known as there", false, func(*protocol.Status) {}, false, true},
	}
	for _, s := range steps {
		w.asBefore.Store(s.asBefore)
		w.idle() // a status is acknowledged a moment before its lane is done
		beats, whole := w.beats.Load(), w.whole.Load()
		w.mu.Lock()
		a := w.agent
		a.seq++
		st := protocol.Status{Version: protocol.Version, Epoch: a.epoch, Seq: a.seq, Observed: a.generation, Applied: a.generation}
		seq := a.seq
		w.mu.Unlock()
		s.change(&st)
		w.send(w.svc.Status, st)
		for end := time.Now().Add(30 * time.Second); ; time.Sleep(time.Millisecond) {
			w.mu.Lock()
			acked := w.agent.acked >= seq
			w.mu.Unlock()
			if acked {
				break
			}
			if time.Now().After(end) {
				t.Fatalf("%s: not acknowledged", s.name)
			}
		}
		if beat, all := w.beats.Load() > beats, w.whole.Load() > whole; beat != s.beat || all != s.whole {
			t.Errorf("%s: as a heartbeat %v, whole %v", s.name, beat, all)
		}
	}
}

// TestDatabaseAway: births and deaths that could not be noted are noted later,
// in order, and the document comes.
func TestDatabaseAway(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.broken.Store(true)
	for epoch := range uint64(3) {
		w.send(w.svc.Presence, protocol.Presence{Version: protocol.Version, Epoch: epoch, Online: true})
		w.send(w.svc.Presence, protocol.Presence{Version: protocol.Version, Epoch: epoch})
	}
	w.hello()
	w.touch()
	w.broken.Store(false)
	w.settle()
	for epoch := range uint64(3) {
		for _, online := range []bool{true, false} {
			if p := <-w.presence; p.Epoch != epoch || p.Online != online {
				t.Errorf("noted %+v, want epoch %d online %v", p, epoch, online)
			}
		}
	}
}

// TestStop: what a host said and the end of the server interrupts is no error.
func TestStop(t *testing.T) {
	t.Parallel()
	var text bytes.Buffer // read after Run has ended
	begun := make(chan struct{})
	svc := New(pgtest.New(t), Config{
		Connected: func(string) bool { return true },
		Presence: func(ctx context.Context, _ string, _ protocol.Presence) error {
			close(begun)
			<-ctx.Done()
			return fmt.Errorf("note presence: %w", ctx.Err())
		},
	}, slog.New(slog.NewTextHandler(&text, &slog.HandlerOptions{Level: slog.LevelInfo})))
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- svc.Run(ctx) }()
	b, err := protocol.Marshal(protocol.Presence{Version: protocol.Version, Epoch: 1, Online: true})
	if err != nil {
		t.Fatal(err)
	}
	svc.Presence(protocol.NewID(protocol.PrefixHost), b)
	<-begun
	stop()
	<-ended
	if text.Len() > 0 {
		t.Errorf("it says %s", text.String())
	}
}

// TestCatchUp: another replica served the host, and was told of a change that
// it did not live to publish.
func TestCatchUp(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.hello()
	w.settle()
	w.stop()
	w.touch()
	w.start()
	w.connected.Store(true)
	w.svc.CatchUp(t.Context())
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		w.mu.Lock()
		wish := w.agent.wish
		w.mu.Unlock()
		if wish == w.row().Wish {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("the host has wish %d, not %d", wish, w.row().Wish)
		}
	}
}
