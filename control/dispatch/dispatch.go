// Package dispatch tells every host what it shall run.
//
// It owns the desired documents: compiling, signing, generations, publishing
// until acknowledged, and taking in what agents say of them. What workloads
// there are is environment's business, what a host is, host's. Its invariant:
// a host's generation only grows, and two documents of the same generation are
// equal byte for byte.
//
//	Touch ─► dirty ─► compile (next generation, signed) ─► publish ─┐
//	                      ▲                                         │ 1 s, 2 s, … 30 s
//	hello, jittered tick ─┘                 status acknowledges ◄───┘
package dispatch

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/remotegpu/remotegpu/control/pg"
	"github.com/remotegpu/remotegpu/protocol"
)

// changed is the channel on which the id of a host is notified whose document
// is dirty.
const changed = "desired_changed"

// Config is what dispatch needs from others.
type Config struct {
	Key       ed25519.PrivateKey
	Workloads func(ctx context.Context, db pg.DB, host string) ([]protocol.Workload, error) // sorted by id
	Publish   func(host, topic string, payload []byte) error                                // at QoS 0; never waits
	Connected func(host string) bool                                                        // to this replica's broker
	Hello     func(ctx context.Context, host string, h protocol.Hello) error
	Presence  func(ctx context.Context, host string, p protocol.Presence) error
	HostState func(ctx context.Context, host string, st protocol.Status) (event uint64, err error)
	Workload  func(ctx context.Context, host string, st protocol.Status) error
	// Beats notes statuses by host that say nothing new, and returns those hosts
	// of which it could, since they are as they were.
	Beats func(ctx context.Context, beats map[string]*protocol.Status) (noted []string, err error)
}

// Service is the dispatcher of one replica.
type Service struct {
	pool  *pg.Pool
	cfg   Config
	log   *slog.Logger
	lanes lanes // one per connected host

	repeats []time.Duration // waits between publishing a document again
}

// New returns the dispatcher.
func New(pool *pg.Pool, cfg Config, log *slog.Logger) *Service {
	s := &Service{pool: pool, cfg: cfg, log: log, repeats: repeats}
	s.lanes.init(s)
	return s
}

// Touch says, in the transaction that changed it, that a host's wishes are not
// what they were. Documents from the returned generation on carry the change.
func Touch(ctx context.Context, tx pg.Tx, host string) (generation uint64, err error) {
	from, err := TouchAll(ctx, tx, []string{host})
	return from[host], err
}

