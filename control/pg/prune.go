package pg

import (
	"context"
	"log/slog"
	"time"
)

const (
	pruneEvery = time.Hour
	pruneBatch = 10_000 // rows in one transaction, so that nobody waits for it
)

// Prune deletes rows of a table whose column at is older than keep, now and
// every hour, until ctx ends.
func Prune(ctx context.Context, pool *Pool, table string, keep time.Duration, log *slog.Logger) error {
	t := time.NewTicker(pruneEvery)
	defer t.Stop()
	for {
		if err := prune(ctx, pool, table, keep); err != nil && ctx.Err() == nil {
			log.Warn("old rows not deleted; it is tried again", "table", table, "err", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
		}
	}
}

func prune(ctx context.Context, db DB, table string, keep time.Duration) error {
	for {
		done, err := db.Exec(ctx, "delete from "+table+" where id in (select id from "+table+" where at < $1 limit $2)", time.Now().Add(-keep), pruneBatch)
		if err != nil || done.RowsAffected() < pruneBatch {
			return err
		}
	}
}
