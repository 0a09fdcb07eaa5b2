package server

import (
	"fmt"
	"net"
	"net/url"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/remotegpu/remotegpu/control/rdp"
)

// Config says how to run a server. Its zero value is usable but for DataDir.
type Config struct {
	DataDir         string // private database, blobs; made when missing
	DatabaseURL     string // PostgreSQL connection string; empty: a private server in DataDir
	Listen          string // HTTPS address; empty: ":8443"
	SSHListen       string // SSH gateway; empty: ":2222"
	MQTTListen      string // MQTT over TLS; empty: none, MQTT is at /mqtt of the HTTPS port all the same
	MQTTBroker      string // tls://HOST:PORT of a broker that somebody else runs, for us; empty: none
	MQTTBrokerCA    string // PEM file of the authority of its certificate; empty: our own
	MQTTBrokerHosts string // tls://HOST:PORT of it for hosts; empty: new hosts come to our own
	URL             string // how hosts and people reach this server; empty: https://localhost:PORT
	ReplicaListen   string // address where other replicas bring streams, over TLS with a certificate of our own authority; empty: none, this is the only server
	ReplicaAddress  string // host:port of it as the others reach it; empty: ReplicaListen's, or the address by which we reach the database
	SSHAddress      string // host:port of the gateway as people type it; empty: the URL's host and SSHListen's port
	TLSCert         string // PEM files of a certificate from elsewhere; empty: one of our own authority
	TLSKey          string
	PlainHTTP       bool          // a proxy in front ends TLS: listen without it, and trust X-Forwarded-For
	PublicCA        bool          // clients know the authority of URL's certificate without help
	ProxyCA         string        // PEM file of the authority behind a proxy's certificate, when it is not publicly known
	AppsDomain      string        // apps are at *.AppsDomain, on the HTTPS port; empty: apps.localhost for a URL on this machine
	AppsListen      string        // else they share the origin of this address; empty: the port after Listen's; "off": none
	AppsURL         string        // how people reach AppsListen, or another name of the HTTPS port; empty: the URL's host and AppsListen's port
	Downloads       string        // folder served at /dl/; empty: DataDir/dl
	BlobURL         string        // store of recordings, file://…; empty: DataDir/blobs
	Clipboard       string        // most that may be copied over remote desktops, a clipboard policy; empty: both ways
	UserStreams     int           // most streams of a user at a time, and of a host; 0: no cap
	HostStreams     int           // as UserStreams
	UserRate        int           // most bytes per second over all streams of a user, of a host, and of one session; 0: no cap
	HostRate        int           // as UserRate
	SessionRate     int           // as UserRate
	Drain           time.Duration // how long a stop waits for sessions and forwards that end with this server
	DebugListen     string        // address of this machine where profiles are shown; empty: none
	Version         string
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
	if c.Clipboard != "" && !rdp.ValidClipboard(c.Clipboard) {
		return fmt.Errorf("--rdp-clipboard %q: use both, to-host, from-host or none", c.Clipboard)
	}
	if err := c.defaultApps(u); err != nil {
		return err
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

// defaultApps finds a place for apps: never the origin of the console.
func (c *Config) defaultApps(u *url.URL) error {
	c.AppsDomain = strings.ToLower(strings.Trim(c.AppsDomain, "."))
	host, port, err := net.SplitHostPort(c.Listen)
	if err != nil {
		return fmt.Errorf("address %q to listen on: %w", c.Listen, err)
	}
	if c.AppsDomain == "" && c.AppsListen == "" && c.AppsURL == "" {
		n, err := strconv.Atoi(port)
		switch {
		case u.Hostname() == "localhost" || net.ParseIP(u.Hostname()).IsLoopback():
			c.AppsDomain = "apps.localhost"
		case !c.PlainHTTP && err == nil && n > 0 && n < 1<<16-1:
			c.AppsListen = net.JoinHostPort(host, strconv.Itoa(n+1))
		}
	}
	if c.AppsListen == "off" || c.AppsDomain != "" {
		c.AppsListen, c.AppsURL = "", ""
	}
	if c.AppsURL == "" && c.AppsListen != "" {
		_, port, err := net.SplitHostPort(c.AppsListen)
		if err != nil {
			return fmt.Errorf("address %q to listen on for apps: %w", c.AppsListen, err)
		}
		c.AppsURL = "https://" + net.JoinHostPort(u.Hostname(), port)
	}
	c.AppsURL = strings.TrimRight(c.AppsURL, "/")
	if at, err := url.Parse(c.AppsURL); c.AppsURL != "" && (err != nil || at.Scheme != "https" || at.Host == "" || at.Path != "" || at.Host == u.Host) {
		return fmt.Errorf("--apps-url %q must look like https://apps.example.org and not be the console's", c.AppsURL)
	}
	return nil
}

// origin returns the URL as browsers write origins.
func (c *Config) origin() string {
	u, err := url.Parse(c.URL)
	if err != nil {
		return ""
	}
	return "https://" + strings.TrimSuffix(u.Host, ":443")
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
