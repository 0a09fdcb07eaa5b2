// Package ticket is what somebody may show instead of logging in: a random
// secret that leads to one thing.
//
// It owns the table tickets, and that what has expired is removed; what each
// kind of ticket opens, and for whom, is decided by who issues and takes it. Its
// invariant: the secret itself is kept nowhere, of two who show one that works
// once only one gets in, and a ticket ends with the session or the API token
// that it was got with.
package ticket

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"fmt"
	"log/slog"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/remotegpu/remotegpu/control/auth"
	"github.com/remotegpu/remotegpu/control/pg"
)

// Ticket says for whom and what a secret is. D is what its kind needs besides,
// as JSON.
type Ticket[D any] struct {
	Kind        string `db:"kind"` // chosen by who issues it
	User        string `db:"user_id"`
	Login       []byte `db:"session"`        // hash of the session that it was got with; nil: none
	Token       string `db:"token_id"`       // API token that it was got with; empty: none
	Environment string `db:"environment_id"` // where it leads to; empty: not there
	Host        string `db:"host_id"`        // as Environment
	Detail      D      `db:"detail"`
}

// Caller is who has shown t at an address, as if it were the session or token
// that t was got with; their rights are to be looked up.
func (t Ticket[D]) Caller(remote string) auth.Caller {
	return auth.Caller{Kind: auth.KindUser, ID: t.User, Login: t.Login, Token: t.Token, Remote: remote}
}

// Issue keeps t for life and returns the secret that opens it, and until when.
func Issue[D any](ctx context.Context, db pg.DB, t Ticket[D], life time.Duration) (secret string, expires time.Time, err error) {
	secret = rand.Text()
	err = db.QueryRow(ctx, `insert into tickets (hash, kind, user_id, session, token_id, environment_id, host_id, detail, expires_at)
		values ($1, $2, $3, $4, nullif($5, ''), nullif($6, ''), nullif($7, ''), $8, now() + $9) returning expires_at`,
		hash(secret), t.Kind, t.User, t.Login, t.Token, t.Environment, t.Host, t.Detail, life).Scan(&expires)
	if err != nil {
		return "", expires, fmt.Errorf("keep ticket: %w", err)
	}
	return secret, expires, nil
}

const (
	columns = `t.kind, t.user_id, t.session, coalesce(t.token_id, '') as token_id, coalesce(t.environment_id, '') as environment_id,
		coalesce(t.host_id, '') as host_id, t.detail`

	// alive is what holds of a ticket t that still counts.
	alive = ` and t.expires_at > now()
		and not exists (select from sessions s where s.hash = t.session and s.expires_at <= now())
		and not exists (select from api_tokens a where a.id = t.token_id and a.expires_at <= now())`
)

// Find returns a ticket that may be shown again. pg.IsNone of its error: there
// is none that counts.
func Find[D any](ctx context.Context, db pg.DB, kind, secret string) (Ticket[D], error) {
	return one[D](ctx, db, "select "+columns+" from tickets t where t.hash = $1 and t.kind = $2"+alive, hash(secret), kind)
}

// Take is Find for one that works once: it is used up, whatever comes of it.
func Take[D any](ctx context.Context, db pg.DB, kind, secret string) (Ticket[D], error) {
	return one[D](ctx, db, "delete from tickets t where t.hash = $1 and t.kind = $2"+alive+" returning "+columns, hash(secret), kind)
}

func one[D any](ctx context.Context, db pg.DB, sql string, args ...any) (t Ticket[D], err error) {
	rows, err := db.Query(ctx, sql, args...)
	if err != nil {
		return t, err
	}
	return pgx.CollectExactlyOneRow(rows, pgx.RowToStructByName[Ticket[D]])
}

// Revoke ends a ticket; one that is not there has ended.
func Revoke(ctx context.Context, db pg.DB, secret string) error {
	_, err := db.Exec(ctx, "delete from tickets where hash = $1", hash(secret))
	return err
}

const sweepEvery = time.Minute

// Run removes what has expired, until ctx ends.
func Run(ctx context.Context, pool *pg.Pool, log *slog.Logger) error {
	t := time.NewTicker(sweepEvery)
	defer t.Stop()
	for {
		if err := sweep(ctx, pool); err != nil && ctx.Err() == nil {
			log.Warn("tickets not swept; it is tried again", "err", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
		}
	}
}

func sweep(ctx context.Context, db pg.DB) error {
	_, err := db.Exec(ctx, "delete from tickets where expires_at <= now()")
	return err
}

// hash needs no salt and no slow function: the secret is random.
func hash(secret string) []byte {
	sum := sha256.Sum256([]byte(secret))
	return sum[:]
}
