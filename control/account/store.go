package account

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/remotegpu/remotegpu/control/auth"
	"github.com/remotegpu/remotegpu/control/pg"
)

const (
	userColumns  = "id, email, name, admin, disabled, created_at"
	tokenColumns = "id, name, expires_at, created_at, used_at"
	keyColumns   = "id, name, fingerprint, public_key, created_at, used_at"
)

func one[T any](ctx context.Context, db pg.DB, sql string, args ...any) (T, error) {
	rows, err := db.Query(ctx, sql, args...)
	if err != nil {
		var zero T
		return zero, err
	}
	return pgx.CollectExactlyOneRow(rows, pgx.RowToStructByName[T])
}

func all[T any](ctx context.Context, db pg.DB, sql string, args ...any) ([]T, error) {
	rows, err := db.Query(ctx, sql, args...)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowToStructByName[T])
}

func insertUser(ctx context.Context, db pg.DB, u User, passwordHash string) error {
	_, err := db.Exec(ctx, "insert into users (id, email, name, password_hash, admin) values ($1, $2, $3, $4, $5)",
		u.ID, u.Email, u.Name, passwordHash, u.Admin)
	return err
}

func anyUser(ctx context.Context, db pg.DB) (there bool, err error) {
	err = db.QueryRow(ctx, "select exists (select from users)").Scan(&there)
	return there, err
}

func lockBootstrap(ctx context.Context, tx pg.Tx) error {
	_, err := tx.Exec(ctx, "select pg_advisory_xact_lock(hashtext('account bootstrap'))")
	return err
}

func userByEmail(ctx context.Context, db pg.DB, email string) (u User, passwordHash string, err error) {
	err = db.QueryRow(ctx, "select "+userColumns+", password_hash from users where lower(email) = lower($1)", email).
		Scan(&u.ID, &u.Email, &u.Name, &u.Admin, &u.Disabled, &u.CreatedAt, &passwordHash)
	return u, passwordHash, err
}

func userByID(ctx context.Context, db pg.DB, id string) (User, error) {
	return one[User](ctx, db, "select "+userColumns+" from users where id = $1", id)
}

func listUsers(ctx context.Context, db pg.DB) ([]User, error) {
	return all[User](ctx, db, "select "+userColumns+" from users order by lower(email)")
}

// userBySecret finds the user of an API token or session and notes its use, to
// the minute. The token is empty for a session.
func userBySecret(ctx context.Context, db pg.DB, hash []byte) (u User, token string, err error) {
	err = db.QueryRow(ctx, `
		with t as (
			select id, user_id from api_tokens where hash = $1 and (expires_at is null or expires_at > now())
			union all
			select '', user_id from sessions where hash = $1 and expires_at > now()
		), touched as (
			update api_tokens set used_at = now()
			where id in (select id from t) and (used_at is null or used_at < now() - interval '1 minute')
		)
		select u.id, u.email, u.name, u.admin, u.disabled, u.created_at, t.id
		from t join users u on u.id = t.user_id where not u.disabled`, hash).
		Scan(&u.ID, &u.Email, &u.Name, &u.Admin, &u.Disabled, &u.CreatedAt, &token)
	return u, token, err
}

// userByFingerprint finds the user of an SSH key, and the key's id.
func userByFingerprint(ctx context.Context, db pg.DB, fingerprint string) (u User, key string, err error) {
	err = db.QueryRow(ctx, `
		with k as (update ssh_keys set used_at = now() where fingerprint = $1 returning id, user_id)
		select u.id, u.email, u.name, u.admin, u.disabled, u.created_at, k.id
		from k join users u on u.id = k.user_id where not u.disabled`, fingerprint).
		Scan(&u.ID, &u.Email, &u.Name, &u.Admin, &u.Disabled, &u.CreatedAt, &key)
	return u, key, err
}

// rolesOf reads what the workspace module wrote: a caller's roles.
func rolesOf(ctx context.Context, db pg.DB, user string) (map[string]auth.Role, error) {
	rows, err := db.Query(ctx, "select workspace_id, role from workspace_members where user_id = $1", user)
	if err != nil {
		return nil, fmt.Errorf("read roles: %w", err)
	}
	roles := map[string]auth.Role{}
	var ws string
	var role auth.Role
	_, err = pgx.ForEachRow(rows, []any{&ws, &role}, func() error { roles[ws] = role; return nil })
	return roles, err
}

