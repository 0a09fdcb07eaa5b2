package link

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"github.com/remotegpu/remotegpu/edge-agent/state"
)

const (
	tokenLife  = 5 * time.Minute
	tokenSlack = 5 * time.Second // clocks are compared to about a second
)

// Signer makes the tokens by which this host shows who it is.
type Signer struct {
	id  *state.Identity
	now func() time.Time // the control plane's time
}

// NewSigner returns a signer for the host of id.
func NewSigner(id *state.Identity, now func() time.Time) *Signer { return &Signer{id, now} }

// Token returns a JWT (EdDSA) for one of the protocol's audiences, valid for
// five minutes.
func (s *Signer) Token(audience string) (string, error) {
	now := s.now()
	t := jwt.NewWithClaims(jwt.SigningMethodEdDSA, jwt.RegisteredClaims{
		Subject:   s.id.Host,
		Audience:  jwt.ClaimStrings{audience},
		IssuedAt:  jwt.NewNumericDate(now.Add(-tokenSlack)),
		ExpiresAt: jwt.NewNumericDate(now.Add(tokenLife)),
	})
	signed, err := t.SignedString(s.id.PrivateKey)
	if err != nil {
		return "", fmt.Errorf("sign token: %w", err)
	}
	return signed, nil
}

// Pair returns a certificate of the host's key, given as PEM, with the key.
func (s *Signer) Pair(chain []byte) (tls.Certificate, error) {
	der, err := x509.MarshalPKCS8PrivateKey(s.id.PrivateKey)
	if err != nil {
		return tls.Certificate{}, err
	}
	cert, err := tls.X509KeyPair(chain, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
	if err != nil {
		return cert, fmt.Errorf("this is no certificate of the host's key: %w", err)
	}
	return cert, nil
}
