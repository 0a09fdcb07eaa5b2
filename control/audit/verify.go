package audit

import (
	"bytes"
	"context"
	"encoding/hex"
	"fmt"
	"log/slog"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/remotegpu/remotegpu/control/auth"
	"github.com/remotegpu/remotegpu/control/pg"
)

// Walk says which part of the chain is looked at. It is walked in parts, of
// which each takes a moment, however long the log is.
type Walk struct {
	After  int64  // place in the chain of the last entry of the part before; 0: from the first entry on
	Hash   []byte // of that entry
	Expect []byte // a hash that is looked for among the entries; nil: none
	Limit  int    // most entries
}

// Part is what was found in a part of the chain.
type Part struct {
	Entries int64      `json:"entries" doc:"How many are in order"`
	From    *time.Time `json:"from,omitempty" doc:"When the first of them was written"`
	To      *time.Time `json:"to,omitempty" doc:"When the last one was"`
	Place   int64      `json:"place" doc:"Of the last one in the chain, counted from 1; after of the next part"`
	Hash    string     `json:"hash" doc:"Of the last one; hash of the next part"`
	Found   bool       `json:"found" doc:"One of them has the hash that was expected"`
	More    bool       `json:"more" doc:"The chain goes on"`
	Damage  string     `json:"damage,omitempty" doc:"What is wrong right after them; absent: nothing"`
}

// Verify walks a part of the chain. It finds any entry that was changed,
// removed or slipped in by somebody who did not make the rest of the chain anew;
// to notice that, and entries that are gone from the end, a hash is needed that
// was kept elsewhere.
func Verify(ctx context.Context, db pg.DB, c auth.Caller, w Walk) (Part, error) {
	if err := c.Require(auth.AuditVerify, ""); err != nil {
		return Part{}, err
	}
	rows, err := db.Query(ctx, "select "+columns+" from audit_entries where seal > $1 or $1 = 0 and seal <= 0 order by seal limit $2", w.After, w.Limit)
	if err != nil {
		return Part{}, fmt.Errorf("read audit chain: %w", err)
	}
	defer rows.Close()
	p := Part{Place: w.After}
	last := w.Hash
	for rows.Next() && p.Damage == "" {
		e, err := pgx.RowToStructByName[Entry](rows)
		if err != nil {
			return Part{}, err
		}
		if p.Damage = e.damage(p.Place, last); p.Damage == "" {
			last = e.Hash
			p.take(e, w.Expect)
		}
	}
	p.Hash, p.More = hex.EncodeToString(last), p.Damage == "" && p.Entries == int64(w.Limit)
	return p, rows.Err()
}

// damage says what is wrong with the entry that comes after the one at a place.
func (e *Entry) damage(place int64, before []byte) string {
	switch {
	case *e.Seal != place+1:
		return fmt.Sprintf("the chain has no entry at place %d; the next one is entry %d of %s, at place %d: entries were removed, or that one was slipped in",
			place+1, e.ID, e.At.UTC().Format(time.RFC3339), *e.Seal)
	case !bytes.Equal(e.link(before), e.Hash):
		return fmt.Sprintf("entry %d of %s, at place %d, does not fit the chain: it was changed or slipped in, or what came before it was",
			e.ID, e.At.UTC().Format(time.RFC3339), *e.Seal)
	}
	return ""
}

// take counts an entry that is in order.
func (p *Part) take(e Entry, expect []byte) {
	if p.From == nil {
		p.From = &e.At
	}
	p.To, p.Place = &e.At, *e.Seal
	p.Entries++
	p.Found = p.Found || expect != nil && bytes.Equal(e.Hash, expect)
}

const tellEvery = time.Hour

// tellHead logs where the chain stands: a log that is kept elsewhere keeps a
// hash to verify with.
func tellHead(ctx context.Context, db pg.DB, log *slog.Logger) error {
	place, hash, err := head(ctx, db)
	if err == nil {
		log.Info("audit log is sealed", "entries", place, "head", hex.EncodeToString(hash))
	}
	return err
}

// head is the place and hash of the last entry that is sealed; 0: none is.
func head(ctx context.Context, db pg.DB) (place int64, hash []byte, err error) {
	err = db.QueryRow(ctx, "select seal, hash from audit_entries where seal is not null order by seal desc limit 1").Scan(&place, &hash)
	if pg.IsNone(err) {
		err = nil
	}
	return place, hash, err
}
