package ticket

import (
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/remotegpu/remotegpu/control/pg"
	"github.com/remotegpu/remotegpu/control/pgtest"
)

func TestMain(m *testing.M) { pgtest.Main(m) }

type word struct{ Word string }

func newPool(t *testing.T) *pg.Pool {
	t.Helper()
	pool := pgtest.New(t)
	for _, sql := range []string{
		`insert into users (id, email, name, password_hash, admin) values ('usr_a', 'a@example.org', '', '', false)`,
		`insert into sessions (hash, user_id, expires_at) values ('\x01', 'usr_a', now() + interval '1 hour')`,
		`insert into api_tokens (id, hash, user_id, name, expires_at) values ('tok_a', '\x02', 'usr_a', 't', now() + interval '1 hour')`,
		`insert into hosts (id, name, public_key, state) values ('host_a', 'box', '\x01', 'active')`,
	} {
		if _, err := pool.Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
	}
	return pool
}

func issue(t *testing.T, pool *pg.Pool, tk Ticket[word], life time.Duration) string {
	t.Helper()
	tk.Kind, tk.User = "door", "usr_a"
	secret, expires, err := Issue(t.Context(), pool, tk, life)
	if err != nil {
		t.Fatal(err)
	}
	if left := time.Until(expires); left > life+time.Second || left < life-time.Minute {
		t.Errorf("it counts for %v, want %v", left, life)
	}
	return secret
}

// TestTakenOnce: of many who show it at once, one gets it, whole.
func TestTakenOnce(t *testing.T) {
	t.Parallel()
	pool := newPool(t)
	want := Ticket[word]{Kind: "door", User: "usr_a", Login: []byte{1}, Host: "host_a", Detail: word{"desk"}}
	secret := issue(t, pool, want, time.Hour)
	if _, err := Take[word](t.Context(), pool, "window", secret); !pg.IsNone(err) {
		t.Errorf("as one of another kind: %v", err)
	}
	if got, err := Find[word](t.Context(), pool, "door", secret); err != nil || !cmp.Equal(got, want) {
		t.Errorf("%v\n%s", err, cmp.Diff(want, got))
	}
	var took atomic.Int32
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			got, err := Take[word](t.Context(), pool, "door", secret)
			if err == nil && cmp.Equal(got, want) {
				took.Add(1)
			} else if !pg.IsNone(err) {
				t.Error(got, err)
			}
		})
	}
	all.Wait()
	if took.Load() != 1 {
		t.Errorf("%d took it", took.Load())
	}
}

// TestEnds: with its time, with what it was got with, where it leads to, and
// when it is revoked.
func TestEnds(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		ticket Ticket[word]
		sql    string
	}{
		"time":            {Ticket[word]{}, "update tickets set expires_at = now()"},
		"session":         {Ticket[word]{Login: []byte{1}}, "delete from sessions"},
		"session's time":  {Ticket[word]{Login: []byte{1}}, "update sessions set expires_at = now()"},
		"API token":       {Ticket[word]{Token: "tok_a"}, "delete from api_tokens"},
		"API token's end": {Ticket[word]{Token: "tok_a"}, "update api_tokens set expires_at = now()"},
		"host":            {Ticket[word]{Host: "host_a"}, "delete from hosts"},
		"user":            {Ticket[word]{}, "delete from users"},
		"revoked":         {Ticket[word]{}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			pool := newPool(t)
			secret := issue(t, pool, c.ticket, time.Hour)
			if _, err := Find[word](t.Context(), pool, "door", secret); err != nil {
				t.Fatal(err)
			}
			var err error
			if c.sql == "" {
				err = Revoke(t.Context(), pool, secret)
			} else {
				_, err = pool.Exec(t.Context(), c.sql)
			}
			if err != nil {
				t.Fatal(err)
			}
			if _, err := Find[word](t.Context(), pool, "door", secret); !pg.IsNone(err) {
				t.Errorf("found: %v", err)
			}
			if _, err := Take[word](t.Context(), pool, "door", secret); !pg.IsNone(err) {
				t.Errorf("taken: %v", err)
			}
		})
	}
}

// TestSweep: nobody need come for what has expired to go; the secret was never
// there.
func TestSweep(t *testing.T) {
	t.Parallel()
	pool := newPool(t)
	late, good := issue(t, pool, Ticket[word]{}, 0), issue(t, pool, Ticket[word]{}, time.Hour)
	if err := sweep(t.Context(), pool); err != nil {
		t.Fatal(err)
	}
	var rows, plain int
	err := pool.QueryRow(t.Context(), "select count(*), count(*) filter (where hash in ($1, $2)) from tickets", []byte(late), []byte(good)).Scan(&rows, &plain)
	if err != nil || rows != 1 || plain != 0 {
		t.Errorf("%d rows, %d plain, %v", rows, plain, err)
	}
	if _, err := Find[word](t.Context(), pool, "door", good); err != nil {
		t.Error(err)
	}
}
