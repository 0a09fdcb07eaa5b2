package reach

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"syscall"
)

// Sentence says for a person why the server could not be reached and what to
// do next.
func (s *Server) Sentence(err error) string {
	var proxy *ProxyError
	if errors.As(err, &proxy) {
		return proxySentence(proxy)
	}
	var clock *ClockError
	if errors.As(err, &clock) {
		return clock.Error()
	}
	if text := s.certificateSentence(err); text != "" {
		return text
	}
	var dns *net.DNSError
	var record tls.RecordHeaderError
	switch {
	case errors.As(err, &dns):
		return fmt.Sprintf("The name %s cannot be resolved: check the server address and this host's DNS.", dns.Name)
	case errors.As(err, &record), errors.Is(err, http.ErrSchemeMismatch):
		return fmt.Sprintf("%s does not speak TLS: check the address and the port.", s)
	case errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Sprintf("Nothing accepts connections at %s%s: check that the server runs and that the port is right.", s, s.via())
	case errors.Is(err, syscall.ENETUNREACH), errors.Is(err, syscall.EHOSTUNREACH):
		return fmt.Sprintf("There is no route to %s%s: check this host's network.", s, s.via())
	case isTimeout(err):
		return fmt.Sprintf("%s%s does not answer: check the network, firewalls and whether a proxy is needed (HTTPS_PROXY).", s, s.via())
	}
	return fmt.Sprintf("%s cannot be reached%s: %v.", s, s.via(), err)
}

func proxySentence(e *ProxyError) string {
	switch e.Status {
	case http.StatusProxyAuthRequired:
		return fmt.Sprintf("The proxy %s asks for a login: write it into HTTPS_PROXY as http://USER:PASSWORD@%s.", e.Proxy, e.Proxy)
	case http.StatusForbidden:
		return fmt.Sprintf("The proxy %s does not allow connections to the server: ask who runs it to allow them, or set NO_PROXY if the server is reachable without it.", e.Proxy)
	}
	return fmt.Sprintf("The proxy %s answered %d (%s) instead of connecting to the server: check HTTPS_PROXY and whether the proxy reaches the server.",
		e.Proxy, e.Status, http.StatusText(e.Status))
}

func (s *Server) certificateSentence(err error) string {
	var unknown x509.UnknownAuthorityError
	var name x509.HostnameError
	var invalid x509.CertificateInvalidError
	switch {
	case errors.As(err, &unknown) && s.roots != nil:
		return fmt.Sprintf("The certificate of %s is not signed by the CA that was given: take the CA file anew from the server's install line, and check that nothing stands between.", s)
	case errors.As(err, &unknown):
		return fmt.Sprintf("This host does not trust the certificate of %s: give the server's CA file with --ca.", s)
	case errors.As(err, &name):
		return fmt.Sprintf("The certificate of %s is for another name (%v): use the name that the server's install line shows.", s, name)
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return fmt.Sprintf("The certificate of %s is out of its time (%v): check this host's clock and the server's certificate.", s, invalid)
	}
	return ""
}

func isTimeout(err error) bool {
	var timeout net.Error
	return errors.Is(err, context.DeadlineExceeded) || errors.As(err, &timeout) && timeout.Timeout()
}

// Detail returns the sentence of a problem+json answer (RFC 9457), empty if it
// is none.
func Detail(body []byte) string {
	var p struct {
		Detail string `json:"detail"`
	}
	if json.Unmarshal(body, &p) != nil {
		return ""
	}
	return p.Detail
}

// via names the proxy that stands between, if any.
func (s *Server) via() string {
	proxy, err := s.proxy(&http.Request{URL: s.base})
	if err != nil || proxy == nil {
		return ""
	}
	return " through the proxy " + proxy.Host
}
