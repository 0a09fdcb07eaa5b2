// Package pg is how the control plane speaks to PostgreSQL.
//
// It owns connecting, migrations, transactions, notifications and the private
// server that runs when no database URL is given. It knows no table but
// tern's; SQL stands in the store.go of each module. Its invariant: after
// Open, the schema is the one this program was built with.
package pg

import (
	"context"
	"embed"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"net"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/tern/v2/migrate"

	"github.com/remotegpu/remotegpu/control/errs"
)

// DB is a pool or a transaction: what a store function needs.
type DB interface {
	Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error)
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
}

// Impatient is a statement that keeps its transaction from waiting for somebody
// else's lock for long: those who share it with whom that is about are not held up.
const Impatient = "select set_config('lock_timeout', '2s', true)"

// Unhurried is a statement that lets its transaction commit without waiting for
// the disk: what it writes may be gone when PostgreSQL crashes in the next half
// second, and all else is as with any other.
const Unhurried = "select set_config('synchronous_commit', 'off', true)"

// Pool is a set of connections to one database.
type Pool = pgxpool.Pool

// Tx is a transaction. Functions that take a Tx and not a DB write more than
// one row and must not be torn apart.
type Tx = pgx.Tx

//go:embed migrations/*.sql
var migrations embed.FS

// minConns is how many connections a pool may have at least: what is done for
// hosts takes up to half of them, and people must not wait behind it.
const minConns = 24

// Open connects to url, a PostgreSQL connection string, and brings the schema
// up to date. Several servers may do so at once: a lock lets one of them work.
func Open(ctx context.Context, url string) (*Pool, error) {
	cfg, err := pgxpool.ParseConfig(url)
	if err != nil {
		return nil, fmt.Errorf("parse database URL: %w", err)
	}
	if !strings.Contains(url, "pool_max_conns") {
		cfg.MaxConns = max(cfg.MaxConns, minConns)
	}
	cfg.MaxConnLifetimeJitter = 10 * time.Minute
	if cfg.ConnConfig.ConnectTimeout == 0 {
		cfg.ConnConfig.ConnectTimeout = 10 * time.Second
	}
	pool, err := pgxpool.NewWithConfig(ctx, cfg)
	if err != nil {
		return nil, fmt.Errorf("connect to database: %w", err)
	}
	if err := Migrate(ctx, pool); err != nil {
		pool.Close()
		return nil, err
	}
	return pool, nil
}

// Migrate applies the migrations that the database has not seen.
func Migrate(ctx context.Context, pool *Pool) error {
	conn, err := pool.Acquire(ctx)
	if err != nil {
		return fmt.Errorf("connect to database: %w", err)
	}
	defer conn.Release()
	m, err := migrate.NewMigrator(ctx, conn.Conn(), "schema_version")
	if err != nil {
		return fmt.Errorf("prepare migrations: %w", err)
	}
	dir, err := fs.Sub(migrations, "migrations")
	if err != nil {
		return err
	}
	if err := m.LoadMigrations(dir); err != nil {
		return fmt.Errorf("load migrations: %w", err)
	}
	at, err := m.GetCurrentVersion(ctx)
	if err != nil {
		return fmt.Errorf("read version of the schema: %w", err)
	}
	if newest := int32(len(m.Migrations)); at > newest {
		return fmt.Errorf("migrate database: its schema is version %d, and this server knows versions up to %d: a newer server has used it. "+
			"Start that one again; there is no way back but a backup from before the upgrade, restored into an empty database. Nothing was changed", at, newest)
	}
	if err := m.Migrate(ctx); err != nil {
		return fmt.Errorf("migrate database: %w", err)
	}
	return nil
}

// InTx runs fn in one transaction: committed when fn returns nil, else rolled
// back. When PostgreSQL reports a serialization failure or a deadlock fn runs
// again, up to eight times in all, after a moment that differs for those who met.
func InTx(ctx context.Context, pool *Pool, fn func(tx Tx) error) error {
	var err error
	for try := range 8 {
		err = pgx.BeginFunc(ctx, pool, fn)
		if code := Code(err); code != "40001" && code != "40P01" {
			return err
		}
		time.Sleep(rand.N(time.Millisecond << try))
	}
	return err
}

// Code returns the SQLSTATE in err, or "".
func Code(err error) string {
	if e, ok := errors.AsType[*pgconn.PgError](err); ok {
		return e.Code
	}
	return ""
}

// IsUnique reports whether err is a violation of the named unique constraint or index; an
// empty name stands for any.
func IsUnique(err error, constraint string) bool {
	e, ok := errors.AsType[*pgconn.PgError](err)
	return ok && e.Code == "23505" && (constraint == "" || e.ConstraintName == constraint)
}

// Meaning gives err the sentence for a person that a state of the database is
// worth. What has one, and what is a fault of ours, stays as it is.
func Meaning(err error) error {
	switch {
	case err == nil || errs.KindOf(err) != errs.Internal:
		return err
	case IsText(err):
		return errs.E(errs.Invalid, "A text in the request has a zero byte or is not UTF-8; leave it out.", err)
	case IsFull(err):
		return errs.E(errs.Unavailable, "The server's database has no room left on its disk; tell who runs the server. Nothing was changed.", err)
	case isBroken(err):
		return errs.E(errs.Unavailable, "The server's connection to its database broke; look whether it was done, and try again.", err)
	case IsAway(err):
		return errs.E(errs.Unavailable, "The server's database does not answer right now; try again in a moment. Nothing was changed.", err)
	}
	return err
}

// IsFull reports whether err says that the database's disk is full.
func IsFull(err error) bool { return Code(err) == "53100" }

// IsAway reports whether err says that the database cannot be reached now, is
// starting or stopping, or has no connection or memory to spare (SQLSTATE classes
// 08, 57P and 53). One that lets nobody in for want of a disk says XX000; one that
// does not know us (28), or that is not there (3D), stays so.
func IsAway(err error) bool {
	code := Code(err)
	if _, connecting := errors.AsType[*pgconn.ConnectError](err); connecting {
		return !strings.HasPrefix(code, "28") && !strings.HasPrefix(code, "3D")
	}
	if code == "" {
		return isBroken(err)
	}
	return strings.HasPrefix(code, "08") || strings.HasPrefix(code, "57P") || strings.HasPrefix(code, "53")
}

// isBroken reports whether err says that a connection ended in the midst of its
// work, so that nobody knows what became of that.
func isBroken(err error) bool {
	if _, connecting := errors.AsType[*pgconn.ConnectError](err); connecting {
		return false
	}
	_, broken := errors.AsType[*net.OpError](err)
	return broken || errors.Is(err, io.ErrUnexpectedEOF)
}

// IsText reports whether err says that a text cannot be kept: it has a zero byte
// or is not UTF-8.
func IsText(err error) bool {
	code := Code(err)
	return code == "22021" || code == "22P05" // in text, in JSON
}

// IsData reports whether err says that a value itself is at fault (SQLSTATE class
// 22: a text, a number or a time that no column takes): trying again never helps.
func IsData(err error) bool { return strings.HasPrefix(Code(err), "22") }

// IsNone reports whether err says that a query returned no row.
func IsNone(err error) bool { return errors.Is(err, pgx.ErrNoRows) }
