package recording

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/remotegpu/remotegpu/control/pg"
)

const columns = "id, workspace_id, environment_id, environment_name, user_id, user_name, via, started_at, ended_at, cut, bytes, expires_at"

func policy(ctx context.Context, db pg.DB, workspace string) (Policy, error) {
	rows, err := db.Query(ctx, "select mode, keep_days from recording_policies where workspace_id = $1", workspace)
	if err != nil {
		return Policy{}, err
	}
	p, err := pgx.CollectExactlyOneRow(rows, pgx.RowToStructByName[Policy])
	if pg.IsNone(err) {
		return defaultPolicy, nil
	}
	return p, err
}

func setPolicy(ctx context.Context, db pg.DB, workspace string, p Policy) error {
	_, err := db.Exec(ctx, `insert into recording_policies (workspace_id, mode, keep_days) values ($1, $2, $3)
		on conflict (workspace_id) do update set mode = excluded.mode, keep_days = excluded.keep_days`, workspace, p.Mode, p.KeepDays)
	return err
}

func insert(ctx context.Context, db pg.DB, r Recording) error {
	_, err := db.Exec(ctx, `insert into recordings (id, workspace_id, environment_id, environment_name, user_id, user_name, via, started_at, touched_at, expires_at)
		values ($1, $2, $3, $4, $5, $6, $7, $8, now(), $9)`,
		r.ID, r.Workspace, r.Environment, r.EnvironmentName, r.User, r.UserName, r.Via, r.StartedAt, r.ExpiresAt)
	return err
}

// touch shows that a recording goes on.
func touch(ctx context.Context, db pg.DB, id string, writer int, bytes int64) error {
	_, err := db.Exec(ctx, "update recordings set touched_at = now(), bytes = $3 where id = $1 and writer = $2", id, writer, bytes)
	return err
}

func end(ctx context.Context, db pg.DB, id string, cut bool) error {
	_, err := db.Exec(ctx, "update recordings set ended_at = touched_at, cut = $2 where id = $1 and ended_at is null", id, cut)
	return err
}

func list(ctx context.Context, db pg.DB, workspace, environment string) ([]Recording, error) {
	rows, err := db.Query(ctx, "select "+columns+` from recordings
		where workspace_id = $1 and ($2 = '' or environment_name = $2 or environment_id = $2) order by started_at desc limit 500`, workspace, environment)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowToStructByName[Recording])
}

func find(ctx context.Context, db pg.DB, workspace, id string) (Recording, error) {
	rows, err := db.Query(ctx, "select "+columns+" from recordings where workspace_id = $1 and id = $2", workspace, id)
	if err != nil {
		return Recording{}, err
	}
	return pgx.CollectExactlyOneRow(rows, pgx.RowToStructByName[Recording])
}

func remove(ctx context.Context, db pg.DB, id string) error {
	_, err := db.Exec(ctx, "delete from recordings where id = $1", id)
	return err
}

// orphans are recordings whose server has not touched them for silent, and with
// which nobody goes on any more.
func orphans(ctx context.Context, db pg.DB, silent time.Duration) ([]string, error) {
	return ids(ctx, db, "select id from recordings where ended_at is null and touched_at < now() - greatest($1::interval, keep) limit 100", silent)
}

func expired(ctx context.Context, db pg.DB) ([]string, error) {
	return ids(ctx, db, "select id from recordings where expires_at < now() and ended_at is not null order by expires_at limit 100")
}

func ids(ctx context.Context, db pg.DB, sql string, args ...any) ([]string, error) {
	rows, err := db.Query(ctx, sql, args...)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowTo[string])
}
