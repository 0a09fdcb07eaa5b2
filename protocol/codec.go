package protocol

import (
	"fmt"

	"github.com/fxamacker/cbor/v2"
)

// Limits of what a peer may send. Topic payloads are bounded by the broker
// too; decoding checks again so that no transport is trusted.
const (
	MaxPayload   = 1 << 20   // bytes, any document on a topic
	MaxDesired   = 256 << 10 // bytes, a signed document in a message; for larger ones a Reference is sent
	MaxDocument  = 8 << 20   // bytes, a signed document that is fetched over HTTPS
	MaxWorkloads = 1024      // in one desired document
	MaxLabel     = 256       // bytes, a name, label key or value
	MaxText      = 4 << 10   // bytes, a message for a person

	maxElements = 1 << 13 // of a list; the longest there is are the samples of a series
	maxPairs    = 1 << 12 // of a map
)

var (
	encMode = must(cbor.CoreDetEncOptions().EncMode())
	decMode = must(cbor.DecOptions{
		DupMapKey:        cbor.DupMapKeyEnforcedAPF,
		IndefLength:      cbor.IndefLengthForbidden,
		TagsMd:           cbor.TagsForbidden,
		UTF8:             cbor.UTF8RejectInvalid,
		MaxNestedLevels:  16,
		MaxArrayElements: maxElements,
		MaxMapPairs:      maxPairs,
	}.DecMode())
)

// Marshal encodes a document of this package deterministically: equal values
// give equal bytes.
func Marshal(v any) ([]byte, error) { return encMode.Marshal(v) }

// validator is a document that checks its own limits.
type validator interface{ Validate() error }

// Unmarshal decodes data into v, a pointer to a document of this package, and
// checks its limits. Data over MaxPayload, with duplicate keys, invalid UTF-8,
// tags or trailing bytes is refused.
func Unmarshal(data []byte, v any) error { return unmarshal(data, v, MaxPayload) }

func unmarshal(data []byte, v any, limit int) error {
	if len(data) > limit {
		return fmt.Errorf("document of %d bytes is over the limit of %d", len(data), limit)
	}
	if err := decMode.Unmarshal(data, v); err != nil {
		return fmt.Errorf("decode document: %w", err)
	}
	if d, ok := v.(validator); ok {
		return d.Validate()
	}
	return nil
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}
