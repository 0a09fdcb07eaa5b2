//go:build unix

package pg

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"sort"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
)

// Private is a PostgreSQL server of our own: a child process that listens on a
// unix socket in its data folder and nowhere else. It is restarted when it
// dies.
type Private struct {
	dir  string
	bin  string
	cred *syscall.Credential // nil: run as ourselves
	log  *slog.Logger

	mu   sync.Mutex // guards cmd and done
	cmd  *exec.Cmd
	done bool
	dead chan struct{} // closed when the keeper has ended
}

// StartPrivate starts PostgreSQL with its data in dir, which it makes when
// missing. Run as root, the server runs as the user postgres, or nobody.
func StartPrivate(ctx context.Context, dir string, log *slog.Logger) (*Private, error) {
	bin, err := findBinaries()
	if err != nil {
		return nil, err
	}
	dir, err = filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	p := &Private{bin: bin, log: log, dead: make(chan struct{})}
	if p.cred, err = unprivileged(); err != nil {
		return nil, err
	}
	if p.dir = reachable(dir, p.cred); p.dir != dir {
		log.Info("database lives elsewhere: its user cannot reach the data folder", "dir", p.dir, "wanted", dir)
	}
	if err := p.prepare(ctx); err != nil {
		return nil, err
	}
	if err := p.adopt(); err != nil {
		return nil, err
	}
	if err := p.start(); err != nil {
		return nil, err
	}
	go p.keep()
	if err := p.wait(ctx); err != nil {
		p.Close()
		return nil, err
	}
	return p, nil
}

// URL returns the connection string of database "remotegpu".
func (p *Private) URL() string {
	return fmt.Sprintf("host=%s port=5432 user=remotegpu dbname=remotegpu", p.socketDir())
}

// Close stops the server, letting transactions roll back (fast shutdown).
func (p *Private) Close() {
	p.mu.Lock()
	p.done = true
	if p.cmd != nil && p.cmd.Process != nil {
		p.cmd.Process.Signal(syscall.SIGINT)
	}
	p.mu.Unlock()
	<-p.dead
}

// Pid returns the process id of the running server.
func (p *Private) Pid() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.cmd.Process.Pid
}

func (p *Private) dataDir() string { return filepath.Join(p.dir, "data") }

// socketDir is the data folder, unless its path is too long for a socket's
// address (108 bytes).
func (p *Private) socketDir() string {
	if len(p.dir) < 80 {
		return p.dir
	}
	return short(os.TempDir(), p.dir)
}

func short(parent, dir string) string {
	sum := sha256.Sum256([]byte(dir))
	return filepath.Join(parent, fmt.Sprintf("remotegpu-%x", sum[:6]))
}

// reachable returns dir, or a folder below /var/lib in its stead when the
// unprivileged user cannot get through to dir, as in root's home.
func reachable(dir string, cred *syscall.Credential) string {
	if cred == nil {
		return dir
	}
	for parent := filepath.Dir(dir); ; parent = filepath.Dir(parent) {
		st, err := os.Stat(parent)
		if err == nil && st.Mode().Perm()&0o001 == 0 {
			return short("/var/lib", dir)
		}
		if parent == "/" {
			return dir
		}
	}
}

func (p *Private) prepare(ctx context.Context) error {
	for _, dir := range []string{p.dir, p.socketDir()} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return fmt.Errorf("make database folder: %w", err)
		}
		if p.cred == nil {
			continue
		}
		if err := os.Chown(dir, int(p.cred.Uid), int(p.cred.Gid)); err != nil {
			return fmt.Errorf("hand database folder over: %w", err)
		}
	}
	if _, err := os.Stat(filepath.Join(p.dataDir(), "PG_VERSION")); err == nil {
		return nil
	}
	cmd := p.command(ctx, "initdb", "-D", p.dataDir(), "-U", "remotegpu", "-E", "UTF8", "--locale=C.UTF-8",
		"--auth-local=trust", "--auth-host=reject", "--data-checksums")
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("initdb in %s: %w: %s", p.dir, err, bytes.TrimSpace(out))
	}
	return nil
}

