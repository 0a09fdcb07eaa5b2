package host

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/remotegpu/remotegpu/control/audit"
	"github.com/remotegpu/remotegpu/control/auth"
	"github.com/remotegpu/remotegpu/control/errs"
	"github.com/remotegpu/remotegpu/control/pg"
	"github.com/remotegpu/remotegpu/protocol"
)

const (
	joinPrefix   = "rgj_"
	tokenColumns = "id, uses, used, expires_at, approval, labels, revoked, created_at"
)

func hashToken(secret string) []byte {
	sum := sha256.Sum256([]byte(secret))
	return sum[:]
}

// CreateToken makes a join token; the secret is returned here and never again.
func (s *Service) CreateToken(ctx context.Context, c auth.Caller, t JoinToken, life time.Duration) (JoinToken, string, error) {
	if err := c.Require(auth.HostManage, ""); err != nil {
		return JoinToken{}, "", err
	}
	if err := validLabels(t.Labels); err != nil {
		return JoinToken{}, "", err
	}
	t.ID, t.CreatedAt, t.ExpiresAt = protocol.NewID(protocol.PrefixToken), time.Now(), time.Now().Add(life)
	if t.Labels == nil {
		t.Labels = map[string]string{}
	}
	secret := joinPrefix + rand.Text()
	err := pg.InTx(ctx, s.pool, func(tx pg.Tx) error {
		_, err := tx.Exec(ctx, `insert into join_tokens (id, hash, uses, expires_at, approval, labels, created_by) values ($1, $2, $3, $4, $5, $6, $7)`,
			t.ID, hashToken(secret), t.Uses, t.ExpiresAt, t.Approval, t.Labels, c.ID)
		if err != nil {
			return err
		}
		return audit.Record(ctx, tx, c, auth.HostManage, t.ID, "", map[string]any{"created": "join token", "uses": t.Uses})
	})
	return t, secret, err
}

// Tokens lists join tokens, newest first.
func (s *Service) Tokens(ctx context.Context, c auth.Caller) ([]JoinToken, error) {
	if err := c.Require(auth.HostManage, ""); err != nil {
		return nil, err
	}
	rows, err := s.pool.Query(ctx, "select "+tokenColumns+" from join_tokens order by created_at desc limit 500")
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowToStructByName[JoinToken])
}

// RevokeToken makes a join token worthless; hosts that joined with it stay.
func (s *Service) RevokeToken(ctx context.Context, c auth.Caller, id string) error {
	if err := c.Require(auth.HostManage, ""); err != nil {
		return err
	}
	return pg.InTx(ctx, s.pool, func(tx pg.Tx) error {
		tag, err := tx.Exec(ctx, "update join_tokens set revoked = true where id = $1", id)
		if err != nil {
			return err
		}
		if tag.RowsAffected() == 0 {
			return errs.E(errs.NotFound, "There is no such join token.")
		}
		return audit.Record(ctx, tx, c, auth.HostManage, id, "", map[string]any{"revoked": "join token"})
	})
}

// validToken returns a token, or says why it is no good.
func validToken(ctx context.Context, tx pg.Tx, secret string) (JoinToken, error) {
	rows, err := tx.Query(ctx, "select "+tokenColumns+" from join_tokens where hash = $1", hashToken(secret))
	if err != nil {
		return JoinToken{}, err
	}
	t, err := pgx.CollectExactlyOneRow(rows, pgx.RowToStructByName[JoinToken])
	if pg.IsNone(err) {
		return t, errs.E(errs.Denied, "This join token is unknown here. Copy the whole line, or make a new one: remotegpu host join")
	} else if err != nil {
		return t, err
	}
	return t, t.check(time.Now())
}

// use counts a use of a token that was good, unless that has changed since. Others
// with this token wait until tx ends, so it is its last statement.
func (t JoinToken) use(ctx context.Context, tx pg.Tx, secret string) error {
	tag, err := tx.Exec(ctx, "update join_tokens set used = used + 1 where id = $1 and used < uses and not revoked", t.ID)
	if err != nil || tag.RowsAffected() == 1 {
		return err
	}
	if _, err := validToken(ctx, tx, secret); err != nil {
		return err
	}
	return errs.E(errs.Conflict, "The join token was changed in this moment. Run the line again.")
}
