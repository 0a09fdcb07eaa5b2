package reach

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"
	"time"
)

// serverWith runs a server whose certificate, its own authority, is valid
// between the times.
func serverWith(t *testing.T, from, to time.Time) (url string, ca []byte) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"}, NotBefore: from, NotAfter: to,
		IsCA: true, BasicConstraintsValid: true, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	der, err := x509.CreateCertificate(rand.Reader, tpl, tpl, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	srv.TLS = &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}}
	srv.StartTLS()
	t.Cleanup(srv.Close)
	return srv.URL, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

func TestMeasureWhereTheCertificateIsYoungerThanTheClock(t *testing.T) {
	now := time.Now()
	cases := []struct {
		name     string
		from, to time.Time     // of the certificate
		off      time.Duration // of the host's clock
		works    bool
	}{
		{"right clock", now.Add(-time.Minute), now.Add(time.Minute), 0, true},
		{"an hour slow", now.Add(-time.Minute), now.Add(time.Minute), -time.Hour, true},
		{"an hour fast", now.Add(-time.Minute), now.Add(time.Minute), time.Hour, true},
		{"days slow", now.Add(-time.Minute), now.Add(time.Minute), -72 * time.Hour, false},
		{"certificate ran out", now.Add(-2 * time.Hour), now.Add(-time.Hour), 0, false},
		{"certificate ran out, clock slow", now.Add(-2 * time.Hour), now.Add(-time.Hour), -90 * time.Minute, false},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			url, ca := serverWith(t, c.from, c.to)
			s, err := New(Config{URL: url, CA: ca, Now: func() time.Time { return time.Now().Add(c.off) }})
			if err != nil {
				t.Fatal(err)
			}
			_, err = s.Measure(t.Context())
			if err == nil {
				var res *http.Response
				s.HTTP().CloseIdleConnections()
				if res, err = s.HTTP().Get(url); err == nil {
					res.Body.Close()
				}
			}
			if (err == nil) != c.works {
				t.Fatalf("error %v, want it to work: %v", err, c.works)
			}
			if d := time.Until(s.Now()); c.works && d.Abs() > 3*time.Second {
				t.Errorf("Now is %s off", d)
			}
		})
	}
}

// TestStepped: a clock that is set after it was compared is noticed, and right
// again after another comparison.
func TestStepped(t *testing.T) {
	url, ca := serverWith(t, time.Now().Add(-time.Hour), time.Now().Add(time.Hour))
	var off atomic.Int64
	s, err := New(Config{URL: url, CA: ca, Now: func() time.Time { return time.Now().Add(time.Duration(off.Load())) }})
	if err != nil {
		t.Fatal(err)
	}
	if s.Stepped() {
		t.Error("stepped since nothing")
	}
	for _, to := range []time.Duration{0, 43 * time.Minute, 0, -time.Hour} {
		before := time.Duration(off.Swap(int64(to)))
		if s.Stepped() != (before != to) {
			t.Errorf("from %v to %v: stepped is %v", before, to, s.Stepped())
		}
		if _, err := s.Measure(t.Context()); err != nil {
			t.Fatal(err)
		}
		if d := time.Until(s.Now()); s.Stepped() || d.Abs() > 3*time.Second {
			t.Errorf("after another look at %v: stepped is %v, Now is %v off", to, s.Stepped(), d)
		}
	}
}

func TestNewRefusesWhatIsNoServer(t *testing.T) {
	for _, url := range []string{"", "control.example", "http://control.example", "https://", "https://a/?b", "https://u:p@h"} {
		if _, err := New(Config{URL: url}); err == nil {
			t.Errorf("%q is taken as a server", url)
		}
	}
	if _, err := New(Config{URL: "https://h", CA: []byte("no PEM")}); err == nil {
		t.Error("a CA file without a certificate is taken")
	}
	s, err := New(Config{URL: "https://h:1/base/"})
	if err != nil {
		t.Fatal(err)
	}
	if got := s.URL("wss", "/mqtt"); got != "wss://h:1/base/mqtt" {
		t.Errorf("got %s", got)
	}
}