// adopt ends a server that an earlier, killed control plane left behind, by the
// process id in its lock file.
func (p *Private) adopt() error {
	b, err := os.ReadFile(filepath.Join(p.dataDir(), "postmaster.pid"))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	} else if err != nil {
		return fmt.Errorf("read database lock: %w", err)
	}
	line, _, _ := bytes.Cut(b, []byte("\n"))
	pid, err := strconv.Atoi(string(bytes.TrimSpace(line)))
	if err != nil || pid <= 1 {
		return nil // PostgreSQL itself judges a broken lock file
	}
	if !p.servedBy(pid) {
		return nil // the pid is somebody else's by now
	}
	p.log.Info("stopping the database left by an earlier server", "pid", pid)
	_ = syscall.Kill(pid, syscall.SIGINT)
	for range 300 {
		if !p.servedBy(pid) {
			return nil
		}
		time.Sleep(100 * time.Millisecond)
	}
	return fmt.Errorf("the database in %s (pid %d) does not stop; end it by hand and start again", p.dir, pid)
}

// servedBy says whether process pid runs in the data folder. A zombie, which
// stays where nobody reaps, runs nowhere.
func (p *Private) servedBy(pid int) bool {
	cwd, err := os.Readlink(fmt.Sprintf("/proc/%d/cwd", pid))
	return err == nil && cwd == p.dataDir()
}

func (p *Private) start() error {
	cmd := p.command(context.Background(), "postgres", "-D", p.dataDir(),
		"-c", "listen_addresses=", "-c", "unix_socket_directories="+p.socketDir(), "-c", "port=5432",
		"-c", "max_connections=200", "-c", "shared_buffers=256MB", "-c", "logging_collector=off")
	logFile, err := os.OpenFile(filepath.Join(p.dir, "postgres.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("open database log: %w", err)
	}
	defer logFile.Close()
	cmd.Stdout, cmd.Stderr = logFile, logFile
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.done {
		return errClosed
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start PostgreSQL: %w", err)
	}
	p.cmd = cmd
	return nil
}

// errClosed says that Close came before the server was started again.
var errClosed = errors.New("the database has been closed")

// keep restarts the server until Close.
func (p *Private) keep() {
	defer close(p.dead)
	for {
		err := p.cmd.Wait()
		p.mu.Lock()
		done := p.done
		p.mu.Unlock()
		if done {
			return
		}
		p.log.Error("database ended, starting it again", "err", err)
		for {
			time.Sleep(500 * time.Millisecond)
			if err = p.start(); err == nil {
				break
			}
			if errors.Is(err, errClosed) {
				return
			}
			p.log.Error("start database", "err", err)
		}
	}
}

// wait makes the database when it is missing, once the server answers.
func (p *Private) wait(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 60*time.Second)
	defer cancel()
	admin := fmt.Sprintf("host=%s port=5432 user=remotegpu dbname=postgres", p.socketDir())
	for {
		conn, err := pgx.Connect(ctx, admin)
		if err == nil {
			defer conn.Close(ctx)
			_, err = conn.Exec(ctx, "create database remotegpu")
			if err != nil && Code(err) != "42P04" { // duplicate_database
				return fmt.Errorf("create database: %w", err)
			}
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("PostgreSQL does not answer; see %s: %w", filepath.Join(p.dir, "postgres.log"), err)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

func (p *Private) command(ctx context.Context, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, filepath.Join(p.bin, name), args...)
	cmd.Dir = p.dir
	cmd.Env = []string{"PATH=/usr/bin:/bin", "LC_ALL=C.UTF-8", "HOME=" + p.dir}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: p.cred, Setpgid: true}
	return cmd
}

// findBinaries returns the newest folder with PostgreSQL's server programs.
func findBinaries() (string, error) {
	var found []string
	for _, pattern := range []string{"/usr/lib/postgresql/*/bin", "/usr/pgsql-*/bin", "/usr/bin", "/usr/local/bin"} {
		dirs, _ := filepath.Glob(pattern)
		sort.Sort(sort.Reverse(sort.StringSlice(dirs)))
		found = append(found, dirs...)
	}
	for _, dir := range found {
		if _, err := os.Stat(filepath.Join(dir, "postgres")); err == nil {
			return dir, nil
		}
	}
	return "", errors.New("PostgreSQL's server programs are not here: install them (apt-get install postgresql) or give --database-url")
}

// unprivileged returns whom to run as: PostgreSQL refuses to be root.
func unprivileged() (*syscall.Credential, error) {
	if os.Geteuid() != 0 {
		return nil, nil
	}
	for _, name := range []string{"postgres", "nobody"} {
		u, err := user.Lookup(name)
		if err != nil {
			continue
		}
		uid, _ := strconv.ParseUint(u.Uid, 10, 32)
		gid, _ := strconv.ParseUint(u.Gid, 10, 32)
		return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}, nil
	}
	return nil, errors.New("no user postgres or nobody to run PostgreSQL as: it refuses to run as root")
}
