package ctr

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/remotegpu/remotegpu/edge-agent/network"
)

// maxAnswer is the most of an answer that is held in memory: a login's. Blobs go to
// the disk, and containerd bounds the rest.
const maxAnswer = 1 << 20

// guard is what a pull speaks by. The registry may be anybody's, and sends on by
// redirects, by the address of its login and by its name: to what only the host
// reaches too, with an answer that goes back to it as a token.
type guard struct {
	http.Transport
	local   bool     // this machine was asked for in so many words
	proxies sync.Map // host:port, of those that the host's owner has set
}

func newGuard(roots *x509.CertPool, local bool) *guard {
	g := &guard{local: local}
	g.Transport = http.Transport{
		Proxy:                 g.proxy,
		DialContext:           g.dial,
		TLSClientConfig:       &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12},
		TLSHandshakeTimeout:   15 * time.Second,
		ResponseHeaderTimeout: time.Minute,
		IdleConnTimeout:       30 * time.Second,
		ForceAttemptHTTP2:     true,
	}
	return g
}

func (g *guard) proxy(r *http.Request) (*url.URL, error) {
	u, err := http.ProxyFromEnvironment(r)
	if u != nil {
		port := u.Port()
		if port == "" {
			port = map[string]string{"https": "443", "socks5": "1080", "socks5h": "1080"}[u.Scheme]
		}
		if port == "" {
			port = "80"
		}
		g.proxies.Store(net.JoinHostPort(u.Hostname(), port), true)
	}
	return u, err
}

func (g *guard) dial(ctx context.Context, network, address string) (net.Conn, error) {
	d := net.Dialer{Timeout: 15 * time.Second, KeepAlive: 15 * time.Second}
	if _, proxy := g.proxies.Load(address); !proxy {
		d.Control = g.check
	}
	return d.DialContext(ctx, network, address)
}

// check refuses addresses after their names have been looked up.
func (g *guard) check(_, address string, _ syscall.RawConn) error {
	at, err := netip.ParseAddrPort(address)
	if err != nil {
		return err
	}
	ip := at.Addr().Unmap().WithZone("")
	own := ip.IsLoopback() || ip.IsUnspecified()
	if own && !g.local || ip.IsLinkLocalUnicast() || ip.IsMulticast() || network.IsMetadata(ip) {
		return fmt.Errorf("%s is the host's own and no registry", ip)
	}
	return nil
}

// client returns one for blobs, and one for logins, whose answers are small.
func (g *guard) client() (blobs, logins *http.Client) {
	return &http.Client{Transport: g}, &http.Client{Transport: short{g}}
}

// short ends answers after maxAnswer.
type short struct{ http.RoundTripper }

func (s short) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := s.RoundTripper.RoundTrip(r)
	if err == nil {
		resp.Body = struct {
			io.Reader
			io.Closer
		}{io.LimitReader(resp.Body, maxAnswer), resp.Body}
	}
	return resp, err
}

// isLocal reports whether host[:port] is this machine.
func isLocal(host string) bool {
	name := host
	if h, _, err := net.SplitHostPort(host); err == nil {
		name = h
	}
	ip, err := netip.ParseAddr(strings.Trim(name, "[]"))
	return name == "localhost" || err == nil && ip.IsLoopback()
}
