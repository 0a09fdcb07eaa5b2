package server

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"net/url"
	"os"
	"time"

	"github.com/remotegpu/remotegpu/control/keys"
	"github.com/remotegpu/remotegpu/control/pg"
)

// identity is how the server shows who it is.
type identity struct {
	cert tls.Certificate
	ca   []byte // PEM that clients must trust; empty: they know it already
	pin  string // sha256//… of the public key that curl sees, for the install line; empty: not needed
}

// tlsConfig returns how a listener of the server speaks TLS. HTTP/2 is not
// among the protocols: it would not carry WebSockets.
func (id identity) tlsConfig(protocols ...string) *tls.Config {
	return &tls.Config{Certificates: []tls.Certificate{id.cert}, MinVersion: tls.VersionTLS12, NextProtos: protocols}
}

// loadIdentity returns the certificate given by files, or one of our own
// authority, whose key all replicas share in the database.
func loadIdentity(ctx context.Context, db pg.DB, cfg Config) (identity, error) {
	switch {
	case cfg.PlainHTTP:
		return proxied(cfg)
	case cfg.TLSCert != "":
		cert, err := tls.LoadX509KeyPair(cfg.TLSCert, cfg.TLSKey)
		if err != nil {
			return identity{}, fmt.Errorf("load certificate: %w", err)
		}
		id := identity{cert: cert}
		if !cfg.PublicCA {
			id.pin = pin(cert.Leaf)
			id.ca = chainPEM(cert)
		}
		return id, nil
	}
	return ownIdentity(ctx, db, cfg)
}

// proxied is who we are behind a proxy: its certificate is none of ours.
func proxied(cfg Config) (identity, error) {
	if cfg.ProxyCA == "" {
		return identity{}, nil
	}
	ca, err := os.ReadFile(cfg.ProxyCA)
	if err != nil {
		return identity{}, fmt.Errorf("read the proxy's authority: %w", err)
	}
	return identity{ca: ca}, nil
}

// authority returns a certificate authority of our own by the name of its key.
func authority(ctx context.Context, db pg.DB, name string) (tls.Certificate, error) {
	pair, err := keys.Material(ctx, db, name, newAuthority)
	if err != nil {
		return tls.Certificate{}, err
	}
	ca, err := tls.X509KeyPair(pair, pair)
	if err != nil {
		return ca, fmt.Errorf("read own certificate authority: %w", err)
	}
	return ca, nil
}

func ownIdentity(ctx context.Context, db pg.DB, cfg Config) (identity, error) {
	ca, err := authority(ctx, db, keys.CA)
	if err != nil {
		return identity{}, err
	}
	leafKey, err := keys.Material(ctx, db, "tls", newKey)
	if err != nil {
		return identity{}, err
	}
	cert, err := issue(ca, leafKey, names(cfg), x509.ExtKeyUsageServerAuth)
	if err != nil {
		return identity{}, fmt.Errorf("issue certificate: %w", err)
	}
	return identity{cert: cert, ca: chainPEM(ca), pin: pin(cert.Leaf)}, nil
}

func newKey() ([]byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), err
}

// clockSlack is how far back a certificate is valid, for hosts whose clock is
// behind.
const clockSlack = 48 * time.Hour

func newAuthority() ([]byte, error) {
	keyPEM, err := newKey()
	if err != nil {
		return nil, err
	}
	key, err := parseKey(keyPEM)
	if err != nil {
		return nil, err
	}
	tpl := &x509.Certificate{
		SerialNumber: serial(), Subject: pkix.Name{CommonName: "RemoteGPU own authority"},
		NotBefore: time.Now().Add(-clockSlack), NotAfter: time.Now().AddDate(20, 0, 0),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, tpl, tpl, key.Public(), key)
	if err != nil {
		return nil, err
	}
	return append(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), keyPEM...), nil
}

// leaf is what a certificate says.
type leaf struct {
	names []string // the first one is its common name too
	life  time.Duration
	usage []x509.ExtKeyUsage
}

// issue makes the server's certificate anew at every start: its key stays, so
// pins hold, while names and dates follow the configuration.
func issue(ca tls.Certificate, keyPEM []byte, hosts []string, usage ...x509.ExtKeyUsage) (tls.Certificate, error) {
	key, err := parseKey(keyPEM)
	if err != nil {
		return tls.Certificate{}, err
	}
	der, err := sign(ca, key.Public(), leaf{hosts, 2 * 365 * 24 * time.Hour, usage})
	if err != nil {
		return tls.Certificate{}, err
	}
	cert, err := x509.ParseCertificate(der)
	return tls.Certificate{Certificate: [][]byte{der, ca.Certificate[0]}, PrivateKey: key, Leaf: cert}, err
}

func sign(ca tls.Certificate, key crypto.PublicKey, l leaf) (der []byte, err error) {
	tpl := &x509.Certificate{
		SerialNumber: serial(), Subject: pkix.Name{CommonName: l.names[0]},
		NotBefore: time.Now().Add(-clockSlack), NotAfter: time.Now().Add(l.life),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: l.usage,
	}
	for _, name := range l.names {
		if ip := net.ParseIP(name); ip != nil {
			tpl.IPAddresses = append(tpl.IPAddresses, ip)
		} else {
			tpl.DNSNames = append(tpl.DNSNames, name)
		}
	}
	return x509.CreateCertificate(rand.Reader, tpl, ca.Leaf, key, ca.PrivateKey)
}

func parseKey(keyPEM []byte) (*ecdsa.PrivateKey, error) {
	block, _ := pem.Decode(keyPEM)
	if block == nil {
		return nil, fmt.Errorf("no key in PEM")
	}
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, err
	}
	return key.(*ecdsa.PrivateKey), nil
}

func serial() *big.Int {
	n, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		panic(err) // crypto/rand never fails
	}
	return n
}

// names returns what the certificate is for: the URL's host first, then every
// name and address of this machine.
func names(cfg Config) []string {
	u, _ := url.Parse(cfg.URL) // checked in defaults
	list := []string{u.Hostname(), "localhost", "127.0.0.1", "::1"}
	if cfg.AppsDomain != "" {
		list = append(list, "*."+cfg.AppsDomain)
	}
	if at, err := url.Parse(cfg.AppsURL); err == nil && at.Hostname() != "" && at.Hostname() != u.Hostname() {
		list = append(list, at.Hostname())
	}
	if h, err := os.Hostname(); err == nil && h != "" {
		list = append(list, h)
	}
	addrs, _ := net.InterfaceAddrs() // none is no reason not to start
	for _, a := range addrs {
		if n, ok := a.(*net.IPNet); ok && !n.IP.IsLoopback() && !n.IP.IsLinkLocalUnicast() {
			list = append(list, n.IP.String())
		}
	}
	return list
}

func pin(leaf *x509.Certificate) string {
	sum := sha256.Sum256(leaf.RawSubjectPublicKeyInfo)
	return "sha256//" + base64.StdEncoding.EncodeToString(sum[:])
}

func chainPEM(cert tls.Certificate) []byte {
	var b bytes.Buffer
	for _, der := range cert.Certificate {
		_ = pem.Encode(&b, &pem.Block{Type: "CERTIFICATE", Bytes: der}) // a buffer takes everything
	}
	return b.Bytes()
}
