package state

import (
	"bytes"
	"crypto/ed25519"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"

	"github.com/remotegpu/remotegpu/protocol"
)

// identityJSON is agent.json. The private key is in a file of its own.
type identityJSON struct {
	Server   string   `json:"server"`
	CA       string   `json:"ca,omitempty"`
	Host     string   `json:"host"`
	Name     string   `json:"name"`
	Keys     [][]byte `json:"keys"`
	Registry string   `json:"registry,omitempty"`
}

// ReadIdentity returns who the host of a data folder is without taking the
// folder, for programs beside the running agent. The error is ErrNotEnrolled
// where nobody enrolled.
func ReadIdentity(dir string) (*Identity, error) {
	raw, ok, err := read(dir, identityFile)
	if err != nil {
		return nil, err
	}
	if !ok {
		return nil, ErrNotEnrolled
	}
	var j identityJSON
	if err := json.Unmarshal(raw, &j); err != nil {
		return nil, fmt.Errorf("decode %s: %w", identityFile, err)
	}
	id := &Identity{Server: j.Server, CA: j.CA, Host: j.Host, Name: j.Name, Registry: j.Registry}
	if id.Keys, err = publicKeys(j.Keys); err != nil {
		return nil, err
	}
	if !protocol.ValidID(protocol.PrefixHost, id.Host) || id.Server == "" {
		return nil, fmt.Errorf("%s names no server or no valid host", identityFile)
	}
	if id.PrivateKey, err = readKey(dir); err != nil {
		return nil, err
	}
	return id, nil
}

// SSHKey returns the key by which SSH clients know this host. It is as lasting
// and as secret as the device key, from which it is derived (HKDF, RFC 5869),
// and says nothing about it.
func (id *Identity) SSHKey() (ed25519.PrivateKey, error) {
	seed, err := hkdf.Key(sha256.New, id.PrivateKey.Seed(), nil, "remotegpu ssh host key 1", ed25519.SeedSize)
	if err != nil {
		return nil, fmt.Errorf("derive the SSH host key: %w", err)
	}
	return ed25519.NewKeyFromSeed(seed), nil
}

func publicKeys(raw [][]byte) ([]ed25519.PublicKey, error) {
	if len(raw) == 0 {
		return nil, errors.New("the control plane's keys are missing")
	}
	keys := make([]ed25519.PublicKey, 0, len(raw))
	for _, k := range raw {
		if len(k) != ed25519.PublicKeySize {
			return nil, fmt.Errorf("a key of the control plane has %d bytes, not %d", len(k), ed25519.PublicKeySize)
		}
		keys = append(keys, k)
	}
	return keys, nil
}

func readKey(dir string) (ed25519.PrivateKey, error) {
	raw, ok, err := read(dir, keyFile)
	if err != nil {
		return nil, err
	}
	if !ok {
		return nil, fmt.Errorf("the private key %s is missing", keyFile)
	}
	block, _ := pem.Decode(raw)
	if block == nil {
		return nil, fmt.Errorf("%s is no PEM file", keyFile)
	}
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("decode %s: %w", keyFile, err)
	}
	private, ok := key.(ed25519.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("%s holds no Ed25519 key", keyFile)
	}
	return private, nil
}

// HostKey returns the private key of this host and makes it on the first call.
// It outlives a failed enrolment, so that a second try is the same host.
func (s *Store) HostKey() (ed25519.PrivateKey, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	key, err := readKey(s.dir)
	if err == nil || errors.Is(err, errUnreadable) {
		return key, err
	}
	if _, ok, _ := read(s.dir, keyFile); ok {
		if _, err := moveAside(s.dir, keyFile); err != nil {
			return nil, err
		}
	}
	_, key, err = ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make host key: %w", err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("encode host key: %w", err)
	}
	return key, replace(s.dir, keyFile, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
}

// SaveIdentity stores who this host is. PrivateKey must be that of HostKey. A
// document of another host is moved aside.
func (s *Store) SaveIdentity(id *Identity) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	key, err := readKey(s.dir)
	if err != nil {
		return err
	}
	if !bytes.Equal(key, id.PrivateKey) {
		return errors.New("identity has another private key than the data folder")
	}
	j := identityJSON{Server: id.Server, CA: id.CA, Host: id.Host, Name: id.Name, Registry: id.Registry}
	for _, k := range id.Keys {
		j.Keys = append(j.Keys, k)
	}
	raw, err := json.MarshalIndent(j, "", "  ")
	if err != nil {
		return fmt.Errorf("encode identity: %w", err)
	}
	if err := replace(s.dir, identityFile, append(raw, '\n')); err != nil {
		return err
	}
	s.identity = id
	s.counters.bind(id.Host)
	s.save()
	if s.desired != nil && s.desired.Host != id.Host {
		s.desired, s.signed, s.digest = nil, nil, nil
		_, err = moveAside(s.dir, desiredFile)
	}
	return err
}
