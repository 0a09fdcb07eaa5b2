package link

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"

	"github.com/remotegpu/remotegpu/protocol"
)

// certificateMost is more than a certificate has, in bytes.
const certificateMost = 16 << 10

// openTLS connects to a broker beside the server. It may be one that knows no
// tokens, but certificates: the control plane gives us one for our own key. A
// broker without a use for it does not ask, and an older control plane has none.
func (l *Link) openTLS(ctx context.Context, address string) (net.Conn, error) {
	cert := l.cert.Load()
	if cert == nil || cert.Leaf.NotAfter.Sub(l.cfg.Server.Now()) < protocol.CertificateLife/2 {
		fresh, err := l.fetchCertificate(ctx)
		var answer *httpError
		switch {
		case err == nil:
			cert = fresh
			l.cert.Store(fresh)
		case errors.As(err, &answer) && answer.status == http.StatusNotFound:
			return l.cfg.Server.Open(ctx, address)
		case cert == nil:
			return nil, fmt.Errorf("get a certificate for the broker: %w", err)
		}
	}
	return l.cfg.Server.Open(ctx, address, *cert)
}

func (l *Link) fetchCertificate(ctx context.Context) (*tls.Certificate, error) {
	token, err := l.signer.Token(protocol.AudienceAPI)
	if err != nil {
		return nil, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, l.cfg.Server.URL("https", protocol.CertificatePath), nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Authorization", "Bearer "+token)
	res, err := l.cfg.Server.HTTP().Do(req)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return nil, &httpError{res.StatusCode}
	}
	chain, err := io.ReadAll(io.LimitReader(res.Body, certificateMost))
	if err != nil {
		return nil, err
	}
	cert, err := l.signer.Pair(chain)
	return &cert, err
}
