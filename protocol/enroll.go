package protocol

import (
	"crypto/ed25519"
	"fmt"
	"time"
)

// Enroll is the body of POST /api/v1/agent/enroll, JSON: a new host shows its
// join token and its public key, and proves that it holds the private one.
type Enroll struct {
	Token     string    `json:"token" doc:"Join token as shown in the console" maxLength:"256"`
	PublicKey []byte    `json:"public_key" doc:"Ed25519 public key of the host, 32 bytes, made on the host"`
	Proof     []byte    `json:"proof" doc:"Ed25519 signature of EnrollProof(token), 64 bytes"`
	Name      string    `json:"name,omitempty" doc:"Wished host name; empty: the hostname" maxLength:"64"`
	Agent     string    `json:"agent" doc:"Agent version" maxLength:"64"`
	Inventory Inventory `json:"inventory"`
}

// Validate checks what a hostile host could send too much of. It does not check
// the proof.
func (e *Enroll) Validate() error {
	if e.Token == "" || tooLong(e.Token, e.Name, e.Agent) || len(e.PublicKey) != ed25519.PublicKeySize || len(e.Proof) != ed25519.SignatureSize {
		return fmt.Errorf("enrolment has no token, a key or proof of wrong length, or is over its limits")
	}
	return e.Inventory.Validate()
}

// Enrolled is the answer. The agent pins Keys: it obeys no document that none
// of them signed.
type Enrolled struct {
	Host     string   `json:"host" doc:"Id, host_…"`
	Name     string   `json:"name" doc:"Name that people type; unique in the fleet"`
	Approved bool     `json:"approved" doc:"false: a platform admin must approve the host first"`
	Keys     [][]byte `json:"keys" doc:"Ed25519 public keys of the control plane that sign desired documents, newest first"`
	Registry string   `json:"registry" doc:"host:port of the built-in image registry, for {control} in image references"`
}

// EnrollProof returns what a host signs to show that it holds the key that it
// enrols, bound to the token so that a proof cannot be used elsewhere.
func EnrollProof(token string, publicKey []byte) []byte {
	return fmt.Appendf(nil, "remotegpu enroll v1\n%s\n%x", token, publicKey)
}

// Audiences of the JWTs (EdDSA, a few minutes) that a host signs with its key:
// subject is the host id.
const (
	AudienceMQTT     = "mqtt"     // CONNECT password, user name "host", client id the host id
	AudienceTunnel   = "tunnel"   // bearer of GET /tunnel
	AudienceAPI      = "agent"    // bearer of /api/v1/agent/…
	AudienceRegistry = "registry" // password at /v2/, user name the host id
)

// A host may ask (POST, no body) for an X.509 certificate, PEM, of its own key
// and with its id as common name, to show to a broker that knows no JWT.
const (
	CertificatePath = "/api/v1/agent/certificate"
	CertificateLife = 24 * time.Hour
)

// MQTT user names. A user of the platform connects with their e-mail address
// and password, an integration with UserToken and an API token.
const (
	MQTTUserHost  = "host"
	MQTTUserToken = "token"
)
