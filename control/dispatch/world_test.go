package dispatch

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/remotegpu/remotegpu/control/auth"
	"github.com/remotegpu/remotegpu/control/pg"
	"github.com/remotegpu/remotegpu/control/pgtest"
	"github.com/remotegpu/remotegpu/protocol"
)

func TestMain(m *testing.M) { pgtest.Main(m) }

// world is a dispatcher on its own database with one agent. Wishes are numbers
// in a table; a workload's revision carries them to the agent.
type world struct {
	t    *testing.T
	pool *pg.Pool
	key  ed25519.PrivateKey
	host string
	env  string

	large     atomic.Bool // the document is too large for a message
	loss      atomic.Bool // publishes are lost
	broken    atomic.Bool // other modules fail, as when the database is away
	connected atomic.Bool
	presence  chan protocol.Presence
	hellos    atomic.Int64
	statuses  atomic.Int64 // that were taken
	events    atomic.Int64 // that were kept
	whole     atomic.Int64 // statuses taken whole
	beats     atomic.Int64 // and as heartbeats
	asBefore  atomic.Bool  // the host is known by its present connection

	mu      sync.Mutex // guards what follows
	history map[uint64][]byte
	agent   *agent
	svc     *Service
	cancel  context.CancelFunc
	done    chan struct{}
}

// agent is what a host keeps, with the rules of a real one: never back, never
// two contents for one generation.
type agent struct {
	generation uint64
	digest     []byte
	lost       bool   // its disk has the document of generation no more
	wish       uint64 // revision of its workload
	epoch, seq uint64
	acked      uint64
	refused    int
	fetched    int // by reference
}

var quick = []time.Duration{2 * time.Millisecond, 4 * time.Millisecond}

func newWorld(t *testing.T) *world {
	t.Helper()
	_, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	w := &world{t: t, pool: pgtest.New(t), key: key, host: protocol.NewID(protocol.PrefixHost), env: protocol.NewID(protocol.PrefixEnvironment), agent: &agent{},
		history: map[uint64][]byte{}, presence: make(chan protocol.Presence, 100)}
	w.exec("insert into hosts (id, name, public_key, state) values ($1, 'box', 'k', 'active')", w.host)
	w.exec("create table wishes (n bigint not null)")
	w.exec("insert into wishes values (1)")
	w.asBefore.Store(true)
	w.start()
	t.Cleanup(w.stop)
	return w
}

func (w *world) exec(sql string, args ...any) {
	w.t.Helper()
	if _, err := w.pool.Exec(w.t.Context(), sql, args...); err != nil {
		w.t.Fatalf("%s: %v", sql, err)
	}
}

var errBroken = errors.New("the database is away")

func (w *world) start() {
	unless := func() error {
		if w.broken.Load() {
			return errBroken
		}
		return nil
	}
	svc := New(w.pool, Config{
		Key: w.key, Workloads: w.workloads, Publish: w.publish,
		Connected: func(string) bool { return w.connected.Load() },
		Hello: func(context.Context, string, protocol.Hello) error {
			w.hellos.Add(1)
			return unless()
		},
		Presence: func(_ context.Context, _ string, p protocol.Presence) error {
			if err := unless(); err != nil {
				return err
			}
			w.presence <- p
			return nil
		},
		HostState: w.hostState(unless),
		Workload: func(_ context.Context, _ pg.Tx, said map[string]*protocol.Status) error {
			w.whole.Add(int64(len(said)))
			return unless()
		},
		Beats: func(_ context.Context, beats map[string]*protocol.Status) (noted []string, err error) {
			if !w.asBefore.Load() {
				return nil, unless()
			}
			for host := range beats {
				w.beats.Add(1)
				noted = append(noted, host)
			}
			return noted, unless()
		},
	}, slog.New(slog.DiscardHandler))
	svc.repeats = quick
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = svc.Run(ctx)
	}()
	w.mu.Lock()
	w.svc, w.cancel, w.done = svc, cancel, done
	w.mu.Unlock()
}

// hostState keeps events where a text is refused as it is in the real table.
func (w *world) hostState(unless func() error) func(context.Context, pg.Tx, map[string]*protocol.Status) error {
	return func(ctx context.Context, tx pg.Tx, said map[string]*protocol.Status) error {
		for _, st := range said {
			for _, e := range st.Events {
				if _, err := tx.Exec(ctx, "select 1 / case $1::text when 'never' then 0 else 1 end", e.Message); err != nil {
					return err
				}
			}
		}
		for _, st := range said {
			w.statuses.Add(1)
			w.events.Add(int64(len(st.Events)))
		}
		return unless()
	}
}

func (w *world) stop() {
	w.connected.Store(false)
	w.cancel()
	<-w.done
}

func (w *world) workloads(ctx context.Context, db pg.DB, hosts []string) (map[string][]protocol.Workload, error) {
	if w.broken.Load() {
		return nil, errBroken
	}
	var n int64
	if err := db.QueryRow(ctx, "select n from wishes").Scan(&n); err != nil {
		return nil, err
	}
	list := []protocol.Workload{{ID: w.env, Revision: uint64(n), Name: "box", Workspace: "ws_x", Want: protocol.WantRunning, Restart: protocol.RestartAlways,
		Image: "docker.io/library/debian:12"}}
	if w.large.Load() {
		list[0].Env = map[string]string{"TEXT": strings.Repeat("x", protocol.MaxDesired)}
	}
	lists := map[string][]protocol.Workload{}
	for _, host := range hosts {
		lists[host] = list
	}
	return lists, nil
}

