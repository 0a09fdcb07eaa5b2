package server

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"net/http"
	"net/url"
	"os"

	"github.com/remotegpu/remotegpu/broker/external"
	"github.com/remotegpu/remotegpu/control/auth"
	"github.com/remotegpu/remotegpu/control/keys"
	"github.com/remotegpu/remotegpu/control/web"
	"github.com/remotegpu/remotegpu/protocol"
)

// A broker that somebody else runs may stand beside ours: hosts that are told to
// connect there do so, and integrations find events there too. Ours stays for
// all others. What hosts say there is taken by the replica that leads.

// openOutside connects to that broker, if there is one.
func (s *Server) openOutside() error {
	if s.cfg.MQTTBroker == "" {
		return nil
	}
	u, err := url.Parse(s.cfg.MQTTBroker)
	if err != nil || u.Scheme != "tls" || u.Port() == "" || u.User != nil {
		return fmt.Errorf("--mqtt-broker %q must look like tls://mqtt.example.org:8884", s.cfg.MQTTBroker)
	}
	tc := &tls.Config{Certificates: s.hopTLS.Certificates, RootCAs: s.hopTLS.RootCAs, ServerName: u.Hostname(), MinVersion: tls.VersionTLS12}
	if s.cfg.MQTTBrokerCA != "" {
		ca, err := os.ReadFile(s.cfg.MQTTBrokerCA)
		if err != nil {
			return fmt.Errorf("read the external broker's authority: %w", err)
		}
		tc.RootCAs = x509.NewCertPool()
		if !tc.RootCAs.AppendCertsFromPEM(ca) {
			return fmt.Errorf("--mqtt-broker-ca %s holds no certificate", s.cfg.MQTTBrokerCA)
		}
	}
	s.outside, err = external.New(external.Config{URL: u, TLS: tc, Name: s.replicas.ID(), Log: s.log})
	if err != nil {
		return err
	}
	s.outside.Handle(protocol.TopicHello, s.dispatch.Hello)
	s.outside.Handle(protocol.TopicStatus, s.dispatch.Status)
	s.outside.Handle(protocol.TopicPresence, s.dispatch.Presence)
	return nil
}

func (s *Server) closeOutside() {
	if s.outside != nil {
		s.outside.Close()
	}
}

// receiveOutside takes what hosts say at the external broker, while this
// replica leads.
func (s *Server) receiveOutside(ctx context.Context) error {
	all, err := s.hosts.Presences(ctx, nil)
	if err != nil {
		s.log.Error("look who is at the external broker", "err", err) // they say so themselves soon
	}
	var there []string
	for _, seen := range all {
		if seen.Presence.Online && seen.Replica == "" {
			there = append(there, seen.Host)
		}
		if err := s.retainOutside(seen); err != nil {
			s.log.Error("retain presence at the external broker", "host", seen.Host, "err", err)
		}
	}
	s.outside.Expect(there)
	s.dispatch.CatchUp(ctx)
	return s.outside.Receive(ctx)
}

// connected reports whether a host is where this replica speaks with it: at its
// own broker, or at the external one while it leads.
func (s *Server) connected(host string) bool {
	return s.broker.Connected(host) || s.leadsOutside() && s.outside.Connected(host)
}

func (s *Server) leadsOutside() bool { return s.outside != nil && s.leading.Load() }

// placeOf is which replica has a host that is heard here; empty: none has, it
// is at the external broker.
func (s *Server) placeOf(host string) string {
	if s.outside != nil && !s.broker.Connected(host) {
		return ""
	}
	return s.replicas.ID()
}

// certificateRoutes gives hosts what they show to an external broker.
func (s *Server) certificateRoutes(api *web.API) {
	api.Raw(web.Route{Method: http.MethodPost, Path: protocol.CertificatePath, Action: auth.HostService, Summary: "A host's certificate for an external MQTT broker"},
		http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			chain, err := s.hostCertificate(r.Context(), auth.From(r.Context()))
			if err != nil {
				api.Fail(w, r, err)
				return
			}
			w.Header().Set("Content-Type", "application/pem-certificate-chain")
			_, _ = w.Write(chain) // the host may be gone
		}))
}

func (s *Server) hostCertificate(ctx context.Context, c auth.Caller) ([]byte, error) {
	key, err := s.hosts.Key(ctx, c)
	if err != nil {
		return nil, err
	}
	ca, err := authority(ctx, s.pool, keys.MQTT)
	if err != nil {
		return nil, err
	}
	der, err := sign(ca, key, leaf{names: []string{c.ID}, life: protocol.CertificateLife, usage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
	if err != nil {
		return nil, fmt.Errorf("issue certificate of host: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), nil
}
