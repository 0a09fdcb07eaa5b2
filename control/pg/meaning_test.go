package pg_test

import (
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/remotegpu/remotegpu/control/errs"
	"github.com/remotegpu/remotegpu/control/pg"
	"github.com/remotegpu/remotegpu/control/pgtest"
)

// TestMeaning: what PostgreSQL itself says has a meaning for a person where it
// is no fault of ours.
func TestMeaning(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	raised := func(code string) error {
		_, err := pool.Exec(t.Context(), "do $$ begin raise exception 'as it happens' using errcode = '"+code+"'; end $$")
		return fmt.Errorf("do something: %w", err)
	}
	sql := func(text string, args ...any) error {
		_, err := pool.Exec(t.Context(), text, args...)
		return err
	}
	connecting := func(change func(*pgx.ConnConfig)) error {
		cfg := pool.Config().ConnConfig
		change(cfg)
		_, err := pgx.ConnectConfig(t.Context(), cfg)
		return err
	}
	for _, tt := range []struct {
		name string
		err  error
		kind errs.Kind
		says string
	}{
		{"its disk is full", raised("53100"), errs.Unavailable, "no room left"},
		{"too many connections", raised("53300"), errs.Unavailable, "does not answer"},
		{"out of memory", raised("53200"), errs.Unavailable, "does not answer"},
		{"it is stopping", sql("select pg_terminate_backend(pg_backend_pid())"), errs.Unavailable, "does not answer"},
		{"it dies", fmt.Errorf("place environments: %w", io.ErrUnexpectedEOF), errs.Unavailable, "look whether it was done"},
		{"it dies, as the network says", fmt.Errorf("write: %w", &net.OpError{Op: "read", Err: errors.New("reset")}), errs.Unavailable, "look whether it was done"},
		{"nobody listens", connecting(func(c *pgx.ConnConfig) { c.Host = t.TempDir() }), errs.Unavailable, "does not answer"},
		{"there is no such database", connecting(func(c *pgx.ConnConfig) { c.Database = "none" }), errs.Internal, "Internal error"},
		{"it does not know us", connecting(func(c *pgx.ConnConfig) { c.User = "nobody-of-the-kind" }), errs.Internal, "Internal error"},
		{"a zero byte", sql("select $1::text", "a\x00b"), errs.Invalid, "zero byte"},
		{"a fault of ours", sql("select no_such_column"), errs.Internal, "Internal error"},
		{"what has a meaning", errs.E(errs.Conflict, "Not now.", raised("53100")), errs.Conflict, "Not now."},
		{"what is no error of a database", errors.New("other"), errs.Internal, "Internal error"},
	} {
		if tt.err == nil {
			t.Fatalf("%s: there is no error", tt.name)
		}
		got := pg.Meaning(tt.err)
		if errs.KindOf(got) != tt.kind || !strings.Contains(errs.Text(got), tt.says) {
			t.Errorf("%s: %d %q, want %d %q", tt.name, errs.KindOf(got), errs.Text(got), tt.kind, tt.says)
		}
		if !errors.Is(got, tt.err) {
			t.Errorf("%s: the cause is lost: %v", tt.name, got)
		}
	}
	if pg.Meaning(nil) != nil {
		t.Error("nil has a meaning")
	}
}
