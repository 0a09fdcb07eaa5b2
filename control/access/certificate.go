package access

import (
	"crypto/rand"
	"net"
	"strings"
	"time"

	"golang.org/x/crypto/ssh"
)

const (
	certifiedFor = 12 * time.Hour
	clockSlack   = time.Hour // of a client
)

// gatewayName is what HostKeyAlias says in configurations that remotegpu
// ssh-config has written before there was a CA.
const gatewayName = "remotegpu"

// Suffixes by which OpenSSH's configuration knows our names.
const (
	suffixEnvironment = ".rg"
	suffixHost        = ".rghost"
)

// certify signs that key is the one of names, now.
func (s *Service) certify(key ssh.PublicKey, names []string) (*ssh.Certificate, error) {
	now := time.Now()
	cert := &ssh.Certificate{
		Key: key, CertType: ssh.HostCert, KeyId: names[0], ValidPrincipals: names,
		ValidAfter: uint64(now.Add(-clockSlack).Unix()), ValidBefore: uint64(now.Add(certifiedFor).Unix()),
	}
	return cert, cert.SignCert(rand.Reader, s.ca)
}

// hostKeys are the gateway's own for a connection to what is called to; empty:
// the user's name tells later.
func (s *Service) hostKeys(to string) ([]ssh.Signer, error) {
	host, _, err := net.SplitHostPort(s.cfg.Address)
	if err != nil {
		host = s.cfg.Address
	}
	names := []string{host, gatewayName}
	if to != "" {
		names = append(names, typedAs(to)...)
	}
	cert, err := s.certify(s.hosts.PublicKey(), names)
	if err != nil {
		return nil, err
	}
	certified, err := ssh.NewCertSigner(cert, s.hosts)
	return []ssh.Signer{s.hosts, certified}, err
}

// typedAs are the names under which OpenSSH may know what is called name: as
// it is, and with the suffixes.
func typedAs(name string) []string {
	if host, ok := strings.CutPrefix(name, prefixHost); ok {
		return []string{name, host + suffixHost}
	}
	names := []string{name, name + suffixEnvironment}
	if short, _, ok := strings.Cut(name, "."); ok {
		names = append(names, short, short+suffixEnvironment)
	}
	return names
}

// calledBy is the name of what OpenSSH calls host.
func calledBy(host string) string {
	if name, ok := strings.CutSuffix(host, suffixHost); ok {
		return prefixHost + name
	}
	return strings.TrimSuffix(host, suffixEnvironment)
}
