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

// typedAs are all names under which OpenSSH may know what is called name, also
// those that mean another place to somebody else: for the gateway's key alone.
func typedAs(name string) []string {
	if host, ok := strings.CutPrefix(name, prefixHost); ok {
		return []string{name, host + suffixHost}
	}
	names := []string{name, name + suffixEnvironment}
	if short, ws, ok := strings.Cut(name, "."); ok {
		names = append(names, short, short+suffixEnvironment, inFull(short, ws))
	}
	return names
}

// inFull is what remotegpu ssh-config has OpenSSH call ENV.rg, which every
// workspace may have: OpenSSH can add to a name, and not take away from it.
func inFull(env, workspace string) string {
	return env + suffixEnvironment + "." + workspace + suffixEnvironment
}

// names are those of p, in a workspace of this name, that stand for no other
// place, whoever says them. A host keeps its certificate, and could answer with
// it for another place of the same name.
func (p place) names(workspace string) []string {
	if p.isHost() {
		return []string{prefixHost + p.Name, p.Name + suffixHost, p.ID + suffixHost}
	}
	full := p.Name + "." + workspace
	names := []string{inFull(p.Name, workspace), full + suffixEnvironment, p.ID, p.ID + suffixEnvironment}
	if !strings.HasSuffix(full, suffixEnvironment) && !strings.HasSuffix(full, suffixHost) {
		names = append(names, full)
	}
	return names
}

// calledBy is the name of what OpenSSH calls host.
func calledBy(host string) string {
	if name, ok := strings.CutSuffix(host, suffixHost); ok {
		return prefixHost + name
	}
	name := strings.TrimSuffix(host, suffixEnvironment)
	if short, ws, ok := strings.Cut(name, suffixEnvironment+"."); ok {
		return short + "." + ws
	}
	return name
}
