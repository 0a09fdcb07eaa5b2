package relay

import (
	"crypto/ed25519"
	"crypto/rand"
	"testing"

	"golang.org/x/crypto/ssh"
)

// FuzzCertificate: what is accepted is a host certificate for our own key.
func FuzzCertificate(f *testing.F) {
	signer := func() ssh.Signer {
		_, key, err := ed25519.GenerateKey(nil)
		if err != nil {
			f.Fatal(err)
		}
		s, err := ssh.NewSignerFromKey(key)
		if err != nil {
			f.Fatal(err)
		}
		return s
	}
	ours, other, ca := signer(), signer(), signer()
	for _, key := range []ssh.Signer{ours, other} {
		for _, kind := range []uint32{ssh.HostCert, ssh.UserCert} {
			cert := &ssh.Certificate{Key: key.PublicKey(), CertType: kind, ValidPrincipals: []string{"a"}, ValidBefore: ssh.CertTimeInfinity}
			if err := cert.SignCert(rand.Reader, ca); err != nil {
				f.Fatal(err)
			}
			f.Add(cert.Marshal())
			if _, err := parseCertificate(cert.Marshal(), ours); (err == nil) != (key == ours && kind == ssh.HostCert) {
				f.Errorf("own key %v, kind %d: %v", key == ours, kind, err)
			}
		}
	}
	f.Add(ours.PublicKey().Marshal())
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := parseCertificate(b, ours)
		if err == nil && s.PublicKey().(*ssh.Certificate).CertType != ssh.HostCert {
			t.Errorf("%x is accepted", b)
		}
	})
}
