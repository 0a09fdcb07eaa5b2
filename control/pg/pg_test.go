package pg_test

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/remotegpu/remotegpu/control/pg"
	"github.com/remotegpu/remotegpu/control/pgtest"
)

func TestMain(m *testing.M) { pgtest.Main(m) }

func TestListenGetsWhatCommits(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	got := make(chan string, 10)
	go pg.Listen(t.Context(), pool, "news", func(p string) { got <- p })
	if p := <-got; p != "" {
		t.Fatalf("first call has payload %q, want the empty one that says: look yourself", p)
	}
	rollback := pg.InTx(t.Context(), pool, func(tx pg.Tx) error {
		if err := pg.Notify(t.Context(), tx, "news", "undone"); err != nil {
			t.Error(err)
		}
		return context.Canceled
	})
	if rollback != context.Canceled {
		t.Fatalf("InTx returned %v, want the error of its function", rollback)
	}
	if err := pg.Notify(t.Context(), pool, "news", "done"); err != nil {
		t.Fatal(err)
	}
	if p := <-got; p != "done" {
		t.Errorf("heard %q, want only what was committed", p)
	}
}

// TestListenManyHandsOverTogether: what comes while work is done waits for the
// next turn, each payload once.
func TestListenManyHandsOverTogether(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	turns, goOn := make(chan []string), make(chan struct{})
	go pg.ListenMany(t.Context(), pool, "news", func(p []string) { turns <- p; <-goOn })
	if first := <-turns; first != nil {
		t.Errorf("at first %q", first)
	}
	for _, p := range []string{"b", "a", "b", "c", "a"} {
		if err := pg.Notify(t.Context(), pool, "news", p); err != nil {
			t.Fatal(err)
		}
	}
	time.Sleep(time.Second) // until they are there
	goOn <- struct{}{}
	if second := <-turns; !slices.Equal(second, []string{"a", "b", "c"}) {
		t.Errorf("then %q", second)
	}
	close(goOn)
}

func TestListenComesBack(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	got := make(chan string, 10)
	go pg.Listen(t.Context(), pool, "news", func(p string) { got <- p })
	<-got
	_, err := pool.Exec(t.Context(), `select pg_terminate_backend(pid) from pg_stat_activity
		where datname = current_database() and query like 'listen%'`)
	if err != nil {
		t.Fatal(err)
	}
	select {
	case p := <-got:
		if p != "" {
			t.Errorf("after the cut heard %q, want the empty payload", p)
		}
	case <-time.After(60 * time.Second):
		t.Error("heard nothing within a minute of the cut")
	}
}

func TestMigrateTwiceChangesNothing(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	if err := pg.Migrate(t.Context(), pool); err != nil {
		t.Error(err)
	}
}

// TestNewerSchema: a server that is older than its database touches nothing, and
// says what to do.
func TestNewerSchema(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	if _, err := pool.Exec(t.Context(), "update schema_version set version = version + 1"); err != nil {
		t.Fatal(err)
	}
	err := pg.Migrate(t.Context(), pool)
	if err == nil || !strings.Contains(err.Error(), "a newer server has used it. Start that one again") {
		t.Errorf("%v", err)
	}
	var tables int
	if err := pool.QueryRow(t.Context(), "select count(*) from users").Scan(&tables); err != nil {
		t.Errorf("the data is not what it was: %v", err)
	}
}

func TestPrivateComesBackAfterKill(t *testing.T) {
	t.Parallel()
	dir, err := os.MkdirTemp("", "rgpg")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	log := slog.New(slog.DiscardHandler)
	first, err := pg.StartPrivate(t.Context(), dir, log)
	if err != nil {
		t.Fatal(err)
	}
	pool, err := pg.Open(t.Context(), first.URL())
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	if err := syscall.Kill(first.Pid(), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	deadline := time.Now().Add(60 * time.Second)
	for {
		_, err := pool.Exec(t.Context(), "select 1")
		if err == nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("database is not back 30 s after kill -9: %v", err)
		}
		time.Sleep(100 * time.Millisecond)
	}
	first.Close()
	second, err := pg.StartPrivate(t.Context(), dir, log)
	if err != nil {
		t.Fatalf("start again: %v", err)
	}
	second.Close()
}

// TestPrivateAfterOneThatNobodyReaps: in a container whose first process is no
// init, a database that an earlier server left stays as a zombie once it ends.
func TestPrivateAfterOneThatNobodyReaps(t *testing.T) {
	t.Parallel()
	dir, err := os.MkdirTemp("", "rgpg")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	log := slog.New(slog.DiscardHandler)
	first, err := pg.StartPrivate(t.Context(), dir, log)
	if err != nil {
		t.Fatal(err)
	}
	left := same(t, first.Pid())
	first.Close()
	if err := left.Start(); err != nil {
		t.Fatal(err)
	}
	defer left.Wait()
	pool, err := pg.Open(t.Context(), first.URL())
	for deadline := time.Now().Add(60 * time.Second); err != nil; pool, err = pg.Open(t.Context(), first.URL()) {
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
		time.Sleep(100 * time.Millisecond)
	}
	pool.Close()
	second, err := pg.StartPrivate(t.Context(), dir, log)
	if err != nil {
		t.Fatal(err)
	}
	second.Close()
}

// same returns a command that runs what process pid runs, as the same user.
func same(t *testing.T, pid int) *exec.Cmd {
	t.Helper()
	proc := fmt.Sprintf("/proc/%d", pid)
	line, err := os.ReadFile(proc + "/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	st, err := os.Stat(proc)
	if err != nil {
		t.Fatal(err)
	}
	args := strings.Split(strings.TrimSuffix(string(line), "\x00"), "\x00")
	cmd := exec.Command(args[0], args[1:]...)
	owner := st.Sys().(*syscall.Stat_t)
	if os.Geteuid() == 0 {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: owner.Uid, Gid: owner.Gid}}
	}
	return cmd
}

// TestPrivateCloseWhileItComesBack: a server that has just died is not started
// again after Close, and Close does not wait for it.
func TestPrivateCloseWhileItComesBack(t *testing.T) {
	t.Parallel()
	dir, err := os.MkdirTemp("", "rgpg")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	p, err := pg.StartPrivate(t.Context(), dir, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(p.Pid(), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	time.Sleep(100 * time.Millisecond) // its end has been noticed; 500 ms later it would be started
	closed := make(chan struct{})
	go func() {
		p.Close()
		close(closed)
	}()
	select {
	case <-closed:
	case <-time.After(20 * time.Second):
		t.Fatal("Close hangs")
	}
}