// publish plays broker and agent: at most once, in order.
func (w *world) publish(_, topic string, payload []byte) error {
	if w.loss.Load() || !w.connected.Load() {
		return nil
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	switch topic {
	case protocol.TopicDesired:
		w.obey(payload)
	case protocol.TopicAck:
		var a protocol.Ack
		if err := protocol.Unmarshal(payload, &a); err != nil {
			w.t.Error(err)
		}
		w.agent.acked = max(w.agent.acked, a.Status)
	}
	return nil
}

// obey takes a document as an agent does; w.mu is held.
func (w *world) obey(payload []byte) {
	if len(payload) > protocol.MaxDesired {
		w.t.Errorf("a message of %d bytes", len(payload))
	}
	pinned := []ed25519.PublicKey{w.key.Public().(ed25519.PublicKey)}
	d, err := protocol.Verify(payload, w.host, pinned)
	if ref, refErr := protocol.VerifyReference(payload, w.host, pinned); refErr == nil {
		if payload, err = w.svc.Document(w.t.Context(), auth.Caller{Kind: auth.KindHost, ID: w.host}, ref.Generation); err != nil {
			return // a newer one is there by now, or the test ends
		}
		if err = ref.Check(payload); err == nil {
			d, err = protocol.Verify(payload, w.host, pinned)
		}
		w.agent.fetched++
	}
	if err != nil {
		w.t.Errorf("document: %v", err)
		return
	}
	if before, ok := w.history[d.Generation]; ok && !bytes.Equal(before, payload) {
		w.t.Errorf("two documents of generation %d", d.Generation)
	}
	w.history[d.Generation] = bytes.Clone(payload)
	digest, err := d.Digest()
	if err != nil {
		w.t.Error(err)
	}
	a := w.agent
	if d.Generation < a.generation || d.Generation == a.generation && !bytes.Equal(digest, a.digest) {
		a.refused++
		return
	}
	a.generation, a.digest, a.lost, a.wish = d.Generation, digest, false, d.Workloads[0].Revision
}

// lose takes the document off the agent's disk; what it has obeyed it still knows.
func (w *world) lose() {
	w.mu.Lock()
	w.agent.lost = w.agent.generation > 0
	w.mu.Unlock()
	w.hello()
}

// hello is the agent's first word on a new connection.
func (w *world) hello() {
	w.mu.Lock()
	a := w.agent
	a.epoch++
	h := protocol.Hello{Version: protocol.Version, Epoch: a.epoch, BootID: "b", Agent: "1", Observed: a.generation, Digest: a.digest}
	svc := w.svc
	w.mu.Unlock()
	w.connected.Store(true)
	w.send(svc.Hello, h)
}

func (w *world) status() {
	w.mu.Lock()
	a := w.agent
	a.seq++
	st := protocol.Status{Version: protocol.Version, Epoch: a.epoch, Seq: a.seq, Observed: a.generation, Applied: a.generation}
	if a.lost {
		st.Observed, st.Applied = 0, 0
	}
	svc := w.svc
	w.mu.Unlock()
	if w.connected.Load() {
		w.send(svc.Status, st)
	}
}

func (w *world) send(to func(string, []byte), v any) {
	b, err := protocol.Marshal(v)
	if err != nil {
		w.t.Error(err)
		return
	}
	to(w.host, b)
}

// touch changes the wish the way environments do.
func (w *world) touch() {
	w.t.Helper()
	err := pg.InTx(w.t.Context(), w.pool, func(tx pg.Tx) error {
		if _, err := tx.Exec(w.t.Context(), "update wishes set n = n + 1"); err != nil {
			return err
		}
		_, err := Touch(w.t.Context(), tx, w.host)
		return err
	})
	if err != nil {
		w.t.Fatal(err)
	}
}

// row is what the database says.
type row struct {
	Dirty                         bool
	Generation, Observed, Applied int64
	Wish                          uint64
}

func (w *world) row() (r row) {
	w.t.Helper()
	err := w.pool.QueryRow(w.t.Context(), `select coalesce(d.dirty, true), coalesce(d.generation, 0), coalesce(d.observed, 0), coalesce(d.applied, 0), n
		from wishes left join desired_documents d on d.host_id = $1`, w.host).Scan(&r.Dirty, &r.Generation, &r.Observed, &r.Applied, &r.Wish)
	if err != nil {
		w.t.Fatal(err)
	}
	return r
}

// settled reports whether the agent has what it shall, and control knows it.
func (w *world) settled() bool {
	r := w.row()
	w.mu.Lock()
	defer w.mu.Unlock()
	a := w.agent
	return !r.Dirty && !a.lost && uint64(r.Generation) == a.generation && uint64(r.Observed) == a.generation && a.wish == r.Wish && a.generation > 0
}

// idle waits until nothing is done for the host.
func (w *world) idle() {
	w.t.Helper()
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(time.Millisecond) {
		w.svc.lanes.mu.Lock()
		ln := w.svc.lanes.all[w.host]
		idle := ln == nil || !ln.busy && !ln.queued && ln.todo.empty()
		w.svc.lanes.mu.Unlock()
		if idle {
			return
		}
		if time.Now().After(end) {
			w.t.Fatal("the host's lane is never done")
		}
	}
}

// settle lets the agent repeat its status, as agents do, until all is well.
func (w *world) settle() {
	w.t.Helper()
	deadline := time.NewTimer(30 * time.Second)
	tick := time.NewTicker(3 * time.Millisecond)
	defer tick.Stop()
	for !w.settled() {
		select {
		case <-tick.C:
			w.status()
		case <-deadline.C:
			w.t.Fatalf("does not settle: database %+v, agent %+v", w.row(), *w.agent)
		}
	}
}
