// Package pgtest gives every test a PostgreSQL database of its own.
//
// One server serves all tests of a program; its schema is made once, and each
// New clones it, which takes some 50 ms. Only tests import it.
package pgtest

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/remotegpu/remotegpu/control/pg"
)

var (
	shared struct {
		once sync.Once
		base string // connection string without database
		err  error
		stop func()
	}
	clones atomic.Int64
)

// Main runs the tests and stops the server after them; call it from TestMain.
func Main(m *testing.M) {
	code := m.Run()
	if shared.stop != nil {
		shared.stop()
	}
	os.Exit(code)
}

// New returns a pool on a fresh database with the whole schema.
func New(t testing.TB) *pg.Pool {
	t.Helper()
	pool, err := pg.Open(t.Context(), URL(t))
	if err != nil {
		t.Fatalf("open test database: %v", err)
	}
	t.Cleanup(pool.Close)
	return pool
}

// URL returns the connection string of a fresh database with the whole schema.
func URL(t testing.TB) string {
	t.Helper()
	shared.once.Do(start)
	if shared.err != nil {
		t.Fatalf("start test database: %v", shared.err)
	}
	name := fmt.Sprintf("test%d", clones.Add(1))
	if err := admin("create database " + name + " template remotegpu"); err != nil {
		t.Fatalf("clone test database: %v", err)
	}
	return shared.base + " dbname=" + name
}

func start() {
	dir, err := os.MkdirTemp("", "rgpg")
	if err != nil {
		shared.err = err
		return
	}
	ctx := context.Background()
	private, err := pg.StartPrivate(ctx, dir, slog.New(slog.DiscardHandler))
	if err != nil {
		shared.err = err
		return
	}
	shared.stop = func() { private.Close(); os.RemoveAll(dir) }
	shared.base = "host=" + dir + " port=5432 user=remotegpu"
	pool, err := pg.Open(ctx, private.URL())
	if err != nil {
		shared.err = err
		return
	}
	pool.Close() // a template must have no connections
	shared.err = admin("alter system set fsync = off")
	if shared.err == nil {
		shared.err = admin("select pg_reload_conf()")
	}
}

var adminMu sync.Mutex // one clone at a time: a template must have no other user

func admin(sql string) error {
	adminMu.Lock()
	defer adminMu.Unlock()
	ctx := context.Background()
	conn, err := pgx.Connect(ctx, shared.base+" dbname=postgres")
	if err != nil {
		return err
	}
	defer conn.Close(ctx)
	_, err = conn.Exec(ctx, sql)
	return err
}
