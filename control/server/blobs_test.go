package server

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rclone/gofakes3"
	"github.com/rclone/gofakes3/s3mem"
	"gocloud.dev/blob"

	"github.com/remotegpu/remotegpu/control/auth"
	"github.com/remotegpu/remotegpu/control/pg"
	"github.com/remotegpu/remotegpu/control/pgtest"
	"github.com/remotegpu/remotegpu/control/recording"
)

// newS3 starts a server that speaks S3, checks signatures and has one bucket.
func newS3(t *testing.T) (endpoint string) {
	t.Helper()
	backend := s3mem.New()
	if err := backend.CreateBucket(t.Context(), "recordings"); err != nil {
		t.Fatal(err)
	}
	fake := gofakes3.New(backend, gofakes3.WithV4Auth(map[string]string{"key": "the secret"}))
	s := httptest.NewServer(fake.Server())
	t.Cleanup(s.Close)
	return s.URL
}

func s3Config(bucket, endpoint string) *Config {
	return &Config{BlobURL: "s3://" + bucket + "?endpoint=" + url.QueryEscape(endpoint)}
}

// setKey gives the server's key as its environment does.
func setKey(t *testing.T, secret string) {
	t.Helper()
	t.Setenv("AWS_ACCESS_KEY_ID", "key")
	t.Setenv("AWS_SECRET_ACCESS_KEY", secret)
	t.Setenv("AWS_EC2_METADATA_DISABLED", "true")
}

// TestRecordingsInS3: one is made, played and, after its time, deleted.
func TestRecordingsInS3(t *testing.T) {
	setKey(t, "the secret")
	bucket, err := s3Config("recordings", newS3(t)).openBlobs(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer bucket.Close()
	s, pool := recordIn(t, bucket)
	c := auth.Caller{Kind: auth.KindUser, ID: "usr_a", Name: "a@example.org", Roles: map[string]auth.Role{"ws_a": auth.Admin}}
	r, err := s.Begin(t.Context(), c, recording.Subject{ID: "env_a", Name: "box", Workspace: "ws_a"}, recording.Session{Via: recording.ViaSSH, Term: "xterm"})
	if err != nil || r == nil {
		t.Fatal(r, err)
	}
	want := strings.Repeat("shown on the terminal ", 60_000) // more than a part
	for part := want; part != ""; part = part[min(len(part), 10_000):] {
		if err := r.Output([]byte(part[:min(len(part), 10_000)])); err != nil {
			t.Fatal(err)
		}
	}
	r.Close()
	all, err := s.List(t.Context(), c, "lab", "")
	if err != nil || len(all) != 1 || all[0].EndedAt == nil {
		t.Fatal(all, err)
	}
	_, file, err := s.Open(t.Context(), c, "lab", all[0].ID)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	cast, err := io.ReadAll(file)
	if shown := strings.Count(string(cast), "shown"); err != nil || shown < 59_000 || int64(len(cast)) != all[0].Bytes {
		t.Errorf("%d times, %d bytes of %d, %v", shown, len(cast), all[0].Bytes, err)
	}
	if keys := keysOf(t, bucket); len(keys) != 1 || !strings.HasSuffix(keys[0], ".cast") {
		t.Errorf("the bucket has %q", keys)
	}
	if _, err := pool.Exec(t.Context(), "update recordings set expires_at = now() - interval '1 second'"); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	for deadline := time.Now().Add(20 * time.Second); len(keysOf(t, bucket)) > 0 && time.Now().Before(deadline); {
		time.Sleep(20 * time.Millisecond)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if keys := keysOf(t, bucket); len(keys) != 0 {
		t.Errorf("after its time the bucket has %q", keys)
	}
}

func recordIn(t *testing.T, bucket *blob.Bucket) (*recording.Service, *pg.Pool) {
	t.Helper()
	pool := pgtest.New(t)
	for _, sql := range []string{
		"insert into workspaces (id, name) values ('ws_a', 'lab')",
		"insert into recording_policies (workspace_id, mode, keep_days) values ('ws_a', 'all', 1)",
	} {
		if _, err := pool.Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
	}
	resolve := func(context.Context, string) (string, error) { return "ws_a", nil }
	return recording.New(pool, recording.Config{Bucket: bucket, Resolve: resolve}, slog.New(slog.DiscardHandler)), pool
}

func keysOf(t *testing.T, bucket *blob.Bucket) (keys []string) {
	t.Helper()
	for files := bucket.List(nil); ; {
		f, err := files.Next(t.Context())
		if errors.Is(err, io.EOF) {
			return keys
		} else if err != nil {
			t.Fatal(err)
		}
		keys = append(keys, f.Key)
	}
}

// TestBlobStoresThatAreNoGood: the server does not begin, and says why, without
// the key.
func TestBlobStoresThatAreNoGood(t *testing.T) {
	endpoint := newS3(t)
	for name, c := range map[string]struct {
		cfg    *Config
		secret string
		says   string
	}{
		"another secret": {s3Config("recordings", endpoint), "another", "refuses this server"},
		"no bucket":      {s3Config("elsewhere", endpoint), "the secret", "is not there"},
		"no address":     {&Config{BlobURL: "recordings"}, "the secret", "no address of a blob store"},
		"no such store":  {&Config{BlobURL: "ftp://x"}, "the secret", "ftp"},
	} {
		t.Run(name, func(t *testing.T) {
			setKey(t, c.secret)
			b, err := c.cfg.openBlobs(t.Context())
			if err == nil {
				b.Close()
			}
			if err == nil || !strings.Contains(err.Error(), c.says) || strings.Contains(err.Error(), c.secret) {
				t.Errorf("%v, want %q", err, c.says)
			}
		})
	}
}

// TestBlobsStayInTheirFolder: nothing of a blob is written elsewhere first, for
// from there it may not be possible to move it.
func TestBlobsStayInTheirFolder(t *testing.T) {
	data := t.TempDir()
	given := filepath.Join(data, "given")
	if err := os.Mkdir(given, 0o700); err != nil {
		t.Fatal(err)
	}
	t.Setenv("TMPDIR", "/nonexistent")
	for address, dir := range map[string]string{"": filepath.Join(data, "blobs"), "file://" + given: given, "file://" + given + "?metadata=skip": given} {
		b, err := (&Config{DataDir: data, BlobURL: address}).openBlobs(t.Context())
		if err != nil {
			t.Fatalf("%q: %v", address, err)
		}
		if err := b.WriteAll(t.Context(), "a/b", []byte("x"), nil); err != nil {
			t.Errorf("%q: %v", address, err)
		}
		if files, err := os.ReadDir(dir + "/a"); err != nil || len(files) != 1 {
			t.Errorf("%q: %v %v", address, files, err)
		}
		b.Close()
		os.RemoveAll(dir + "/a")
	}
}

// TestRoomIn: of a disk, a twentieth is for the database.
func TestRoomIn(t *testing.T) {
	t.Parallel()
	if os.Getuid() != 0 {
		t.Skip("a small file system needs root")
	}
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=100m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = syscall.Unmount(dir, syscall.MNT_DETACH) })
	room := roomIn(dir)
	if err := room(90 << 20); err != nil {
		t.Error(err)
	}
	if err := room(96 << 20); err == nil {
		t.Error("what is for the database is given away")
	}
	if err := os.WriteFile(filepath.Join(dir, "fill"), make([]byte, 96<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := room(0); err == nil {
		t.Error("a full disk has room")
	}
}
