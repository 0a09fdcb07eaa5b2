// Package account knows the people who use RemoteGPU and how they prove it.
//
// It owns users, passwords (argon2id), sessions, API tokens and SSH keys; what
// a person may do stands in package auth, membership in workspace. Its
// invariant: of every secret only a hash is kept, and each is shown once.
package account

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"fmt"
	"net/mail"
	"runtime"
	"strings"
	"time"

	"golang.org/x/crypto/argon2"
	"golang.org/x/crypto/ssh"

	"github.com/remotegpu/remotegpu/control/errs"
)

// User is a person with a local account.
type User struct {
	ID        string    `db:"id" json:"id"`
	Email     string    `db:"email" json:"email"`
	Name      string    `db:"name" json:"name"`
	Admin     bool      `db:"admin" json:"admin" doc:"Platform admin"`
	Disabled  bool      `db:"disabled" json:"disabled"`
	CreatedAt time.Time `db:"created_at" json:"created_at"`
}

// Token is an API token without its secret.
type Token struct {
	ID        string     `db:"id" json:"id"`
	Name      string     `db:"name" json:"name"`
	ExpiresAt *time.Time `db:"expires_at" json:"expires_at,omitempty" doc:"Absent: never"`
	CreatedAt time.Time  `db:"created_at" json:"created_at"`
	UsedAt    *time.Time `db:"used_at" json:"used_at,omitempty" doc:"Last use, to the minute"`
}

// Key is a public SSH key that lets its user in.
type Key struct {
	ID          string     `db:"id" json:"id"`
	Name        string     `db:"name" json:"name"`
	Fingerprint string     `db:"fingerprint" json:"fingerprint" doc:"SHA256:…, as ssh-keygen -l shows it"`
	PublicKey   string     `db:"public_key" json:"public_key" doc:"authorized_keys format"`
	CreatedAt   time.Time  `db:"created_at" json:"created_at"`
	UsedAt      *time.Time `db:"used_at" json:"used_at,omitempty"`
}

// Prefixes of secrets: they tell a leaked one's kind to a scanner.
const (
	tokenPrefix   = "rgt_"
	sessionPrefix = "rgs_"
)

const (
	sessionLife = 14 * 24 * time.Hour
	minPassword = 10
)

// newSecret returns a secret of 256 bits and what is kept of it.
func newSecret(prefix string) (secret string, hash []byte) {
	var b [32]byte
	rand.Read(b[:])
	secret = prefix + base64.RawURLEncoding.EncodeToString(b[:])
	return secret, hashSecret(secret)
}

// hashSecret needs no salt and no slow function: the secret is random.
func hashSecret(secret string) []byte {
	sum := sha256.Sum256([]byte(secret))
	return sum[:]
}

// cost is what a hash takes: parameters of Argon2id.
type cost struct {
	time, memory uint32 // memory in KiB
	threads      uint8
}

// present is the second recommended option of RFC 9106, but with one lane: the
// guesser pays as much, and others keep their cores while we check.
var present = cost{3, 64 << 10, 1}

// argonSlots bounds how much memory and time logins can take at once;
// argonReserved is one more place for those who have logged in before.
var (
	argonSlots    = make(chan struct{}, max(1, runtime.NumCPU()/2))
	argonReserved = make(chan struct{}, 1)
)

func hashPassword(password string) string {
	var salt [16]byte
	rand.Read(salt[:])
	return fmt.Sprintf("$argon2id$v=19$%s$%s$%s", present,
		base64.RawStdEncoding.EncodeToString(salt[:]),
		base64.RawStdEncoding.EncodeToString(present.argon([]byte(password), salt[:])))
}

func (c cost) String() string { return fmt.Sprintf("m=%d,t=%d,p=%d", c.memory, c.time, c.threads) }

// isOld reports whether a hash has another cost than new ones.
func isOld(hash string) bool { return !strings.Contains(hash, "$"+present.String()+"$") }

// checkPassword takes as long for a user without password as for a wrong one.
func checkPassword(hash, password string) bool {
	parts := strings.Split(hash, "$")
	var c cost
	if len(parts) == 6 {
		_, _ = fmt.Sscanf(parts[3], "m=%d,t=%d,p=%d", &c.memory, &c.time, &c.threads) // what cannot be read is 0
	}
	if c.time == 0 || c.threads == 0 {
		present.argon([]byte(password), make([]byte, 16))
		return false
	}
	salt, err1 := base64.RawStdEncoding.DecodeString(parts[4])
	want, err2 := base64.RawStdEncoding.DecodeString(parts[5])
	if err1 != nil || err2 != nil {
		return false
	}
	return subtle.ConstantTimeCompare(want, c.argon([]byte(password), salt)) == 1
}

func (c cost) argon(password, salt []byte) []byte {
	return argon2.IDKey(password, salt, c.time, c.memory, c.threads, 32)
}

func validEmail(email string) error {
	a, err := mail.ParseAddress(email)
	if err != nil || a.Address != email || len(email) > 254 {
		return errs.Ef(errs.Invalid, "%.80q is not an e-mail address.", email)
	}
	return nil
}

func validPassword(password string) error {
	if len(password) < minPassword || len(password) > 1024 {
		return errs.Ef(errs.Invalid, "The password needs at least %d characters.", minPassword)
	}
	return nil
}

// parseKey returns the normal form and the fingerprint of a public key.
func parseKey(line string) (normal, fingerprint, comment string, err error) {
	key, comment, _, _, err := ssh.ParseAuthorizedKey([]byte(line))
	if err != nil {
		return "", "", "", errs.E(errs.Invalid, "This is not a public SSH key. Give the content of a file like ~/.ssh/id_ed25519.pub.", err)
	}
	if key.Type() == "ssh-dss" || key.Type() == ssh.KeyAlgoRSA && len(key.Marshal()) < 250 { // RSA under 2048 bits
		return "", "", "", errs.E(errs.Invalid, "This key is too weak. Make a new one: ssh-keygen -t ed25519.")
	}
	return strings.TrimSpace(string(ssh.MarshalAuthorizedKey(key))), ssh.FingerprintSHA256(key), comment, nil
}
