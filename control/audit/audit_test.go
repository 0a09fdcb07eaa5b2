package audit_test

import (
	"context"
	"encoding/hex"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/remotegpu/remotegpu/control/audit"
	"github.com/remotegpu/remotegpu/control/auth"
	"github.com/remotegpu/remotegpu/control/pg"
	"github.com/remotegpu/remotegpu/control/pgtest"
)

func TestMain(m *testing.M) { pgtest.Main(m) }

var system = auth.System("test")

// write adds entries to the log, and seals each.
func write(t *testing.T, pool *pg.Pool, n int) {
	t.Helper()
	for i := range n {
		err := audit.Record(t.Context(), pool, system, auth.HostManage, "host_x", "", map[string]any{"n": i, "text": "ä<>&\n"})
		if err != nil {
			t.Fatal(err)
		}
		if err := audit.Seal(t.Context(), pool); err != nil {
			t.Fatal(err)
		}
	}
}

// walk verifies the whole chain, in parts of limit entries.
func walk(t *testing.T, pool *pg.Pool, limit int, expect string) (all audit.Part) {
	t.Helper()
	want, err := hex.DecodeString(expect)
	if err != nil {
		t.Fatal(err)
	}
	for all.More = true; all.More; {
		before, err := hex.DecodeString(all.Hash)
		if err != nil {
			t.Fatal(err)
		}
		p, err := audit.Verify(t.Context(), pool, system, audit.Walk{After: all.Place, Hash: before, Expect: want, Limit: limit})
		if err != nil {
			t.Fatal(err)
		}
		p.Entries, p.Found = p.Entries+all.Entries, p.Found || all.Found
		all = p
	}
	return all
}

func TestChainShowsEveryChange(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name, sql, says string
		entries         int64
	}{
		{"nothing", "select 1", "", 4},
		{"detail changed", `update audit_entries set detail = '{"n": 7}' where seal = 2`, "entry 2 of", 1},
		{"actor changed", "update audit_entries set actor = 'usr_x' where seal = 2", "entry 2 of", 1},
		{"time changed", "update audit_entries set at = at - interval '1 hour' where seal = 4", "entry 4 of", 3},
		{"removed", "delete from audit_entries where seal = 2", "no entry at place 2", 1},
		{"the first removed", "delete from audit_entries where seal = 1", "no entry at place 1", 0},
		{"removed, and the rest moved up", "delete from audit_entries where seal = 2; update audit_entries set seal = seal - 1 where seal > 2", "entry 3 of", 1},
		{"exchanged", "update audit_entries set seal = -1 where seal = 2; update audit_entries set seal = 2 where seal = 3; update audit_entries set seal = 3 where seal = -1", "entry 3 of", 1},
		{"slipped in", "insert into audit_entries (actor, action, seal, hash) values ('a', 'b', 99, 'x')", "no entry at place 5", 4},
		{"slipped in at the end", "insert into audit_entries (actor, action, seal, hash) values ('a', 'b', 5, 'x')", "at place 5", 4},
		{"slipped in before the first", "insert into audit_entries (actor, action, seal, hash) values ('a', 'b', 0, 'x')", "no entry at place 1", 0},
		{"without its seal", "update audit_entries set seal = null where seal = 3", "no entry at place 3", 2},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			pool := pgtest.New(t)
			write(t, pool, 4)
			for _, sql := range strings.Split(tt.sql, "; ") {
				if _, err := pool.Exec(t.Context(), sql); err != nil {
					t.Fatal(err)
				}
			}
			for _, limit := range []int{1, 2, 4, 1000} {
				p := walk(t, pool, limit, "")
				if p.Entries != tt.entries || (p.Damage == "") != (tt.says == "") || !strings.Contains(p.Damage, tt.says) {
					t.Errorf("in parts of %d: %+v", limit, p)
				}
			}
		})
	}
}

// TestTruncatedChain: what is gone from the end, and a chain that was made anew,
// show to who has kept a hash, and to nobody else.
func TestTruncatedChain(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	write(t, pool, 3)
	kept := walk(t, pool, 1000, "").Hash
	write(t, pool, 2)
	if p := walk(t, pool, 2, kept); !p.Found || p.Entries != 5 || p.Hash == kept {
		t.Errorf("a head of before: %+v", p)
	}
	if _, err := pool.Exec(t.Context(), "delete from audit_entries where seal > 2"); err != nil {
		t.Fatal(err)
	}
	if p := walk(t, pool, 2, kept); p.Found || p.Damage != "" || p.Entries != 2 {
		t.Errorf("truncated: %+v", p)
	}
	write(t, pool, 3)
	if _, err := pool.Exec(t.Context(), "update audit_entries set actor = 'usr_x' where seal = 1; update audit_entries set seal = null, hash = null"); err != nil {
		t.Fatal(err)
	}
	if err := audit.Seal(t.Context(), pool); err != nil {
		t.Fatal(err)
	}
	if p := walk(t, pool, 1000, kept); p.Found || p.Damage != "" || p.Entries != 5 {
		t.Errorf("made anew: %+v", p)
	}
}

// TestHeadIsLogged: a server's log holds a hash to verify with.
func TestHeadIsLogged(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	write(t, pool, 2)
	head := walk(t, pool, 1000, "").Hash
	out := make(lines, 10)
	ctx, stop := context.WithTimeout(t.Context(), time.Minute)
	defer stop()
	ended := make(chan error)
	go func() { ended <- audit.Run(ctx, pool, slog.New(slog.NewTextHandler(out, nil))) }()
	if line := <-out; !strings.Contains(line, "entries=2 head="+head) {
		t.Error(line)
	}
	stop()
	<-ended
}

type lines chan string

func (l lines) Write(p []byte) (int, error) { l <- string(p); return len(p), nil }

func TestLogIsForAdmins(t *testing.T) {
	t.Parallel()
	pool, user := pgtest.New(t), auth.Caller{Kind: auth.KindUser, ID: "usr_x"}
	if _, err := audit.List(t.Context(), pool, user, audit.Filter{}); err == nil {
		t.Error("a user without rights reads the audit log")
	}
	if _, err := audit.Verify(t.Context(), pool, user, audit.Walk{Limit: 1}); err == nil {
		t.Error("a user without rights verifies it")
	}
}
