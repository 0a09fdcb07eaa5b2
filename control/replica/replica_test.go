package replica

import (
	"context"
	"log/slog"
	"slices"
	"testing"
	"time"

	"github.com/remotegpu/remotegpu/control/errs"
	"github.com/remotegpu/remotegpu/control/pg"
	"github.com/remotegpu/remotegpu/control/pgtest"
)

func TestMain(m *testing.M) { pgtest.Main(m) }

func begin(t *testing.T, pool *pg.Pool, cfg Config) *Service {
	t.Helper()
	s, err := New(t.Context(), pool, cfg, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func expire(t *testing.T, s *Service) {
	t.Helper()
	if _, err := s.pool.Exec(t.Context(), "update replicas set seen_at = now() - interval '11 seconds' where id = $1", s.id); err != nil {
		t.Fatal(err)
	}
}

func TestAddress(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	a, b, mute := begin(t, pool, Config{Address: "10.0.0.1:8444"}), begin(t, pool, Config{Address: "10.0.0.2:8444"}), begin(t, pool, Config{})
	if at, err := a.Address(t.Context(), b.ID()); err != nil || at != "10.0.0.2:8444" {
		t.Errorf("b is at %q, %v", at, err)
	}
	expire(t, b)
	for name, id := range map[string]string{"expired": b.ID(), "mute": mute.ID(), "unknown": "rep_none"} {
		if at, err := a.Address(t.Context(), id); errs.KindOf(err) != errs.Unavailable || at != "" {
			t.Errorf("%s: at %q, %v", name, at, err)
		}
	}
}

func TestOthers(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	renewed := func(s *Service) bool {
		if err := s.renew(t.Context()); err != nil {
			t.Fatal(err)
		}
		return s.Others()
	}
	a := begin(t, pool, Config{})
	if renewed(a) {
		t.Error("a is alone")
	}
	b := begin(t, pool, Config{})
	if !b.Others() || !renewed(a) {
		t.Error("a and b do not see each other")
	}
	expire(t, b)
	if renewed(a) {
		t.Error("b has died")
	}
	if !renewed(b) || !renewed(a) {
		t.Error("b lives again: it could not reach the database")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := b.Run(ctx); err != nil || renewed(a) {
		t.Errorf("b has gone: %v", err)
	}
}

// TestSweep: what a dead one leaves is settled before it is forgotten.
func TestSweep(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	var lost []string
	var fail error
	a := begin(t, pool, Config{Lost: func(_ context.Context, id string) error {
		lost = append(lost, id)
		return fail
	}})
	dead, alive := begin(t, pool, Config{}), begin(t, pool, Config{})
	expire(t, dead)
	fail = context.DeadlineExceeded
	if err := a.sweep(t.Context()); err == nil {
		t.Error("a failure is not told")
	}
	fail = nil
	for range 2 {
		if err := a.sweep(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if want := []string{dead.ID(), dead.ID()}; !slices.Equal(lost, want) {
		t.Errorf("lost %v, want %v", lost, want)
	}
	if !alive.Others() {
		t.Error("those that live were forgotten")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	expire(t, alive)
	if err := a.Sweep(ctx); err != nil || len(lost) != 2 {
		t.Errorf("a new sweeper does not wait: %v, %v", lost, err)
	}
}
