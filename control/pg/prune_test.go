package pg_test

import (
	"context"
	"log/slog"
	"testing"
	"time"

	"github.com/remotegpu/remotegpu/control/pg"
	"github.com/remotegpu/remotegpu/control/pgtest"
)

func TestPrune(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	if _, err := pool.Exec(t.Context(), `create table notes (id bigint generated always as identity primary key, at timestamptz not null);
		insert into notes (at) select now() - n * interval '1 minute' from generate_series(1, 25000) n`); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- pg.Prune(ctx, pool, "notes", 30*time.Minute, slog.New(slog.DiscardHandler)) }()
	left := 0
	for end := time.Now().Add(30 * time.Second); left != 29; time.Sleep(20 * time.Millisecond) {
		if err := pool.QueryRow(t.Context(), "select count(*) from notes").Scan(&left); err != nil {
			t.Fatal(err)
		}
		if left < 29 || time.Now().After(end) {
			t.Fatalf("%d rows are left, want those of the last half hour, 29", left)
		}
	}
	stop()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}
