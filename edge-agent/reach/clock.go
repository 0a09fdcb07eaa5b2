package reach

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"
)

// Bounds of a clock that is wrong.
const (
	// Tolerated is how far a clock may be off without a word.
	Tolerated = 30 * time.Second
	// correctable is how far it may be off at all. Beyond, a certificate that
	// was stolen long ago could be brought back to life by a wrong date.
	correctable = 48 * time.Hour
	// steppedBy is how far two clocks of a host may drift apart.
	steppedBy = 5 * time.Second
)

// Now returns the control plane's time, as far as measured.
func (s *Server) Now() time.Time { return s.now().Add(-s.Offset()) }

// Offset returns how far the host's clock is ahead of the control plane's; 0
// before the first Measure.
func (s *Server) Offset() time.Duration { return time.Duration(s.offset.Load()) }

// Measure asks the control plane for the time and keeps the difference, which
// is exact to about a second. Smaller differences than two seconds count as
// none.
func (s *Server) Measure(ctx context.Context) (time.Duration, error) {
	offset, err := s.ask(ctx, s.client)
	var invalid x509.CertificateInvalidError
	if errors.As(err, &invalid) && invalid.Reason == x509.Expired {
		offset, err = s.askUntimed(ctx)
	}
	if err != nil {
		return s.Offset(), err
	}
	if offset.Abs() > correctable {
		return s.Offset(), &ClockError{offset}
	}
	if offset.Abs() < 2*time.Second {
		offset = 0
	}
	s.mark.Store(&mark{s.now().Round(0), time.Now()})
	s.offset.Store(int64(offset))
	return offset, nil
}

// mark is one moment by the host's clock and by one that nobody sets.
type mark struct{ clock, steady time.Time }

// Stepped reports whether the host's clock was set, or the host slept, since the
// last Measure: what that found may be wrong now.
func (s *Server) Stepped() bool {
	m := s.mark.Load()
	return m != nil && (s.now().Round(0).Sub(m.clock)-time.Since(m.steady)).Abs() > steppedBy
}

// ClockError is a host's clock that is too far off to be worked around.
type ClockError struct {
	Offset time.Duration // ahead of the control plane's
}

func (e *ClockError) Error() string {
	return fmt.Sprintf("This host's clock is %s of the server's: set it, for example by `timedatectl set-ntp true`.", Wrong(e.Offset))
}

// Wrong says how far a clock is off.
func Wrong(offset time.Duration) string {
	if offset < 0 {
		return (-offset).Round(time.Second).String() + " slow"
	}
	return offset.Round(time.Second).String() + " fast"
}

func (s *Server) ask(ctx context.Context, client *http.Client) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, connectWithin)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.URL("https", "/healthz"), nil)
	if err != nil {
		return 0, err
	}
	begun := time.Now()
	res, err := client.Do(req)
	if err != nil {
		return 0, err
	}
	defer res.Body.Close()
	io.Copy(io.Discard, io.LimitReader(res.Body, 1<<16))
	date, err := http.ParseTime(res.Header.Get("Date"))
	if err != nil {
		return s.Offset(), nil // a proxy took it off: nothing is learned
	}
	// The header was written somewhere between, and cut to whole seconds.
	middle := s.now().Add(-time.Since(begun) / 2)
	return middle.Sub(date.Add(500 * time.Millisecond)), nil
}

// askUntimed asks a server whose certificate seems to be out of its time by
// our clock. The certificate must still be signed by a root that we trust,
// which is checked as of a moment at which it was valid.
func (s *Server) askUntimed(ctx context.Context) (time.Duration, error) {
	tc := s.TLS()
	tc.InsecureSkipVerify = true // VerifyConnection does it
	tc.VerifyConnection = func(state tls.ConnectionState) error {
		leaf := state.PeerCertificates[0]
		opts := x509.VerifyOptions{
			Roots: s.roots, DNSName: state.ServerName, Intermediates: x509.NewCertPool(),
			CurrentTime: leaf.NotBefore.Add(leaf.NotAfter.Sub(leaf.NotBefore) / 2),
		}
		for _, c := range state.PeerCertificates[1:] {
			opts.Intermediates.AddCert(c)
		}
		_, err := leaf.Verify(opts)
		return err
	}
	t := s.transport(tc)
	defer t.CloseIdleConnections()
	offset, err := s.ask(ctx, &http.Client{Transport: t, CheckRedirect: noRedirect})
	return offset, err
}
