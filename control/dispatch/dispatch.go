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
	"context"
	"crypto/ed25519"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/time/rate"

	"github.com/remotegpu/remotegpu/control/pg"
	"github.com/remotegpu/remotegpu/protocol"
)

// changed is the channel on which the id of a host is notified whose document
// is dirty.
const changed = "desired_changed"

// Config is what dispatch needs from others.
type Config struct {
	Key       ed25519.PrivateKey
	Workloads func(ctx context.Context, db pg.DB, hosts []string) (map[string][]protocol.Workload, error) // by host, sorted by id
	Publish   func(host, topic string, payload []byte) error                                              // at QoS 0; never waits
	Connected func(host string) bool                                                                      // to this replica's broker
	Hello     func(ctx context.Context, host string, h protocol.Hello) error
	Presence  func(ctx context.Context, host string, p protocol.Presence) error
	// Workload and HostState take what hosts say of their workloads and of
	// themselves, by host, in this order.
	Workload  func(ctx context.Context, tx pg.Tx, said map[string]*protocol.Status) error
	HostState func(ctx context.Context, tx pg.Tx, said map[string]*protocol.Status) error
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

	// Hosts that say something at once, and those that get a document, share a transaction.
	reports   *pg.Group[report]
	documents *pg.Group[*compilation]
	single    chan struct{} // one for each that has a connection to itself

	repeats []time.Duration // waits between publishing a document again
	garbage rate.Sometimes  // is told of
}

// New returns the dispatcher.
func New(pool *pg.Pool, cfg Config, log *slog.Logger) *Service {
	s := &Service{pool: pool, cfg: cfg, log: log, repeats: repeats, garbage: rate.Sometimes{Interval: time.Minute}}
	s.lanes.init(s)
	s.reports = pg.NewGroup(maxTogether, s.keep)
	s.documents = pg.NewGroup(maxTogether, s.compile)
	s.single = make(chan struct{}, maxSingle)
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
		s.tell(host)
	})
}

// tell has a host get its newest document: now, or when it is heard again.
func (s *Service) tell(host string) {
	if s.cfg.Connected(host) {
		s.lanes.wake(host)
	} else {
		s.lanes.miss(host)
	}
}

// CatchUp wakes the lanes of hosts that are connected here and whose newest
// document is not theirs yet, as after another replica has served them.
func (s *Service) CatchUp(ctx context.Context) {
	hosts, err := behind(ctx, s.pool)
	if err != nil && ctx.Err() == nil {
		s.log.Error("look for hosts without their newest document", "err", err)
	}
	for _, host := range hosts {
		s.tell(host)
	}
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

// behind returns the hosts that do not have, or have not applied, what they shall.
func behind(ctx context.Context, db pg.DB) ([]string, error) {
	rows, err := db.Query(ctx, "select host_id from desired_documents where dirty or observed <> generation")
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowTo[string])
}
