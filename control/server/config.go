package server

import (
	"fmt"
	"net"
	"net/url"
	"path/filepath"
)

// Config says how to run a server. Its zero value is usable but for DataDir.
type Config struct {
	DataDir     string // private database, blobs; made when missing
	DatabaseURL string // PostgreSQL connection string; empty: a private server in DataDir
	Listen      string // HTTPS address; empty: ":8443"
	SSHListen   string // SSH gateway; empty: ":2222"
	MQTTListen  string // MQTT over TLS; empty: none, MQTT is at /mqtt of the HTTPS port all the same
	URL         string // how hosts and people reach this server; empty: https://localhost:PORT
	SSHAddress  string // host:port of the gateway as people type it; empty: the URL's host and SSHListen's port
	TLSCert     string // PEM files of a certificate from elsewhere; empty: one of our own authority
	TLSKey      string
	PlainHTTP   bool   // a proxy in front ends TLS: listen without it, and trust X-Forwarded-For
	PublicCA    bool   // clients know the authority of URL's certificate without help
	ProxyCA     string // PEM file of the authority behind a proxy's certificate, when it is not publicly known
	Downloads   string // folder served at /dl/; empty: DataDir/dl
	Version     string
}

func (c *Config) defaults() error {
	if c.DataDir == "" {
		return fmt.Errorf("no data folder given: use --data-dir")
	}
	if c.Listen == "" {
		c.Listen = ":8443"
	}
	if c.SSHListen == "" {
		c.SSHListen = ":2222"
	}
	if c.Downloads == "" {
		c.Downloads = filepath.Join(c.DataDir, "dl")
	}
	if c.URL == "" {
		_, port, err := net.SplitHostPort(c.Listen)
		if err != nil {
			return fmt.Errorf("address %q to listen on: %w", c.Listen, err)
		}
		c.URL = "https://localhost:" + port
	}
	u, err := url.Parse(c.URL)
	if err != nil || u.Scheme != "https" || u.Hostname() == "" {
		return fmt.Errorf("--url %q must look like https://gpu.example.org:8443", c.URL)
	}
	if c.SSHAddress == "" {
		_, port, err := net.SplitHostPort(c.SSHListen)
		if err != nil {
			return fmt.Errorf("address %q to listen on: %w", c.SSHListen, err)
		}
		c.SSHAddress = net.JoinHostPort(u.Hostname(), port)
	}
	return nil
}

// hostPort returns the URL's host with port, as registries and CONNECT want it.
func (c *Config) hostPort() string {
	u, err := url.Parse(c.URL)
	if err != nil {
		return ""
	}
	if u.Port() != "" {
		return u.Host
	}
	return net.JoinHostPort(u.Hostname(), "443")
}