// userNow is c's user if they may log in, and c's session, token or key counts.
func userNow(ctx context.Context, db pg.DB, c auth.Caller) (User, error) {
	return one[User](ctx, db, `select `+userColumns+` from users where id = $1 and not disabled
		and ($2::bytea is null or exists (select from sessions s where s.hash = $2 and s.user_id = $1 and s.expires_at > now()))
		and ($3 = '' or exists (select from api_tokens t where t.id = $3 and t.user_id = $1 and (t.expires_at is null or t.expires_at > now())))
		and ($4 = '' or exists (select from ssh_keys k where k.id = $4 and k.user_id = $1))`,
		c.ID, c.Login, c.Token, c.Key)
}

// insertSession opens a session for a user whose password has the hash that was
// checked; pg.IsNone of its error: it has another one by now. A change that is
// under way is waited for, and ends no session that it does not see.
func insertSession(ctx context.Context, db pg.DB, hash []byte, user, passwordHash string) error {
	var id string
	return db.QueryRow(ctx, `with u as (select id from users where id = $2 and password_hash = $3 and not disabled for share)
		insert into sessions (hash, user_id, expires_at) select $1, id, now() + $4 from u returning user_id`, hash, user, passwordHash, sessionLife).Scan(&id)
}

// deleteOtherSessions ends all sessions of a user but the one with hash, nil:
// all, and returns how many.
func deleteOtherSessions(ctx context.Context, db pg.DB, user string, hash []byte) (int64, error) {
	tag, err := db.Exec(ctx, "delete from sessions where user_id = $1 and hash is distinct from $2", user, hash)
	return tag.RowsAffected(), err
}

func deleteSession(ctx context.Context, db pg.DB, hash []byte) error {
	_, err := db.Exec(ctx, "delete from sessions where hash = $1", hash)
	return err
}

func deleteOldSessions(ctx context.Context, db pg.DB) error {
	_, err := db.Exec(ctx, "delete from sessions where expires_at <= now()")
	return err
}

func insertToken(ctx context.Context, db pg.DB, user string, t Token, hash []byte) error {
	_, err := db.Exec(ctx, "insert into api_tokens (id, user_id, name, hash, expires_at) values ($1, $2, $3, $4, $5)",
		t.ID, user, t.Name, hash, t.ExpiresAt)
	return err
}

func listTokens(ctx context.Context, db pg.DB, user string) ([]Token, error) {
	return all[Token](ctx, db, "select "+tokenColumns+" from api_tokens where user_id = $1 order by created_at", user)
}

// deleteOwned removes a row of one of the user's tables and reports whether it
// was there.
func deleteOwned(ctx context.Context, db pg.DB, table ownedTable, user, id string) (bool, error) {
	tag, err := db.Exec(ctx, string(table), user, id)
	return tag.RowsAffected() > 0, err
}

type ownedTable string

const (
	ownedTokens ownedTable = "delete from api_tokens where user_id = $1 and id = $2"
	ownedKeys   ownedTable = "delete from ssh_keys where user_id = $1 and id = $2"
)

func insertKey(ctx context.Context, db pg.DB, user string, k Key) error {
	_, err := db.Exec(ctx, "insert into ssh_keys (id, user_id, name, fingerprint, public_key) values ($1, $2, $3, $4, $5)",
		k.ID, user, k.Name, k.Fingerprint, k.PublicKey)
	return err
}

func keyOwner(ctx context.Context, db pg.DB, fingerprint string) (user string, k Key, err error) {
	err = db.QueryRow(ctx, "select user_id, "+keyColumns+" from ssh_keys where fingerprint = $1", fingerprint).
		Scan(&user, &k.ID, &k.Name, &k.Fingerprint, &k.PublicKey, &k.CreatedAt, &k.UsedAt)
	return user, k, err
}

func listKeys(ctx context.Context, db pg.DB, user string) ([]Key, error) {
	return all[Key](ctx, db, "select "+keyColumns+" from ssh_keys where user_id = $1 order by created_at", user)
}

func setPassword(ctx context.Context, db pg.DB, user, hash string) error {
	_, err := db.Exec(ctx, "update users set password_hash = $2 where id = $1", user, hash)
	return err
}

// rehashPassword replaces one hash of a password by another; pg.IsNone of its
// error: it is not the one any more.
func rehashPassword(ctx context.Context, db pg.DB, user, old, hash string) error {
	var id string
	return db.QueryRow(ctx, "update users set password_hash = $3 where id = $1 and password_hash = $2 returning id", user, old, hash).Scan(&id)
}

// setDisabled turns a user off or on, and ends their sessions.
func setDisabled(ctx context.Context, tx pg.Tx, user string, disabled bool) error {
	if _, err := tx.Exec(ctx, "update users set disabled = $2 where id = $1", user, disabled); err != nil {
		return err
	}
	_, err := tx.Exec(ctx, "delete from sessions where user_id = $1", user)
	return err
}
