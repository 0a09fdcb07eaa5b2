package protocol

import (
	"bytes"
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"

	"github.com/veraison/go-cose"
)

// What binds a signature to its use: what is signed for one purpose is worth
// nothing for another.
var (
	desiredAAD   = []byte("remotegpu desired v1")
	referenceAAD = []byte("remotegpu desired reference v1")
)

// ErrSignature says that no pinned key signed the document.
var ErrSignature = errors.New("no pinned key of the control plane signed this document")

// ErrOtherHost says that the document was signed for another host.
var ErrOtherHost = errors.New("document is for another host")

// KeyID returns the id of a public key in COSE headers: the first 8 bytes of
// its SHA-256.
func KeyID(key ed25519.PublicKey) []byte {
	sum := sha256.Sum256(key)
	return sum[:8]
}

// Sign encodes d and wraps it in a COSE_Sign1 (RFC 9052) by key, EdDSA.
func Sign(d *Desired, key ed25519.PrivateKey) ([]byte, error) { return seal(d, key, desiredAAD) }

func seal(v validator, key ed25519.PrivateKey, aad []byte) ([]byte, error) {
	if err := v.Validate(); err != nil {
		return nil, err
	}
	payload, err := Marshal(v)
	if err != nil {
		return nil, err
	}
	signer, err := cose.NewSigner(cose.AlgorithmEd25519, crypto.Signer(key))
	if err != nil {
		return nil, err
	}
	msg := cose.NewSign1Message()
	msg.Payload = payload
	msg.Headers.Protected[cose.HeaderLabelAlgorithm] = cose.AlgorithmEd25519
	msg.Headers.Protected[cose.HeaderLabelKeyID] = KeyID(key.Public().(ed25519.PublicKey))
	if err := msg.Sign(rand.Reader, aad, signer); err != nil {
		return nil, fmt.Errorf("sign document: %w", err)
	}
	return msg.MarshalCBOR()
}

// Verify returns the document in a COSE_Sign1 that one of the pinned keys
// signed for host. It never looks at the payload before the signature holds.
func Verify(data []byte, host string, pinned []ed25519.PublicKey) (*Desired, error) {
	var d Desired
	if err := open(data, &d, pinned, desiredAAD); err != nil {
		return nil, err
	}
	if d.Host != host {
		return nil, fmt.Errorf("%w: for %s, this is %s", ErrOtherHost, d.Host, host)
	}
	return &d, nil
}

// SignReference encodes r and wraps it like Sign, for its own purpose.
func SignReference(r *Reference, key ed25519.PrivateKey) ([]byte, error) {
	return seal(r, key, referenceAAD)
}

// VerifyReference returns the reference in a COSE_Sign1 that one of the pinned
// keys signed for host.
func VerifyReference(data []byte, host string, pinned []ed25519.PublicKey) (*Reference, error) {
	var r Reference
	if err := open(data, &r, pinned, referenceAAD); err != nil {
		return nil, err
	}
	if r.Host != host {
		return nil, fmt.Errorf("%w: for %s, this is %s", ErrOtherHost, r.Host, host)
	}
	return &r, nil
}

func open(data []byte, v validator, pinned []ed25519.PublicKey, aad []byte) error {
	if len(data) > MaxDocument {
		return fmt.Errorf("signed document of %d bytes is over the limit of %d", len(data), MaxDocument)
	}
	var msg cose.Sign1Message
	if err := msg.UnmarshalCBOR(data); err != nil {
		return fmt.Errorf("not a signed document: %w", err)
	}
	if !signedByAny(&msg, pinned, aad) {
		return ErrSignature
	}
	if err := checkOuter(&msg, data); err != nil {
		return err
	}
	return unmarshal(msg.Payload, v, MaxDocument)
}

// checkOuter refuses what the signature does not cover: unprotected headers, and
// other ways to write the same message. So there is one byte string per signed
// document, and nobody on the way can make two agents hold different ones.
func checkOuter(msg *cose.Sign1Message, data []byte) error {
	if len(msg.Headers.Unprotected) > 0 {
		return errors.New("signed document carries headers that the signature does not cover")
	}
	msg.Headers.RawProtected, msg.Headers.RawUnprotected = nil, nil
	again, err := msg.MarshalCBOR()
	if err != nil {
		return fmt.Errorf("encode signed document again: %w", err)
	}
	if !bytes.Equal(data, again) {
		return errors.New("signed document is not in deterministic encoding")
	}
	return nil
}

func signedByAny(msg *cose.Sign1Message, pinned []ed25519.PublicKey, aad []byte) bool {
	for _, key := range pinned {
		if len(key) != ed25519.PublicKeySize {
			continue // crypto/ed25519 panics on it
		}
		verifier, err := cose.NewVerifier(cose.AlgorithmEd25519, key)
		if err == nil && msg.Verify(aad, verifier) == nil {
			return true
		}
	}
	return false
}
