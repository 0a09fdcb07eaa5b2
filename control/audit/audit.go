// Package audit keeps who did what, so that nobody can change it unseen.
//
// It owns the table audit_entries and its hash chain. Its invariant: an entry
// is written in the transaction of what it tells of, so there is none without
// the other; Seal chains entries in the order in which they commit, and Verify
// walks the chain. It is a chain of plain hashes: whoever writes to the database
// can make it anew, and only a hash that was kept elsewhere shows that.
package audit

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"log/slog"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/remotegpu/remotegpu/control/auth"
	"github.com/remotegpu/remotegpu/control/pg"
)

// Entry is one line of the log.
type Entry struct {
	ID        int64           `db:"id" json:"id"`
	At        time.Time       `db:"at" json:"at"`
	Actor     string          `db:"actor" json:"actor" doc:"User, host or part of the control plane"`
	Action    string          `db:"action" json:"action" doc:"noun.verb"`
	Target    string          `db:"target" json:"target,omitempty" doc:"Id of what it was done to"`
	Workspace string          `db:"workspace" json:"workspace,omitempty"`
	Remote    string          `db:"remote" json:"remote,omitempty" doc:"Address that the caller was seen at"`
	Detail    json.RawMessage `db:"detail" json:"detail"`
	Seal      *int64          `db:"seal" json:"seal,omitempty" doc:"Place in the hash chain; absent for the first seconds"`
	Hash      []byte          `db:"hash" json:"-"`
}

const columns = "id, at, actor, action, target, workspace, remote, detail, seal, hash"

// Act is what RecordAll writes of one operation. Detail becomes JSON; it must
// hold no secret. Nil means none.
type Act struct {
	Caller    auth.Caller
	Action    auth.Action
	Target    string
	Workspace string
	Detail    any
}

// Record writes that c did action to target, in the transaction that does it.
func Record(ctx context.Context, db pg.DB, c auth.Caller, action auth.Action, target, workspace string, detail any) error {
	return RecordAll(ctx, db, []Act{{c, action, target, workspace, detail}})
}

// RecordAll writes what was done in one transaction.
func RecordAll(ctx context.Context, db pg.DB, acts []Act) error {
	rows := make([]Entry, len(acts))
	for i, a := range acts {
		if a.Detail == nil {
			a.Detail = struct{}{}
		}
		detail, err := json.Marshal(a.Detail)
		if err != nil {
			return fmt.Errorf("encode audit detail: %w", err)
		}
		rows[i] = Entry{Actor: a.Caller.ID, Action: string(a.Action), Target: a.Target, Workspace: a.Workspace, Remote: a.Caller.Remote, Detail: detail}
	}
	_, err := db.Exec(ctx, `insert into audit_entries (actor, action, target, workspace, remote, detail)
		select actor, action, coalesce(target, ''), coalesce(workspace, ''), coalesce(remote, ''), detail
		from jsonb_to_recordset($1) as t(actor text, action text, target text, workspace text, remote text, detail jsonb)`, rows)
	if err != nil {
		return fmt.Errorf("write audit entry: %w", err)
	}
	return nil
}

// Ended is the detail of the entry that an access leaves at its end. That it
// began is in an entry of its own, with who let it begin and how ("via"): a
// server that dies writes no end.
type Ended struct {
	Via         string  `json:"via,omitempty"`         // of many connections that are told of as one
	Connections int     `json:"connections,omitempty"` // how many they were
	Stream      string  `json:"stream,omitempty"`      // str_…, where it was one
	Kind        string  `json:"kind,omitempty"`        // of that stream
	Target      string  `json:"target,omitempty"`      // NETWORK:ADDRESS, or an app's name or port
	Seconds     float64 `json:"ended_after_s"`
	In          uint64  `json:"bytes_in"`  // to the environment
	Out         uint64  `json:"bytes_out"` // from it
}

// Filter narrows a List; zero fields mean any.
type Filter struct {
	Workspace string
	Actor     string
	Before    int64 // id
	Limit     int   // 0: 100
}

// List returns entries, newest first.
func List(ctx context.Context, db pg.DB, c auth.Caller, f Filter) ([]Entry, error) {
	if err := c.Require(auth.AuditRead, ""); err != nil {
		return nil, err
	}
	if f.Limit <= 0 || f.Limit > 1000 {
		f.Limit = 100
	}
	rows, err := db.Query(ctx, `select `+columns+` from audit_entries
		where ($1 = '' or workspace = $1) and ($2 = '' or actor = $2) and ($3 = 0 or id < $3)
		order by id desc limit $4`, f.Workspace, f.Actor, f.Before, f.Limit)
	if err != nil {
		return nil, fmt.Errorf("list audit entries: %w", err)
	}
	return pgx.CollectRows(rows, pgx.RowToStructByName[Entry])
}

const sealDelay = 5 * time.Second

// Run seals new entries every few seconds until ctx ends, and tells the log of
// the server now and then how far it is.
func Run(ctx context.Context, pool *pg.Pool, log *slog.Logger) error {
	var told time.Time
	for {
		err := Seal(ctx, pool)
		if err == nil && time.Since(told) > tellEvery {
			told, err = time.Now(), tellHead(ctx, pool, log)
		}
		if err != nil && ctx.Err() == nil {
			log.Error("seal audit log", "err", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(sealDelay):
		}
	}
}

// Seal extends the chain over the entries that are not in it yet. Only one
// server does so at a time.
func Seal(ctx context.Context, pool *pg.Pool) error {
	return pg.InTx(ctx, pool, func(tx pg.Tx) error {
		if _, err := tx.Exec(ctx, "select pg_advisory_xact_lock(hashtext('audit seal'))"); err != nil {
			return err
		}
		place, last, err := head(ctx, tx)
		if err != nil {
			return err
		}
		rows, err := tx.Query(ctx, `select `+columns+` from audit_entries
			where seal is null order by id limit 10000`)
		if err != nil {
			return err
		}
		entries, err := pgx.CollectRows(rows, pgx.RowToStructByName[Entry])
		if err != nil {
			return err
		}
		ids, seals, hashes := make([]int64, len(entries)), make([]int64, len(entries)), make([][]byte, len(entries))
		for i, e := range entries {
			last, place = e.link(last), place+1
			ids[i], seals[i], hashes[i] = e.ID, place, last
		}
		_, err = tx.Exec(ctx, `update audit_entries a set seal = n.seal, hash = n.hash
			from unnest($1::bigint[], $2::bigint[], $3::bytea[]) n(id, seal, hash) where a.id = n.id`, ids, seals, hashes)
		return err
	})
}

// link returns the hash of the entry, chained to the one sealed before it.
func (e *Entry) link(before []byte) []byte {
	h := sha256.New()
	h.Write(before)
	var detail bytes.Buffer
	_ = json.Compact(&detail, e.Detail) // stored as jsonb: always valid
	fmt.Fprintf(h, "%d\n%d\n%q %q %q %q %q\n%s", e.ID, e.At.UnixMicro(), e.Actor, e.Action, e.Target, e.Workspace, e.Remote, detail.Bytes())
	return h.Sum(nil)
}
