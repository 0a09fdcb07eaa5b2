// Package state is what the agent keeps on disk.
//
// It owns the data folder: who this host is (agent.json, host.key), the last
// document it obeys (desired.cose), the generation of that (obeyed.json), and its
// counters and unreported events (state.json). It does not know the network or containers. Its invariants: a
// file is replaced whole or not at all; a file that cannot be read is moved
// aside, never deleted; no document is returned that protocol.Verify did not
// accept for this host, and none older than one returned before, unless all three
// files that know of that are lost together; counters grow over restarts, and
// over the loss of state.json too.
package state

import (
	"crypto/ed25519"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/remotegpu/remotegpu/protocol"
)

// Names in the data folder.
const (
	identityFile = "agent.json"
	keyFile      = "host.key"
	desiredFile  = "desired.cose"
	counterFile  = "state.json"
	floorFile    = "obeyed.json"
	lockFile     = "lock"
)

// ErrBusy says that another process holds the data folder.
var ErrBusy = errors.New("another agent works in this data folder")

// ErrNotEnrolled says that the data folder belongs to no host yet.
var ErrNotEnrolled = errors.New("this host is not enrolled: run `remotegpu-agent enroll` with the token from the console first")

// Identity is who this host is and whom it obeys.
type Identity struct {
	Server     string // https://HOST[:PORT]
	CA         string // PEM; empty: the system's roots
	Host       string // host_…
	Name       string
	PrivateKey ed25519.PrivateKey
	Keys       []ed25519.PublicKey // of the control plane; documents signed by none of them are refused
	Registry   string              // host:port of the built-in registry
}

// Store is an open data folder. Its methods are safe for concurrent use.
type Store struct {
	dir  string
	lock *os.File

	mu       sync.Mutex // guards the fields below and the files
	identity *Identity
	counters counters
	desired  *protocol.Desired
	signed   []byte
	digest   []byte // of desired
	floor    []byte // obeyed.json as it is on disk
	unsaved  bool   // the last write of state.json did not work
}

// Open opens the folder dir, makes it if need be, and takes it for this
// process. What cannot be read is moved aside and tells so by an event; with a
// broken identity the store is as if never enrolled.
func Open(dir string) (*Store, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make data folder: %w", err)
	}
	lock, err := os.OpenFile(filepath.Join(dir, lockFile), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open data folder: %w", err)
	}
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		lock.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, fmt.Errorf("%w: %s", ErrBusy, dir)
		}
		return nil, fmt.Errorf("lock data folder: %w", err)
	}
	s := &Store{dir: dir, lock: lock}
	if err := s.load(); err != nil {
		lock.Close()
		return nil, err
	}
	return s, nil
}

// load reads all files. An error means that the folder itself cannot be used.
func (s *Store) load() error {
	var lost []protocol.Event
	aside := func(name string, cause error) error {
		to, err := moveAside(s.dir, name)
		if err != nil {
			return err
		}
		lost = append(lost, corruptEvent(name, to, cause))
		return nil
	}
	if err := errors.Join(s.loadCounters(aside), s.loadFloor(aside)); err != nil {
		return err
	}
	id, err := ReadIdentity(s.dir)
	switch {
	case err == nil:
		s.identity = id
		s.counters.bind(id.Host)
		if err := s.loadDesired(aside); err != nil {
			return err
		}
	case errors.Is(err, ErrNotEnrolled):
	case errors.Is(err, errUnreadable):
		return err
	default:
		if err := aside(identityFile, err); err != nil {
			return err
		}
	}
	for _, e := range lost {
		s.append(e)
	}
	return nil
}

func corruptEvent(name, to string, cause error) protocol.Event {
	next := "the agent goes on and takes what it needs from the control plane"
	if name == identityFile {
		next = "enrol this host again; its containers run on meanwhile"
	}
	return protocol.Event{
		At: time.Now().UnixMilli(), Severity: protocol.SeverityWarning, Reason: "StateCorrupt",
		Message: fmt.Sprintf("The file %s was damaged (%v). It is kept as %s; %s.", name, cause, filepath.Base(to), next),
	}
}

// Close gives the folder back.
func (s *Store) Close() error { return s.lock.Close() }

// Dir returns the folder.
func (s *Store) Dir() string { return s.dir }

// Identity returns who this host is, nil if it is not enrolled.
func (s *Store) Identity() *Identity {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.identity
}
