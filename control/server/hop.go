package server

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/http/httputil"
	"strings"
	"sync/atomic"
	"time"

	"github.com/remotegpu/remotegpu/control/auth"
	"github.com/remotegpu/remotegpu/control/errs"
	"github.com/remotegpu/remotegpu/control/keys"
	"github.com/remotegpu/remotegpu/control/pg"
	"github.com/remotegpu/remotegpu/protocol"
	"github.com/remotegpu/remotegpu/protocol/tunnel"
)

// Hosts and people come through a load balancer, each to any replica. Streams
// find each other so:
//
//	person ─► replica U                    M ◄══ MQTT ══ agent
//	           │ 1. dial, with a token of U  ▲              │
//	           └────── PostgreSQL notifies ──┘              │
//	           ▲ 3. the hop, if T is not U                  │ 2. a WebSocket with the token
//	           └──────────── T ◄─── load balancer ◄─────────┘
//
// The token names U, so T knows where to bring it. U takes what it has asked
// for, once, and brings nothing on: there is no second hop. Both ends show a
// certificate of the fleet's own authority, whose key is in the database, and U
// checks the host's own token again, so that a hop adds no trust.

// dialWanted is the channel on which replicas ask each other to ask a host for
// a stream.
const dialWanted = "dial_wanted"

// wanted is a notification of dialWanted.
type wanted struct {
	By   string `json:"by"` // replica
	Host string `json:"host"`
	Dial []byte `json:"dial"` // for the host
}

// askWithin is how long the database may take to tell the other replicas: it is
// asked again.
const askWithin = 2 * time.Second

// askHost asks an agent over MQTT to dial a stream: the replica that has the
// agent does it. Even where it seems to be us: it may have gone to another, and
// our end not have noticed.
func (s *Server) askHost(ctx context.Context, host string, d protocol.Dial) error {
	b, err := protocol.Marshal(d)
	if err != nil {
		return err
	}
	here := s.broker.Connected(host) || s.outside != nil
	if here {
		err = s.publishToHost(host, protocol.TopicDial, b)
	}
	if !s.replicas.Others() {
		return err
	}
	text, err := json.Marshal(wanted{By: s.replicas.ID(), Host: host, Dial: b})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, askWithin)
	defer cancel()
	if err := pg.Notify(ctx, s.pool, dialWanted, string(text)); err != nil && !here {
		return fmt.Errorf("tell the replicas: %w", err)
	}
	return nil
}

// askForOthers takes a notification of dialWanted.
func (s *Server) askForOthers(payload string) {
	var want wanted
	if json.Unmarshal([]byte(payload), &want) != nil || want.By == s.replicas.ID() || !s.broker.Connected(want.Host) {
		return
	}
	if err := s.publishToHost(want.Host, protocol.TopicDial, want.Dial); err != nil {
		s.log.Warn("ask a host for another replica", "host", want.Host, "replica", want.By, "err", err)
	}
}

// hostOnline reports whether a host is connected here or elsewhere, as far as
// can be told: asking it shows the rest.
func (s *Server) hostOnline(host string) bool {
	if s.broker.Connected(host) {
		return true
	}
	if !s.replicas.Others() && s.outside == nil {
		return false
	}
	ctx, cancel := context.WithTimeout(context.Background(), askWithin)
	defer cancel()
	online, err := s.hosts.Online(ctx, host)
	if err != nil {
		s.log.Warn("look whether a host is elsewhere", "host", host, "err", err)
	}
	return online || err != nil
}

// hops brings streams to the replicas that have asked for them.
type hops struct {
	transport http.RoundTripper
	open      atomic.Int64
}

func newHops(cfg *tls.Config) *hops {
	dialer := net.Dialer{Timeout: 3 * time.Second, Control: tunnel.Pace}
	return &hops{transport: &http.Transport{
		DialContext: dialer.DialContext, TLSClientConfig: cfg, TLSHandshakeTimeout: 3 * time.Second,
		ResponseHeaderTimeout: 5 * time.Second, IdleConnTimeout: time.Minute,
	}}
}

