package keys

import (
	"context"
	"crypto/ed25519"
	"errors"
	"strings"
	"sync"
	"testing"

	"github.com/remotegpu/remotegpu/control/pgtest"
)

func TestMain(m *testing.M) { pgtest.Main(m) }

// TestReplicasShareKeys: of many servers that start at once one makes the key.
func TestReplicasShareKeys(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	made := make([]ed25519.PrivateKey, 8)
	var wg sync.WaitGroup
	for i := range made {
		wg.Go(func() {
			key, err := Ed25519(context.WithoutCancel(t.Context()), pool, Desired)
			if err != nil {
				t.Error(err)
			}
			made[i] = key
		})
	}
	wg.Wait()
	for _, key := range made {
		if !key.Equal(made[0]) {
			t.Fatal("two servers have different keys")
		}
	}
	other, err := Ed25519(t.Context(), pool, SSHHost)
	if err != nil || other.Equal(made[0]) {
		t.Errorf("another name has the same key, %v", err)
	}
}

func TestWhatCannotBeAKey(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	if _, err := Material(t.Context(), pool, "short", func() ([]byte, error) { return []byte("x"), nil }); err != nil {
		t.Fatal(err)
	}
	if _, err := Ed25519(t.Context(), pool, "short"); err == nil || !strings.Contains(err.Error(), "1 bytes") {
		t.Errorf("a key of one byte: %v", err)
	}
	broken := errors.New("no entropy")
	if _, err := Material(t.Context(), pool, "none", func() ([]byte, error) { return nil, broken }); !errors.Is(err, broken) {
		t.Errorf("%v", err)
	}
	pool.Close()
	if _, err := Ed25519(context.Background(), pool, Desired); err == nil {
		t.Error("a key without a database")
	}
}
