package recording

import (
	"context"
	"errors"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/remotegpu/remotegpu/control/pg"
)

// row is one of the journal.
type row struct {
	N     int64  `db:"n"`
	Part  int    `db:"part"`
	Shown []byte `db:"shown"`
	Tail  []byte `db:"tail"`
	State []byte `db:"state"`
}

// appendRow fails with ErrTaken when writer is no longer the recording's. It
// does not wait for the disk: a row is there for those who would go on when this
// server dies, and may not be when the database does.
func appendRow(ctx context.Context, pool *pg.Pool, id string, writer int, r row) error {
	var b pgx.Batch
	b.Queue(pg.Unhurried)
	b.Queue(`with ours as (select id from recordings where id = $1 and writer = $2 and ended_at is null for share)
		insert into recording_journal (recording_id, n, part, shown, tail, state)
		select id, $3, $4, coalesce($5, ''::bytea), coalesce($6, ''::bytea), coalesce($7, ''::bytea) from ours`,
		id, writer, r.N, r.Part, r.Shown, r.Tail, r.State)
	results := pool.SendBatch(ctx, &b)
	if _, err := results.Exec(); err != nil {
		return errors.Join(err, results.Close())
	}
	done, err := results.Exec()
	if err := errors.Join(err, results.Close()); err != nil {
		return err
	}
	if done.RowsAffected() == 0 {
		return ErrTaken
	}
	return nil
}

// rows are those of the part that gathers.
func rows(ctx context.Context, db pg.DB, id string) ([]row, error) {
	found, err := db.Query(ctx, `select n, part, shown, tail, state from recording_journal where recording_id = $1
		and part = (select part from recording_journal where recording_id = $1 order by n desc limit 1) order by n`, id)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(found, pgx.RowToStructByName[row])
}

// dropRows forgets what comes before row n.
func dropRows(ctx context.Context, db pg.DB, id string, n int64) error {
	_, err := db.Exec(ctx, "delete from recording_journal where recording_id = $1 and n < $2", id, n)
	return err
}

func hold(ctx context.Context, db pg.DB, id, client string, keep time.Duration) error {
	_, err := db.Exec(ctx, "update recordings set held = $2, keep = $3 where id = $1", id, client, keep)
	return err
}

// take makes a recording somebody else's to write.
func take(ctx context.Context, db pg.DB, h Held) (r Recording, writer int, err error) {
	err = db.QueryRow(ctx, `with r as (
			select id from recordings where held = $1 and environment_id = $2 and user_id = $3 and touched_at > now() - keep and ended_at is null
			order by started_at desc limit 1 for update)
		update recordings set writer = writer + 1, touched_at = now() from r where recordings.id = r.id
		returning recordings.id, started_at, bytes, writer`,
		h.Client, h.Environment, h.User).Scan(&r.ID, &r.StartedAt, &r.Bytes, &writer)
	return r, writer, err
}

// claim is take for who has it, and returns his new number.
func claim(ctx context.Context, db pg.DB, id string, writer int) (now int, err error) {
	err = db.QueryRow(ctx, "update recordings set writer = writer + 1 where id = $1 and writer = $2 and ended_at is null returning writer", id, writer).Scan(&now)
	return now, err
}

// isWriter returns pg's none where writer is no longer the recording's.
func isWriter(ctx context.Context, db pg.DB, id string, writer int) error {
	return db.QueryRow(ctx, "select writer from recordings where id = $1 and writer = $2 and ended_at is null", id, writer).Scan(&writer)
}