// forward is tunnel.HubConfig's.
func (s *Server) forward(replica string, w http.ResponseWriter, r *http.Request) {
	address, err := s.replicas.Address(r.Context(), replica)
	if err != nil {
		s.api.Fail(w, r, err)
		return
	}
	s.hops.open.Add(1)
	defer s.hops.open.Add(-1)
	proxy := httputil.ReverseProxy{
		Transport: s.hops.transport,
		Rewrite:   func(pr *httputil.ProxyRequest) { pr.Out.URL.Scheme, pr.Out.URL.Host = "https", address },
		ErrorHandler: func(w http.ResponseWriter, r *http.Request, err error) {
			s.log.Warn("bring a stream to another replica", "replica", replica, "address", address, "err", err)
			s.api.Fail(w, r, errs.E(errs.Unavailable, "The server that asked for this stream cannot be reached.", err))
		},
	}
	proxy.ServeHTTP(w, r)
}

// takeHop takes a stream from another replica.
func (s *Server) takeHop(w http.ResponseWriter, r *http.Request) {
	bearer, _ := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	c, err := s.hosts.Authenticate(r.Context(), bearer, protocol.AudienceTunnel)
	if err == nil {
		err = c.Require(auth.HostService, "")
	}
	if err != nil {
		s.api.Fail(w, r, err)
		return
	}
	s.hub.AcceptHere(c.ID, w, r)
}

func (s *Server) hopHandler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+protocol.TunnelPath, s.takeHop)
	return mux
}

// hopName is what replicas' certificates among themselves are for. Addresses
// are not in them: they change.
const hopName = "replica.remotegpu.internal"

// hopTLS is how replicas speak with each other, at both ends.
func hopTLS(ctx context.Context, db pg.DB) (*tls.Config, error) {
	ca, err := authority(ctx, db, keys.CA)
	if err != nil {
		return nil, err
	}
	key, err := newKey()
	if err != nil {
		return nil, err
	}
	leaf, err := issue(ca, key, []string{hopName}, x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth)
	if err != nil {
		return nil, fmt.Errorf("issue certificate for replicas: %w", err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(ca.Leaf)
	return &tls.Config{
		Certificates: []tls.Certificate{leaf}, RootCAs: roots, ClientCAs: roots, ServerName: hopName,
		ClientAuth: tls.RequireAndVerifyClientCert, MinVersion: tls.VersionTLS13, NextProtos: []string{"http/1.1"},
		VerifyConnection: func(cs tls.ConnectionState) error { return cs.PeerCertificates[0].VerifyHostname(hopName) },
	}, nil
}

// hopAddress is where the other replicas reach this one: by default at the
// address by which it reaches the database, which they share.
func (s *Server) hopAddress(ctx context.Context) (string, error) {
	if s.cfg.ReplicaListen == "" || s.cfg.ReplicaAddress != "" {
		return s.cfg.ReplicaAddress, nil
	}
	host, port, err := net.SplitHostPort(s.cfg.ReplicaListen)
	if err != nil {
		return "", fmt.Errorf("address %q to listen on for replicas: %w", s.cfg.ReplicaListen, err)
	}
	if ip := net.ParseIP(host); host != "" && (ip == nil || !ip.IsUnspecified()) {
		return s.cfg.ReplicaListen, nil
	}
	conn, err := s.pool.Acquire(ctx)
	if err != nil {
		return "", fmt.Errorf("connect to database: %w", err)
	}
	defer conn.Release()
	if at, ok := conn.Conn().PgConn().Conn().LocalAddr().(*net.TCPAddr); ok {
		return net.JoinHostPort(at.IP.String(), port), nil
	}
	return net.JoinHostPort("127.0.0.1", port), nil // the database is on this machine, and so are all replicas
}
