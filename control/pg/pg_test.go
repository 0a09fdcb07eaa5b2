package pg_test

import (
	"context"
	"log/slog"
	"os"
	"syscall"
	"testing"
	"time"

	"github.com/remotegpu/remotegpu/control/pg"
	"github.com/remotegpu/remotegpu/control/pgtest"
)

func TestMain(m *testing.M) { pgtest.Main(m) }

func TestListenGetsWhatCommits(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	got := make(chan string, 10)
	go pg.Listen(t.Context(), pool, "news", func(p string) { got <- p })
	if p := <-got; p != "" {
		t.Fatalf("first call has payload %q, want the empty one that says: look yourself", p)
	}
	rollback := pg.InTx(t.Context(), pool, func(tx pg.Tx) error {
		if err := pg.Notify(t.Context(), tx, "news", "undone"); err != nil {
			t.Error(err)
		}
		return context.Canceled
	})
	if rollback != context.Canceled {
		t.Fatalf("InTx returned %v, want the error of its function", rollback)
	}
	if err := pg.Notify(t.Context(), pool, "news", "done"); err != nil {
		t.Fatal(err)
	}
	if p := <-got; p != "done" {
		t.Errorf("heard %q, want only what was committed", p)
	}
}

func TestListenComesBack(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	got := make(chan string, 10)
	go pg.Listen(t.Context(), pool, "news", func(p string) { got <- p })
	<-got
	_, err := pool.Exec(t.Context(), `select pg_terminate_backend(pid) from pg_stat_activity
		where datname = current_database() and query like 'listen%'`)
	if err != nil {
		t.Fatal(err)
	}
	select {
	case p := <-got:
		if p != "" {
			t.Errorf("after the cut heard %q, want the empty payload", p)
		}
	case <-time.After(10 * time.Second):
		t.Error("heard nothing within 10 s of the cut")
	}
}

func TestMigrateTwiceChangesNothing(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	if err := pg.Migrate(t.Context(), pool); err != nil {
		t.Error(err)
	}
}

func TestPrivateComesBackAfterKill(t *testing.T) {
	t.Parallel()
	dir, err := os.MkdirTemp("", "rgpg")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	log := slog.New(slog.DiscardHandler)
	first, err := pg.StartPrivate(t.Context(), dir, log)
	if err != nil {
		t.Fatal(err)
	}
	pool, err := pg.Open(t.Context(), first.URL())
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	if err := syscall.Kill(first.Pid(), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	deadline := time.Now().Add(30 * time.Second)
	for {
		_, err := pool.Exec(t.Context(), "select 1")
		if err == nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("database is not back 30 s after kill -9: %v", err)
		}
		time.Sleep(100 * time.Millisecond)
	}
	first.Close()
	second, err := pg.StartPrivate(t.Context(), dir, log)
	if err != nil {
		t.Fatalf("start again: %v", err)
	}
	second.Close()
}
