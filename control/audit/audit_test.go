package audit_test

import (
	"testing"

	"github.com/remotegpu/remotegpu/control/audit"
	"github.com/remotegpu/remotegpu/control/auth"
	"github.com/remotegpu/remotegpu/control/pgtest"
)

func TestMain(m *testing.M) { pgtest.Main(m) }

func TestChainShowsEveryChange(t *testing.T) {
	t.Parallel()
	tests := []struct{ name, sql string }{
		{"nothing", "select 1"},
		{"detail changed", `update audit_entries set detail = '{"n": 7}' where seal = 2`},
		{"actor changed", "update audit_entries set actor = 'usr_x' where seal = 2"},
		{"removed", "delete from audit_entries where seal = 2"},
		{"slipped in", "insert into audit_entries (actor, action, seal, hash) values ('a', 'b', 99, 'x')"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			ctx, pool := t.Context(), pgtest.New(t)
			for i := range 4 {
				err := audit.Record(ctx, pool, auth.System("test"), auth.HostManage, "host_x", "", map[string]any{"n": i, "text": "ä<>&\n"})
				if err != nil {
					t.Fatal(err)
				}
				if err := audit.Seal(ctx, pool); err != nil {
					t.Fatal(err)
				}
			}
			if _, err := pool.Exec(ctx, tt.sql); err != nil {
				t.Fatal(err)
			}
			broken, err := audit.Verify(ctx, pool)
			if err != nil {
				t.Fatal(err)
			}
			if (broken != 0) != (tt.name != "nothing") {
				t.Errorf("Verify found entry %d", broken)
			}
		})
	}
}

func TestListNeedsAdmin(t *testing.T) {
	t.Parallel()
	_, err := audit.List(t.Context(), pgtest.New(t), auth.Caller{Kind: auth.KindUser, ID: "usr_x"}, audit.Filter{})
	if err == nil {
		t.Error("a user without rights reads the audit log")
	}
}
