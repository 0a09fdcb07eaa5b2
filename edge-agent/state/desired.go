package state

import (
	"bytes"
	"errors"
	"fmt"

	"github.com/remotegpu/remotegpu/protocol"
)

// Kinds of refusal.
const (
	RefusedSize     = "size"     // larger than any document may be
	RefusedForged   = "forged"   // signed by none of the pinned keys
	RefusedHost     = "host"     // signed for another host
	RefusedOlder    = "older"    // a generation before the one that is obeyed
	RefusedConflict = "conflict" // the obeyed generation with other content
	RefusedGarbage  = "garbage"  // no signed document, or one that cannot be understood
)

// Refusal is a document that is not obeyed.
type Refusal struct {
	Kind string
	Err  error
}

func (r *Refusal) Error() string { return r.Err.Error() }

// Unwrap returns the reason.
func (r *Refusal) Unwrap() error { return r.Err }

// AcceptDesired verifies a signed document, stores it and returns it. A
// document that must not be obeyed gives a *Refusal; any other error means
// that it could not be stored, and the one before stays in force. Fresh is
// false if it is the document that is obeyed already.
func (s *Store) AcceptDesired(signed []byte) (d *protocol.Desired, fresh bool, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.identity == nil {
		return nil, false, ErrNotEnrolled
	}
	d, digest, err := s.verify(signed)
	if err != nil {
		return nil, false, err
	}
	if s.desired != nil && s.desired.Generation == d.Generation {
		return s.desired, false, nil
	}
	if err := replace(s.dir, desiredFile, signed); err != nil {
		return nil, false, err
	}
	s.obey(d, signed, digest)
	s.save()
	return d, true, nil
}

// CheckReference verifies a signed reference and returns it. One that must not be
// followed gives a *Refusal. Fresh is false if what it refers to is obeyed already.
func (s *Store) CheckReference(signed []byte) (ref *protocol.Reference, fresh bool, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.identity == nil {
		return nil, false, ErrNotEnrolled
	}
	ref, err = protocol.VerifyReference(signed, s.identity.Host, s.identity.Keys)
	if err != nil {
		return nil, false, &Refusal{Kind: refusalKind(signed, err), Err: err}
	}
	c := &s.counters
	switch {
	case ref.Generation < c.Generation:
		return nil, false, &Refusal{RefusedOlder, fmt.Errorf("reference is to generation %d, this host has obeyed %d already", ref.Generation, c.Generation)}
	case ref.Generation == c.Generation && s.desired != nil:
		if ref.Check(s.signed) != nil {
			return nil, false, &Refusal{RefusedConflict, fmt.Errorf("reference is to generation %d as the document before, but to other content", ref.Generation)}
		}
		return ref, false, nil
	}
	return ref, true, nil
}

// Desired returns the document that is obeyed, nil if there is none, and its
// digest. It must not be changed.
func (s *Store) Desired() (*protocol.Desired, []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.desired, s.digest
}

// Obeyed returns the generation and digest of the last document that was obeyed,
// 0 and nil if there was none; Desired may have lost it.
func (s *Store) Obeyed() (generation uint64, digest []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.counters.Generation, s.counters.Digest
}

func (s *Store) obey(d *protocol.Desired, signed, digest []byte) {
	s.desired, s.signed, s.digest = d, bytes.Clone(signed), digest
	s.counters.Generation, s.counters.Digest = d.Generation, digest
}

// verify checks signature, host and generation.
func (s *Store) verify(signed []byte) (*protocol.Desired, []byte, error) {
	d, err := protocol.Verify(signed, s.identity.Host, s.identity.Keys)
	if err != nil {
		return nil, nil, &Refusal{Kind: refusalKind(signed, err), Err: err}
	}
	digest, err := d.Digest()
	if err != nil {
		return nil, nil, fmt.Errorf("digest document: %w", err)
	}
	c := &s.counters
	switch {
	case d.Generation < c.Generation:
		return nil, nil, &Refusal{RefusedOlder, fmt.Errorf("document has generation %d, this host has obeyed %d already", d.Generation, c.Generation)}
	case d.Generation == c.Generation && !bytes.Equal(digest, c.Digest):
		return nil, nil, &Refusal{RefusedConflict, fmt.Errorf("document has generation %d as the one before, but other content", d.Generation)}
	}
	return d, digest, nil
}

func refusalKind(signed []byte, err error) string {
	switch {
	case len(signed) > protocol.MaxDocument:
		return RefusedSize
	case errors.Is(err, protocol.ErrSignature):
		return RefusedForged
	case errors.Is(err, protocol.ErrOtherHost):
		return RefusedHost
	}
	return RefusedGarbage
}

// loadDesired reads the stored document and verifies it anew.
func (s *Store) loadDesired(aside func(name string, cause error) error) error {
	signed, ok, err := read(s.dir, desiredFile)
	if errors.Is(err, errUnreadable) {
		return err
	}
	if !ok && err == nil {
		return nil
	}
	if err != nil {
		return aside(desiredFile, err)
	}
	d, digest, err := s.verify(signed)
	if err != nil {
		return aside(desiredFile, err)
	}
	s.obey(d, signed, digest)
	return nil
}