// TouchAll is Touch for many hosts.
func TouchAll(ctx context.Context, tx pg.Tx, hosts []string) (generations map[string]uint64, err error) {
	rows, err := tx.Query(ctx, `insert into desired_documents (host_id) select distinct unnest($1::text[]) host order by host
		on conflict (host_id) do update set dirty = true, changed_at = now() returning host_id, generation`, hosts)
	if err != nil {
		return nil, fmt.Errorf("touch desired documents: %w", err)
	}
	generations = make(map[string]uint64, len(hosts))
	var host string
	var now int64
	_, err = pgx.ForEachRow(rows, []any{&host, &now}, func() error {
		generations[host] = uint64(now) + 1
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("touch desired documents: %w", err)
	}
	return generations, pg.NotifyAll(ctx, tx, changed, hosts)
}

// Run wakes lanes on changes until ctx ends.
func (s *Service) Run(ctx context.Context) error {
	var working sync.WaitGroup
	defer working.Wait()
	working.Go(func() { s.lanes.run(ctx) })
	return pg.Listen(ctx, s.pool, changed, func(host string) {
		if host == "" { // a fresh connection: anything may have been missed
			s.CatchUp(ctx)
			return
		}
		if s.cfg.Connected(host) {
			s.lanes.wake(host)
		}
	})
}

// CatchUp wakes the lanes of hosts that are connected here and whose newest
// document is not theirs yet, as after another replica has served them.
func (s *Service) CatchUp(ctx context.Context) {
	hosts, err := behind(ctx, s.pool)
	if err != nil && ctx.Err() == nil {
		s.log.Error("look for hosts without their newest document", "err", err)
	}
	for _, host := range hosts {
		if s.cfg.Connected(host) {
			s.lanes.wake(host)
		}
	}
}

// record is a row of desired_documents.
type record struct {
	dirty      bool
	generation uint64
	digest     []byte // SHA-256 of the document, as an agent's hello has it
	document   []byte // signed
}

// fresh reports whether r has all wishes.
func (r record) fresh() bool { return !r.dirty && len(r.document) > 0 }

// held is the document that a host says it has obeyed.
type held struct {
	generation uint64 // 0: none
	digest     []byte // nil: not said
	lost       bool   // it has that document no more
}

// has reports whether the host has r and lacks nothing.
func (h held) has(r record) bool { return h.generation == r.generation && !h.lost }

// forks reports whether h cannot come from the history that r ends.
func (h held) forks(r record) bool {
	return h.generation > r.generation || h.generation == r.generation && h.digest != nil && !bytes.Equal(h.digest, r.digest)
}

// current returns a host's document, compiled anew when its wishes changed, or
// when the host has a document that we know nothing of: after a restored backup
// its generation may be above ours, or the same with another digest.
func (s *Service) current(ctx context.Context, host string, has held) (r record, err error) {
	if r, err = read(ctx, s.pool, host, ""); err == nil && r.fresh() && !has.forks(r) {
		return r, nil
	}
	err = pg.InTx(ctx, s.pool, func(tx pg.Tx) error {
		if r, err = load(ctx, tx, host); err != nil {
			return err
		}
		if r.fresh() && !has.forks(r) {
			return nil
		}
		workloads, err := s.cfg.Workloads(ctx, tx, host)
		if err != nil {
			return fmt.Errorf("compile workloads: %w", err)
		}
		r, err = s.compile(ctx, tx, host, workloads, max(r.generation, has.generation))
		return err
	})
	return r, err
}

// compile writes the next generation after base.
func (s *Service) compile(ctx context.Context, tx pg.Tx, host string, workloads []protocol.Workload, base uint64) (r record, err error) {
	d := protocol.Desired{
		Version: protocol.Version, Host: host, Generation: base + 1, IssuedAt: time.Now().Unix(), Workloads: workloads,
	}
	if r.document, err = protocol.Sign(&d, s.cfg.Key); err != nil {
		return r, fmt.Errorf("sign desired document: %w", err)
	}
	if len(r.document) > protocol.MaxDocument {
		return r, fmt.Errorf("desired document of %d bytes is over the limit of %d: too much on one host", len(r.document), protocol.MaxDocument)
	}
	if r.digest, err = d.Digest(); err != nil {
		return r, err
	}
	r.generation = d.Generation
	_, err = tx.Exec(ctx, `update desired_documents set dirty = false, generation = $2, digest = $3, document = $4 where host_id = $1`,
		host, int64(r.generation), r.digest, r.document)
	return r, err
}

// message is what is published of r: the document, or a reference to one that is
// too large for that.
func (s *Service) message(host string, r record) ([]byte, error) {
	if len(r.document) <= protocol.MaxDesired {
		return r.document, nil
	}
	signed, err := protocol.SignReference(protocol.Refer(host, r.generation, r.document), s.cfg.Key)
	if err != nil {
		return nil, fmt.Errorf("sign reference: %w", err)
	}
	return signed, nil
}

func load(ctx context.Context, tx pg.Tx, host string) (r record, err error) {
	if _, err = tx.Exec(ctx, "insert into desired_documents (host_id) values ($1) on conflict do nothing", host); err != nil {
		return r, err
	}
	return read(ctx, tx, host, " for update")
}

func read(ctx context.Context, db pg.DB, host, lock string) (r record, err error) {
	var generation int64
	err = db.QueryRow(ctx, "select dirty, generation, digest, document from desired_documents where host_id = $1"+lock, host).
		Scan(&r.dirty, &generation, &r.digest, &r.document)
	r.generation = uint64(generation)
	return r, err
}

// behind returns the hosts that do not have, or have not applied, what they shall.
func behind(ctx context.Context, db pg.DB) ([]string, error) {
	rows, err := db.Query(ctx, "select host_id from desired_documents where dirty or observed <> generation")
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowTo[string])
}

// noteObserved notes what a host has.
func noteObserved(ctx context.Context, db pg.DB, host string, observed, applied uint64) error {
	_, err := db.Exec(ctx, `update desired_documents set observed = $2, applied = $3
		where host_id = $1 and (observed, applied) is distinct from ($2, $3)`, host, int64(observed), int64(applied))
	return err
}
