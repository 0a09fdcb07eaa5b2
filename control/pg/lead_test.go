package pg_test

import (
	"context"
	"math/rand/v2"
	"sync/atomic"
	"testing"
	"time"

	"github.com/remotegpu/remotegpu/control/pg"
	"github.com/remotegpu/remotegpu/control/pgtest"
)

const leaders = "select pid from pg_locks where locktype = 'advisory' and granted and database = (select oid from pg_database where datname = current_database())"

// cutLeader ends the leader's connection, as when its process dies.
func cutLeader(t *testing.T, pool *pg.Pool) bool {
	t.Helper()
	var ended bool
	err := pool.QueryRow(t.Context(), "select pg_terminate_backend(pid) from ("+leaders+") l").Scan(&ended)
	if err != nil && !pg.IsNone(err) {
		t.Fatal(err)
	}
	return ended
}

// TestLeadOfOne: of several there is never more than one at a time, while
// connections are ended at random; each end is followed by a next leader.
func TestLeadOfOne(t *testing.T) {
	t.Parallel()
	url := pgtest.URL(t)
	ctx, stop := context.WithCancel(t.Context())
	var now, begun atomic.Int32
	done := make(chan struct{}, 3)
	for range cap(done) {
		pool, err := pg.Open(ctx, url)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(pool.Close)
		go func() {
			defer func() { done <- struct{}{} }()
			_ = pg.Lead(ctx, pool, "loops", func(ctx context.Context) error {
				if n := now.Add(1); n != 1 {
					t.Errorf("%d leaders at a time", n)
				}
				begun.Add(1)
				<-ctx.Done()
				time.Sleep(rand.N(20 * time.Millisecond)) // it takes a moment to end
				now.Add(-1)
				return nil
			})
		}()
	}
	pool, err := pg.Open(ctx, url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	for want := int32(1); want <= 6; want++ {
		for since := time.Now(); begun.Load() < want; time.Sleep(10 * time.Millisecond) {
			if time.Since(since) > 30*time.Second {
				t.Fatalf("no leader %d within 30 s", want)
			}
		}
		time.Sleep(rand.N(300 * time.Millisecond))
		if want < 6 && !cutLeader(t, pool) {
			t.Error("the leader has no lock")
		}
	}
	stop()
	for range cap(done) {
		<-done
	}
	if n := now.Load(); n != 0 {
		t.Errorf("%d leaders after the end", n)
	}
}

// TestLeadEnds: a lead lasts until fn ends, and what fn says ends Lead; another
// name is another lead.
func TestLeadEnds(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	err := pg.Lead(t.Context(), pool, "a", func(ctx context.Context) error {
		select {
		case <-ctx.Done():
			t.Error("the lead is lost without a reason")
		case <-time.After(3500 * time.Millisecond):
		}
		return pg.Lead(ctx, pool, "b", func(context.Context) error { return context.DeadlineExceeded })
	})
	if err != context.DeadlineExceeded {
		t.Errorf("got %v", err)
	}
}
