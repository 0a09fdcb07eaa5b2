package protocol

import (
	"crypto/rand"
	"encoding/base32"
	"strings"
)

// Prefixes of typed ids: an id says what it names.
const (
	PrefixWorkspace   = "ws_"
	PrefixUser        = "usr_"
	PrefixHost        = "host_"
	PrefixGPU         = "gpu_"
	PrefixEnvironment = "env_"
	PrefixToken       = "tok_"
	PrefixKey         = "key_"
	PrefixStream      = "str_"
	PrefixRequest     = "req_"
	PrefixSession     = "ses_"
	PrefixClient      = "cli_"
	PrefixRecording   = "rec_"
	PrefixReplica     = "rep_"
)

var idEncoding = base32.NewEncoding("0123456789abcdefghjkmnpqrstvwxyz").WithPadding(base32.NoPadding)

// NewID returns prefix and 100 random bits in Crockford base32, 20 characters.
func NewID(prefix string) string {
	var b [13]byte
	rand.Read(b[:]) // never fails
	return prefix + idEncoding.EncodeToString(b[:])[:20]
}

// ValidID reports whether id is one that NewID(prefix) may have made.
func ValidID(prefix, id string) bool {
	rest, ok := strings.CutPrefix(id, prefix)
	if !ok || len(rest) != 20 {
		return false
	}
	for _, c := range rest {
		if !strings.ContainsRune("0123456789abcdefghjkmnpqrstvwxyz", c) {
			return false
		}
	}
	return true
}
