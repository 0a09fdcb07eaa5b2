package server

import (
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/remotegpu/remotegpu/control/pgtest"
)

// TestAServerWaitsForItsDatabase: whoever starts both at once need not know which
// is first; a database that will never let us in is told of at once.
func TestAServerWaitsForItsDatabase(t *testing.T) {
	t.Parallel()
	url := pgtest.URL(t)
	cfg, err := pgx.ParseConfig(url)
	if err != nil {
		t.Fatal(err)
	}
	later := filepath.Join(t.TempDir(), "pg")
	start := time.Now()
	time.AfterFunc(1500*time.Millisecond, func() { os.Symlink(cfg.Host, later) })
	s := &Server{cfg: Config{DataDir: t.TempDir(), DatabaseURL: strings.Replace(url, cfg.Host, later, 1)}, log: slog.New(slog.DiscardHandler)}
	if err := s.openDatabase(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.closeDatabase()
	if time.Since(start) < time.Second {
		t.Error("it did not wait")
	}
	s.cfg.DatabaseURL, start = strings.Replace(url, cfg.Database, "none", 1), time.Now()
	if err := s.openDatabase(t.Context()); err == nil || time.Since(start) > databaseWithin/2 {
		t.Errorf("a database that is not there: %v after %v", err, time.Since(start))
	}
}
