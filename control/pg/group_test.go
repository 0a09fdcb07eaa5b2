package pg

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// TestGroup: who comes alone is served at once, who comes meanwhile is served
// together, and only who is at fault gets an error.
func TestGroup(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var turns [][]int
		g := NewGroup(3, func(_ context.Context, all []int) error {
			turns = append(turns, slices.Clone(all))
			time.Sleep(time.Second)
			if slices.Contains(all, 13) {
				return errors.New("13")
			}
			return nil
		})
		start := time.Now()
		if err := g.Do(t.Context(), 1); err != nil || time.Since(start) != time.Second {
			t.Errorf("alone: %v after %v", err, time.Since(start))
		}
		got := map[int]error{}
		var mu sync.Mutex
		var all sync.WaitGroup
		for _, n := range []int{2, 3, 13, 4, 5} {
			all.Go(func() {
				err := g.Do(t.Context(), n)
				mu.Lock()
				defer mu.Unlock()
				got[n] = err
			})
			synctest.Wait()
		}
		leaving, cancel := context.WithCancel(t.Context())
		all.Go(func() {
			if err := g.Do(leaving, 6); !errors.Is(err, context.Canceled) {
				t.Errorf("who has left got %v", err)
			}
		})
		synctest.Wait()
		cancel()
		all.Wait()
		synctest.Wait()
		if want := "[[1] [2] [3 13 4] [3] [13] [4] [5]]"; fmt.Sprint(turns) != want {
			t.Errorf("turns %v, want %s", turns, want)
		}
		for n, err := range got {
			if (err != nil) != (n == 13) {
				t.Errorf("%d got %v", n, err)
			}
		}
	})
}

// TestGroupWithoutDatabase: what ails all is not tried for each.
func TestGroupWithoutDatabase(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		turns := 0
		g := NewGroup(10, func(context.Context, []int) error {
			turns++
			time.Sleep(time.Second)
			return context.DeadlineExceeded
		})
		var all sync.WaitGroup
		for n := range 5 {
			all.Go(func() {
				if err := g.Do(t.Context(), n); err == nil {
					t.Error("no error")
				}
			})
			synctest.Wait()
		}
		all.Wait()
		if turns != 2 {
			t.Errorf("%d turns for one alone and four together", turns)
		}
	})
}

// TestShared: an answer is of a look that began after it was asked for, and is
// everybody's who asked before that.
func TestShared(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var looks, now atomic.Int64
		s := NewShared(func(_ context.Context, key string) (string, error) {
			looks.Add(1)
			seen := now.Load()
			time.Sleep(time.Second)
			if key == "none" {
				return "", errors.New("none")
			}
			return fmt.Sprint(key, seen), nil
		})
		var all sync.WaitGroup
		ask := func(key, want string) {
			all.Go(func() {
				if got, err := s.Get(t.Context(), key); got != want || (err != nil) != (key == "none") {
					t.Errorf("%s: %q, %v, want %q", key, got, err, want)
				}
			})
			synctest.Wait()
		}
		ask("a", "a0")
		now.Store(1)
		ask("a", "a1")
		ask("a", "a1")
		ask("none", "")
		ask("none", "")
		ask("none", "")
		all.Wait()
		if looks.Load() != 4 || len(s.all) != 0 {
			t.Errorf("%d looks for two times two, %d are kept", looks.Load(), len(s.all))
		}
	})
}
