// Package keys keeps the private keys of the control plane.
//
// It owns the table secret_keys; each key has a name and is made at its first
// use, so that all replicas have the same ones. Private keys never leave the
// server's memory and the database.
package keys

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"fmt"

	"github.com/remotegpu/remotegpu/control/pg"
)

// Names of keys.
const (
	Desired = "desired"  // signs desired documents
	SSHHost = "ssh-host" // the gateway's host key
	SSHCA   = "ssh-ca"   // signs SSH host keys of gateway and hosts
	CA      = "ca"       // the server's own certificate authority: key and certificate, PEM
	MQTT    = "mqtt-ca"  // signs what hosts show to an external broker: key and certificate, PEM
	Tokens  = "tokens"   // signs short-lived tokens of the registry
)

// Material returns the bytes kept under name; make makes them when there are
// none yet.
func Material(ctx context.Context, db pg.DB, name string, make func() ([]byte, error)) ([]byte, error) {
	const read = "select material from secret_keys where name = $1"
	var b []byte
	err := db.QueryRow(ctx, read, name).Scan(&b)
	if err == nil {
		return b, nil
	}
	if !pg.IsNone(err) {
		return nil, fmt.Errorf("read key %s: %w", name, err)
	}
	fresh, err := make()
	if err != nil {
		return nil, fmt.Errorf("make key %s: %w", name, err)
	}
	// Two servers may get here at once: the first one's key counts for both.
	if _, err := db.Exec(ctx, "insert into secret_keys (name, material) values ($1, $2) on conflict do nothing", name, fresh); err != nil {
		return nil, fmt.Errorf("keep key %s: %w", name, err)
	}
	if err := db.QueryRow(ctx, read, name).Scan(&b); err != nil {
		return nil, fmt.Errorf("read key %s: %w", name, err)
	}
	return b, nil
}

// Ed25519 returns the private key kept under name.
func Ed25519(ctx context.Context, db pg.DB, name string) (ed25519.PrivateKey, error) {
	seed, err := Material(ctx, db, name, func() ([]byte, error) {
		_, key, err := ed25519.GenerateKey(rand.Reader)
		return key.Seed(), err
	})
	if err != nil {
		return nil, err
	}
	if len(seed) != ed25519.SeedSize {
		return nil, fmt.Errorf("key %s has %d bytes, not %d", name, len(seed), ed25519.SeedSize)
	}
	return ed25519.NewKeyFromSeed(seed), nil
}
