package server

import (
	"encoding/json"
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/remotegpu/remotegpu/control/pgtest"
	"github.com/remotegpu/remotegpu/control/workspace"
)

// TestFirstStartFails: wherever it ends, the next start makes what is missing,
// and what the file says is right.
func TestFirstStartFails(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		before, after func(t *testing.T, f *firstStart)
	}{
		"no room for the file": {
			func(t *testing.T, f *firstStart) { f.must(os.MkdirAll(filepath.Join(f.file, "x"), 0o700)) },
			func(t *testing.T, f *firstStart) { f.must(os.RemoveAll(f.file)) },
		},
		"between the admin and the workspaces": {
			func(t *testing.T, f *firstStart) {
				f.exec("alter table workspaces add constraint fails check (name <> 'default')")
			},
			func(t *testing.T, f *firstStart) { f.exec("alter table workspaces drop constraint fails") },
		},
		"between the file and the commit": {
			func(t *testing.T, f *firstStart) {
				f.exec("create function fails() returns trigger language plpgsql as $$ begin raise 'fails'; end $$")
				f.exec("create constraint trigger fails after insert on users deferrable initially deferred for each row execute function fails()")
			},
			func(t *testing.T, f *firstStart) { f.exec("drop trigger fails on users") },
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := &firstStart{t: t, cfg: Config{DataDir: t.TempDir(), DatabaseURL: pgtest.URL(t), Version: "test"}}
			f.file = filepath.Join(f.cfg.DataDir, "first-login.json")
			c.before(t, f)
			if s, err := New(t.Context(), f.cfg, slog.New(slog.DiscardHandler)); err == nil {
				s.closeDatabase()
				t.Fatal("the first start does not fail: the test tries nothing")
			}
			c.after(t, f)
			f.start()
			f.start() // and another one changes nothing
		})
	}
}

type firstStart struct {
	t    *testing.T
	cfg  Config
	file string
}

func (f *firstStart) must(err error) {
	f.t.Helper()
	if err != nil {
		f.t.Fatal(err)
	}
}

func (f *firstStart) exec(sql string) {
	f.t.Helper()
	conn, err := pgx.Connect(f.t.Context(), f.cfg.DatabaseURL)
	f.must(err)
	defer conn.Close(f.t.Context())
	_, err = conn.Exec(f.t.Context(), sql)
	f.must(err)
}

// start starts a server, logs in and looks whether all is there.
func (f *firstStart) start() {
	f.t.Helper()
	s, err := New(f.t.Context(), f.cfg, slog.New(slog.DiscardHandler))
	f.must(err)
	defer s.closeDatabase()
	b, err := os.ReadFile(f.file)
	f.must(err)
	info, err := os.Stat(f.file)
	f.must(err)
	if info.Mode().Perm() != 0o600 {
		f.t.Errorf("others may read it: %v", info.Mode())
	}
	var first loginFile
	f.must(json.Unmarshal(b, &first))
	u, err := s.Accounts.CheckPassword(f.t.Context(), "192.0.2.1", first.Email, first.Password)
	f.must(err)
	c, err := s.Accounts.ByUser(f.t.Context(), u)
	f.must(err)
	if !c.Admin || len(c.Roles) != 2 {
		f.t.Errorf("%+v", c)
	}
	for _, name := range []string{workspace.Library, "default"} {
		_, err := s.Workspaces.Find(f.t.Context(), c, name)
		f.must(err)
	}
	left, err := filepath.Glob(f.file + "?*")
	if err != nil || len(left) > 0 {
		f.t.Errorf("left over: %v %v", left, err)
	}
}
