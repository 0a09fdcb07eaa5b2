package dispatch

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/remotegpu/remotegpu/control/pg"
	"github.com/remotegpu/remotegpu/protocol"
)

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

// compilation is a host's document to be made anew, and what came of it.
type compilation struct {
	host string
	has  held
	seen uint64 // generation that was published already
	record
}

// current returns a host's document, compiled anew when its wishes changed, or
// when the host has a document that we know nothing of: after a restored backup
// its generation may be above ours, or the same with another digest. Of wishes
// that have not changed, a look is likely to be enough.
func (s *Service) current(ctx context.Context, ln *lane, changed bool) (record, error) {
	if !changed {
		found, err := s.look(ctx, ln.host)
		if r, known := found[ln.host]; err == nil && known && r.fresh() && !ln.has.forks(r) {
			return r, nil
		}
	}
	c := &compilation{host: ln.host, has: ln.has, seen: ln.newest}
	if err := s.documents.Do(ctx, c); err != nil {
		return record{}, err // it may be at work still
	}
	return c.record, nil
}

// look reads a document by a connection of its own.
func (s *Service) look(ctx context.Context, host string) (map[string]record, error) {
	if err := s.alone(ctx); err != nil {
		return nil, err
	}
	defer func() { <-s.single }()
	return read(ctx, s.pool, []string{host}, "")
}

// compile writes the next generations of documents that are not what they shall
// be, in one transaction. It does not wait for the disk: the wishes are there, and
// of a document that was lost the generation is known here, or by its host.
func (s *Service) compile(ctx context.Context, all []*compilation) error {
	hosts := make([]string, len(all))
	for i, c := range all {
		hosts[i] = c.host
	}
	return pg.InTx(ctx, s.pool, func(tx pg.Tx) error {
		for _, how := range []string{pg.Unhurried, pg.Impatient} {
			if _, err := tx.Exec(ctx, how); err != nil {
				return err
			}
		}
		found, err := lock(ctx, tx, hosts)
		if err != nil {
			return err
		}
		stale := slices.DeleteFunc(slices.Clone(all), func(c *compilation) bool {
			c.record = found[c.host]
			return c.fresh() && !c.has.forks(c.record)
		})
		if len(stale) == 0 {
			return nil
		}
		workloads, err := s.cfg.Workloads(ctx, tx, hosts)
		if err != nil {
			return fmt.Errorf("compile workloads: %w", err)
		}
		for _, c := range stale {
			if c.record, err = s.sign(c.host, workloads[c.host], c.next()); err != nil {
				return err
			}
		}
		return write(ctx, tx, stale)
	})
}

// next is the generation of the new document. Where nobody here knows what the
// host has, one that the database has lost may be ahead, and is left behind.
func (c *compilation) next() uint64 {
	if c.generation > 0 && c.has.generation == 0 && c.seen == 0 {
		return c.generation + 1000
	}
	return max(c.generation, c.has.generation, c.seen) + 1
}

// sign makes a document of the generation.
func (s *Service) sign(host string, workloads []protocol.Workload, generation uint64) (r record, err error) {
	d := protocol.Desired{
		Version: protocol.Version, Host: host, Generation: generation, IssuedAt: time.Now().Unix(), Workloads: workloads,
	}
	if r.document, err = protocol.Sign(&d, s.cfg.Key); err != nil {
		return r, fmt.Errorf("sign desired document: %w", err)
	}
	if len(r.document) > protocol.MaxDocument {
		return r, fmt.Errorf("desired document of %d bytes is over the limit of %d: too much on one host", len(r.document), protocol.MaxDocument)
	}
	r.generation = generation
	r.digest, err = d.Digest()
	return r, err
}

// lock reads documents for update; those that there are not are made first.
func lock(ctx context.Context, tx pg.Tx, hosts []string) (map[string]record, error) {
	const forUpdate = " order by host_id for update"
	found, err := read(ctx, tx, hosts, forUpdate)
	if err != nil || len(found) == len(hosts) {
		return found, err
	}
	if _, err := tx.Exec(ctx, "insert into desired_documents (host_id) select distinct unnest($1::text[]) host order by host on conflict do nothing", hosts); err != nil {
		return nil, err
	}
	return read(ctx, tx, hosts, forUpdate)
}

func write(ctx context.Context, tx pg.Tx, all []*compilation) error {
	hosts, generations := make([]string, len(all)), make([]int64, len(all))
	digests, documents := make([][]byte, len(all)), make([][]byte, len(all))
	for i, c := range all {
		hosts[i], generations[i], digests[i], documents[i] = c.host, int64(c.generation), c.digest, c.document
	}
	_, err := tx.Exec(ctx, `update desired_documents d set dirty = false, generation = n.generation, digest = n.digest, document = n.document
		from unnest($1::text[], $2::bigint[], $3::bytea[], $4::bytea[]) n (host, generation, digest, document) where d.host_id = n.host`,
		hosts, generations, digests, documents)
	return err
}

func read(ctx context.Context, db pg.DB, hosts []string, lock string) (map[string]record, error) {
	rows, err := db.Query(ctx, "select host_id, dirty, generation, digest, document from desired_documents where host_id = any($1)"+lock, hosts)
	if err != nil {
		return nil, err
	}
	found := make(map[string]record, len(hosts))
	var host string
	var r record
	_, err = pgx.ForEachRow(rows, []any{&host, &r.dirty, &r.generation, &r.digest, &r.document}, func() error {
		found[host] = r
		return nil
	})
	return found, err
}
