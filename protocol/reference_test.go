package protocol

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"fmt"
	"strings"
	"testing"
)

// largeDesired is a document that goes by reference.
func largeDesired(workloads int) *Desired {
	d := &Desired{Version: 1, Host: testHost, Generation: 43}
	for i := range workloads {
		d.Workloads = append(d.Workloads, Workload{ID: fmt.Sprintf("env_%04d", i), Name: "big", Want: WantRunning, Image: "busybox", Restart: RestartAlways,
			Env: map[string]string{"TEXT": strings.Repeat("x", 16<<10)}})
	}
	return d
}

func TestLargeDocuments(t *testing.T) {
	signed := mustSign(t, largeDesired(400), testKey)
	if len(signed) <= MaxPayload || len(signed) > MaxDocument {
		t.Fatalf("the test's document has %d bytes", len(signed))
	}
	ref := Refer(testHost, 43, signed)
	if err := ref.Check(signed); err != nil {
		t.Error(err)
	}
	if d, err := Verify(signed, testHost, pinned); err != nil || len(d.Workloads) != 400 {
		t.Errorf("%v", err)
	}
	changed := bytes.Clone(signed)
	changed[len(changed)/2] ^= 1
	for name, data := range map[string][]byte{"nothing": nil, "cut": signed[:len(signed)-1], "longer": append(bytes.Clone(signed), 0), "changed": changed} {
		if ref.Check(data) == nil {
			t.Errorf("%s passes for what is referred to", name)
		}
	}
	if _, err := Verify(mustSign(t, largeDesired(600), testKey), testHost, pinned); err == nil || !strings.Contains(err.Error(), "over the limit") {
		t.Errorf("a document over MaxDocument: %v", err)
	}
}

func TestVerifyReferenceRefuses(t *testing.T) {
	_, stranger, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	sign := func(r *Reference, key ed25519.PrivateKey) []byte {
		t.Helper()
		data, err := SignReference(r, key)
		if err != nil {
			t.Fatal(err)
		}
		return data
	}
	ref := Refer(testHost, 42, []byte("x"))
	for name, data := range map[string][]byte{
		"another key":           sign(ref, stranger),
		"a desired document":    mustSign(t, fullDesired(), testKey),
		"another purpose":       forge(t, signer(t, -8, testKey), desiredAAD, nil),
		"a document's envelope": func() []byte { data, _ := seal(ref, testKey, desiredAAD); return data }(),
	} {
		if _, err := VerifyReference(data, testHost, pinned); !errors.Is(err, ErrSignature) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := Verify(sign(ref, testKey), testHost, pinned); !errors.Is(err, ErrSignature) {
		t.Errorf("a reference passes for a document: %v", err)
	}
	other := NewID(PrefixHost)
	if _, err := VerifyReference(sign(Refer(other, 42, []byte("x")), testKey), testHost, pinned); !errors.Is(err, ErrOtherHost) {
		t.Errorf("another host's: %v", err)
	}
	for name, change := range map[string]func(*Reference){
		"version":       func(r *Reference) { r.Version = 2 },
		"no host":       func(r *Reference) { r.Host = "" },
		"no generation": func(r *Reference) { r.Generation = 0 },
		"digest":        func(r *Reference) { r.Digest = r.Digest[1:] },
		"empty":         func(r *Reference) { r.Size = 0 },
		"too large":     func(r *Reference) { r.Size = MaxDocument + 1 },
	} {
		r := Refer(testHost, 42, []byte("x"))
		change(r)
		data, err := Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		if err := Unmarshal(data, new(Reference)); err == nil {
			t.Errorf("%s: accepted", name)
		}
		if _, err := SignReference(r, testKey); err == nil {
			t.Errorf("%s: signed", name)
		}
	}
}
