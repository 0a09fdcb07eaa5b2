package protocol

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"errors"
	"strings"
	"testing"

	"github.com/fxamacker/cbor/v2"
	"github.com/google/go-cmp/cmp"
	"github.com/veraison/go-cose"
)

var pinned = []ed25519.PublicKey{testKey.Public().(ed25519.PublicKey)}

func mustSign(t *testing.T, d *Desired, key ed25519.PrivateKey) []byte {
	t.Helper()
	data, err := Sign(d, key)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// forge builds a COSE_Sign1 by hand, so that each part can be wrong.
func forge(t *testing.T, signer cose.Signer, aad []byte, change func(*cose.Sign1Message)) []byte {
	t.Helper()
	payload, err := Marshal(fullDesired())
	if err != nil {
		t.Fatal(err)
	}
	msg := cose.NewSign1Message()
	msg.Payload = payload
	msg.Headers.Protected[cose.HeaderLabelAlgorithm] = signer.Algorithm()
	if err := msg.Sign(rand.Reader, aad, signer); err != nil {
		t.Fatal(err)
	}
	if change != nil {
		change(msg)
	}
	data, err := msg.MarshalCBOR()
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func signer(t *testing.T, alg cose.Algorithm, key crypto.Signer) cose.Signer {
	t.Helper()
	s, err := cose.NewSigner(alg, key)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestVerifyAcceptsAnyPinnedKey(t *testing.T) {
	_, old, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	both := []ed25519.PublicKey{old.Public().(ed25519.PublicKey), pinned[0]}
	for _, key := range []ed25519.PrivateKey{old, testKey} {
		got, err := Verify(mustSign(t, fullDesired(), key), testHost, both)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(fullDesired(), got); diff != "" {
			t.Error(diff)
		}
	}
}

func TestVerifyRefusesForgeries(t *testing.T) {
	_, stranger, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	p256, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	ours, theirs := signer(t, cose.AlgorithmEd25519, testKey), signer(t, cose.AlgorithmEd25519, stranger)
	for name, data := range map[string][]byte{
		"another key":          mustSign(t, fullDesired(), stranger),
		"another purpose":      forge(t, ours, []byte("remotegpu job v1"), nil),
		"no purpose":           forge(t, ours, nil, nil),
		"ECDSA":                forge(t, signer(t, cose.AlgorithmES256, p256), desiredAAD, nil),
		"our key id, not ours": forge(t, theirs, desiredAAD, func(m *cose.Sign1Message) { m.Headers.Protected[cose.HeaderLabelKeyID] = KeyID(pinned[0]) }),
		"changed payload":      forge(t, ours, desiredAAD, func(m *cose.Sign1Message) { m.Payload = append(m.Payload[:len(m.Payload)-1:len(m.Payload)-1], 0) }),
		"changed signature":    forge(t, ours, desiredAAD, func(m *cose.Sign1Message) { m.Signature[63] ^= 1 }),
		"short signature":      forge(t, ours, desiredAAD, func(m *cose.Sign1Message) { m.Signature = m.Signature[:63] }),
		"long signature":       forge(t, ours, desiredAAD, func(m *cose.Sign1Message) { m.Signature = append(m.Signature, 0) }),
		"added protected header": forge(t, ours, desiredAAD, func(m *cose.Sign1Message) {
			m.Headers.RawProtected, m.Headers.Protected[cose.HeaderLabelContentType] = nil, "text/plain"
		}),
		"algorithm ES256": forge(t, ours, desiredAAD, func(m *cose.Sign1Message) {
			m.Headers.RawProtected, m.Headers.Protected[cose.HeaderLabelAlgorithm] = nil, cose.AlgorithmES256
		}),
		"algorithm none": forge(t, ours, desiredAAD, func(m *cose.Sign1Message) {
			m.Headers.RawProtected, m.Headers.Protected[cose.HeaderLabelAlgorithm] = nil, cose.Algorithm(0)
		}),
		"algorithm left out": forge(t, ours, desiredAAD, func(m *cose.Sign1Message) {
			m.Headers.RawProtected = nil
			delete(m.Headers.Protected, cose.HeaderLabelAlgorithm)
		}),
	} {
		if d, err := Verify(data, testHost, pinned); !errors.Is(err, ErrSignature) {
			t.Errorf("%s: %v, %v", name, d, err)
		}
	}
}

func TestVerifyRefusesWhatIsNoSignedDocument(t *testing.T) {
	good := mustSign(t, fullDesired(), testKey)
	plain, err := Marshal(fullDesired())
	if err != nil {
		t.Fatal(err)
	}
	for name, data := range map[string][]byte{
		"nothing":         {},
		"null":            {0xf6},
		"text":            []byte("GET / HTTP/1.1\r\n\r\n"),
		"unsigned":        plain,
		"untagged":        good[1:],
		"another tag":     append([]byte{0xd1}, good[1:]...),
		"COSE_Sign":       append([]byte{0xd8, 98}, good[1:]...),
		"two documents":   append(bytes.Clone(good), good...),
		"a trailing byte": append(bytes.Clone(good), 0),
		"10 MB":           append(bytes.Clone(good), make([]byte, 10<<20)...),
		"10 MB of zeros":  make([]byte, 10<<20),
		"10 MB of arrays": bytes.Repeat([]byte{0x81}, 10<<20),
		"deep arrays":     append([]byte{0xd2, 0x84}, bytes.Repeat([]byte{0x81}, 1<<19)...),
	} {
		if d, err := Verify(data, testHost, pinned); err == nil || errors.Is(err, ErrSignature) {
			t.Errorf("%s: %v, %v", name, d, err)
		}
	}
	for n := range good {
		if _, err := Verify(good[:n], testHost, pinned); err == nil {
			t.Errorf("the first %d of %d bytes were accepted", n, len(good))
		}
	}
}

// TestNoBitOfASignedDocumentCanChange flips each one. A few change nothing
// that is signed, as a longer encoding of the same length does; those must be
// refused too.
func TestNoBitOfASignedDocumentCanChange(t *testing.T) {
	good := mustSign(t, &Desired{Version: 1, Host: testHost, Generation: 1}, testKey)
	for i := range good {
		for bit := range 8 {
			bad := bytes.Clone(good)
			bad[i] ^= 1 << bit
			if d, err := Verify(bad, testHost, pinned); err == nil {
				t.Errorf("bit %d of byte %d: accepted %+v", bit, i, d)
			}
		}
	}
}

func TestVerifyRefusesUnsignedHeaders(t *testing.T) {
	data := forge(t, signer(t, cose.AlgorithmEd25519, testKey), desiredAAD, func(m *cose.Sign1Message) {
		m.Headers.Unprotected["padding"] = strings.Repeat("x", 1000)
	})
	if _, err := Verify(data, testHost, pinned); err == nil || !strings.Contains(err.Error(), "does not cover") {
		t.Error(err)
	}
}

func TestVerifyRefusesOtherEncodingsOfTheSame(t *testing.T) {
	good := mustSign(t, fullDesired(), testKey)
	if _, err := Verify(good, testHost, pinned); err != nil {
		t.Fatal(err)
	}
	empty := bytes.IndexByte(good[2:], 0xa0) + 2 // the unprotected headers
	longer := bytes.Clone(good[:empty])
	longer = append(longer, 0xb8, 0) // the same map, its length in two bytes
	longer = append(longer, good[empty+1:]...)
	if _, err := Verify(longer, testHost, pinned); err == nil || !strings.Contains(err.Error(), "deterministic") {
		t.Error(err)
	}
}

func TestVerifyRefusesSignedButUnfitDocuments(t *testing.T) {
	raw := func(doc any) []byte {
		payload, err := Marshal(doc)
		if err != nil {
			t.Fatal(err)
		}
		msg := cose.NewSign1Message()
		msg.Payload = payload
		msg.Headers.Protected[cose.HeaderLabelAlgorithm] = cose.AlgorithmEd25519
		if err := msg.Sign(rand.Reader, desiredAAD, signer(t, cose.AlgorithmEd25519, testKey)); err != nil {
			t.Fatal(err)
		}
		data, err := msg.MarshalCBOR()
		if err != nil {
			t.Fatal(err)
		}
		return data
	}
	other := fullDesired()
	other.Host = "host_9999999999abcdefghjk"
	future := fullDesired()
	future.Version = 2
	for name, c := range map[string]struct {
		data []byte
		want string
	}{
		"another host":      {raw(other), "for " + other.Host},
		"a later version":   {raw(future), "upgrade the agent"},
		"no generation":     {raw(&Desired{Version: 1, Host: testHost}), "no generation"},
		"another document":  {raw(&Ack{Version: 1}), "no valid host"},
		"no map":            {raw("hello"), "decode document"},
		"tags in the text":  {raw(cbor.Tag{Number: 0, Content: "x"}), "decode document"},
		"nothing but a nil": {raw(nil), "version 0"},
	} {
		if _, err := Verify(c.data, testHost, pinned); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
}

func TestVerifyWithoutUsableKeys(t *testing.T) {
	good := mustSign(t, fullDesired(), testKey)
	for name, keys := range map[string][]ed25519.PublicKey{
		"none": nil, "nil": {nil}, "empty": {{}}, "short": {pinned[0][:31]}, "long": {append(bytes.Clone(pinned[0]), 0)},
	} {
		if _, err := Verify(good, testHost, keys); !errors.Is(err, ErrSignature) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := Verify(good, testHost, []ed25519.PublicKey{nil, pinned[0]}); err != nil {
		t.Error("a broken key hides a good one:", err)
	}
}

func TestSignRefusesWhatNoAgentObeys(t *testing.T) {
	if _, err := Sign(&Desired{Version: 1, Generation: 1}, testKey); err == nil {
		t.Error("a document without host was signed")
	}
}

func TestKeyID(t *testing.T) {
	if got := KeyID(pinned[0]); len(got) != 8 || bytes.Equal(got, KeyID(make([]byte, 32))) {
		t.Errorf("%x", got)
	}
}
