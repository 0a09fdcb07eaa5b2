package pg_test

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/remotegpu/remotegpu/control/pg"
	"github.com/remotegpu/remotegpu/control/pgtest"
)

// TestFeed: who has asked a feed has heard all that was committed before, on each
// of its channels, also when the connection was cut meanwhile.
func TestFeed(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	var mu sync.Mutex // guards what follows
	heard, began := map[string]bool{}, 0
	feed := pg.NewFeed(pool, func(p string) {
		mu.Lock()
		defer mu.Unlock()
		if heard[p] = true; p == "" {
			began++
		}
	}, "news", "olds")
	go feed.Run(t.Context())
	within, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var all sync.WaitGroup
	for who := range 4 {
		all.Go(func() {
			for i := range 50 {
				if who == 0 && i%20 == 10 {
					if _, err := pool.Exec(within, `select pg_terminate_backend(pid) from pg_stat_activity
						where datname = current_database() and query like 'listen%'`); err != nil {
						t.Error(err)
					}
				}
				what := fmt.Sprint(who, " ", i)
				mu.Lock()
				before := began
				mu.Unlock()
				err := pg.Notify(within, pool, []string{"news", "olds"}[i%2], what)
				if err == nil {
					err = feed.Sync(within)
				}
				mu.Lock()
				if err != nil || !heard[what] && began == before {
					t.Errorf("%s was not heard: %v", what, err)
				}
				mu.Unlock()
			}
		})
	}
	all.Wait()
	short, end := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer end()
	if err := pg.NewFeed(pool, func(string) {}, "news").Sync(short); err == nil {
		t.Error("a feed that does not run has heard everything")
	}
}
