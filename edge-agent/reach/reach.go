// Package reach is the way from this host to the control plane: address, TLS
// roots, proxy and clock.
//
// It owns how a connection is opened and what is said to a person when it does
// not open. It does not know what is spoken on it. Its invariants: with a
// pinned CA no other root is trusted; every connection honours the proxy; and
// a wrong clock of the host changes nothing, because times are measured
// against the control plane's.
package reach

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync/atomic"
	"time"
)

// connectWithin bounds one attempt to open a connection.
const connectWithin = 10 * time.Second

// Config says where the control plane is.
type Config struct {
	URL   string                                // required: https://HOST[:PORT]
	CA    []byte                                // PEM; empty: the system's roots
	Proxy func(*http.Request) (*url.URL, error) // nil: http.ProxyFromEnvironment
	Now   func() time.Time                      // nil: time.Now; the host's own clock
	Dial  Dial                                  // nil: as the system does
}

// Dial opens a connection. One of another's making has another source address,
// or a line that is slow, loses what it carries, or is dead.
type Dial func(ctx context.Context, network, address string) (net.Conn, error)

// Server is the control plane as the host reaches it. Its methods are safe for
// concurrent use.
type Server struct {
	base   *url.URL
	roots  *x509.CertPool // nil: the system's
	proxy  func(*http.Request) (*url.URL, error)
	now    func() time.Time
	dial   Dial
	client *http.Client
	offset atomic.Int64 // nanoseconds that the host's clock is ahead
	mark   atomic.Pointer[mark]
}

// New checks the configuration; it opens nothing.
func New(cfg Config) (*Server, error) {
	base, err := parseURL(cfg.URL)
	if err != nil {
		return nil, err
	}
	s := &Server{base: base, proxy: cfg.Proxy, now: cfg.Now, dial: cfg.Dial}
	if len(cfg.CA) > 0 {
		s.roots = x509.NewCertPool()
		if !s.roots.AppendCertsFromPEM(cfg.CA) {
			return nil, errors.New("the CA file holds no certificate: give the PEM file that the server's install line shows")
		}
	}
	if s.proxy == nil {
		s.proxy = http.ProxyFromEnvironment
	}
	if s.now == nil {
		s.now = time.Now
	}
	if s.dial == nil {
		s.dial = Dialer().DialContext
	}
	s.client = &http.Client{Transport: s.transport(s.TLS()), Timeout: 60 * time.Second, CheckRedirect: noRedirect}
	return s, nil
}

func parseURL(raw string) (*url.URL, error) {
	u, err := url.Parse(strings.TrimRight(raw, "/"))
	if err != nil || u.Scheme != "https" || u.Host == "" || u.RawQuery != "" || u.User != nil {
		return nil, fmt.Errorf("%q is no server address: it has the form https://HOST or https://HOST:PORT", raw)
	}
	return u, nil
}

// noRedirect hands a redirect back as the answer: a token goes to the server
// that was named, to no other.
func noRedirect(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }

func (s *Server) transport(tc *tls.Config) *http.Transport {
	return &http.Transport{
		Proxy:                  s.proxy,
		OnProxyConnectResponse: checkProxyAnswer,
		DialContext:            s.dial,
		TLSClientConfig:        tc,
		TLSHandshakeTimeout:    connectWithin,
		ResponseHeaderTimeout:  30 * time.Second,
		MaxIdleConns:           2,
		IdleConnTimeout:        30 * time.Second,
	}
}

// URL returns the address of a path, with scheme "https" or "wss".
func (s *Server) URL(scheme, path string) string {
	u := *s.base
	u.Scheme = scheme
	u.Path += path
	return u.String()
}

// String returns the server's address as people type it.
func (s *Server) String() string { return s.base.String() }

// HTTP returns the client for requests to the server. It follows no redirect.
func (s *Server) HTTP() *http.Client { return s.client }

// Proxy returns the proxy for a request, nil for none.
func (s *Server) Proxy(r *http.Request) (*url.URL, error) { return s.proxy(r) }

// TLS returns a new configuration that trusts the server and nobody else. It
// reads the time from the control plane's clock.
func (s *Server) TLS() *tls.Config {
	return &tls.Config{RootCAs: s.roots, MinVersion: tls.VersionTLS12, Time: s.Now}
}

// Open connects to address, "host:port", by TCP through the proxy if there is
// one, and then TLS, where it shows certs if it is asked.
func (s *Server) Open(ctx context.Context, address string, certs ...tls.Certificate) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, connectWithin)
	defer cancel()
	raw, err := s.Dial(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	tc := s.TLS()
	tc.ServerName, _, _ = net.SplitHostPort(address)
	tc.Certificates = certs
	conn := tls.Client(raw, tc)
	if err := conn.HandshakeContext(ctx); err != nil {
		raw.Close()
		return nil, err
	}
	return conn, nil
}
