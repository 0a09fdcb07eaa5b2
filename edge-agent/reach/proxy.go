package reach

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/base64"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"time"
)

// ProxyError is a proxy that answered, but did not let us through.
type ProxyError struct {
	Proxy  string // host:port
	Status int    // HTTP status
}

func (e *ProxyError) Error() string {
	return fmt.Sprintf("proxy %s answered %d %s to CONNECT", e.Proxy, e.Status, http.StatusText(e.Status))
}

func checkProxyAnswer(_ context.Context, proxy *url.URL, _ *http.Request, res *http.Response) error {
	if res.StatusCode != http.StatusOK {
		return &ProxyError{Proxy: proxy.Host, Status: res.StatusCode}
	}
	return nil
}

// Dial opens a TCP connection to address, by CONNECT if a proxy stands between.
func (s *Server) Dial(ctx context.Context, network, address string) (net.Conn, error) {
	proxy, err := s.proxy(&http.Request{Method: http.MethodConnect, URL: &url.URL{Scheme: "https", Host: address}})
	if err != nil {
		return nil, fmt.Errorf("read proxy settings: %w", err)
	}
	if proxy == nil {
		return s.dial(ctx, network, address)
	}
	conn, err := s.dial(ctx, "tcp", hostPort(proxy))
	if err != nil {
		return nil, fmt.Errorf("connect to proxy: %w", err)
	}
	if proxy.Scheme == "https" {
		conn = tls.Client(conn, &tls.Config{ServerName: proxy.Hostname(), MinVersion: tls.VersionTLS12})
	}
	through, err := connect(ctx, conn, proxy, address)
	if err != nil {
		conn.Close()
		return nil, err
	}
	return through, nil
}

func hostPort(u *url.URL) string {
	if u.Port() != "" {
		return u.Host
	}
	if u.Scheme == "https" {
		return net.JoinHostPort(u.Hostname(), "443")
	}
	return net.JoinHostPort(u.Hostname(), "80")
}

// connect asks the proxy at the other end of conn for a way to address.
func connect(ctx context.Context, conn net.Conn, proxy *url.URL, address string) (net.Conn, error) {
	deadline := time.Now().Add(connectWithin)
	if d, ok := ctx.Deadline(); ok {
		deadline = d
	}
	conn.SetDeadline(deadline)
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	req := &http.Request{Method: http.MethodConnect, URL: &url.URL{Opaque: address}, Host: address, Header: http.Header{}}
	if u := proxy.User; u != nil {
		password, _ := u.Password()
		req.Header.Set("Proxy-Authorization", "Basic "+base64.StdEncoding.EncodeToString([]byte(u.Username()+":"+password)))
	}
	if err := req.Write(conn); err != nil {
		return nil, fmt.Errorf("ask proxy %s: %w", proxy.Host, err)
	}
	in := bufio.NewReader(conn)
	res, err := http.ReadResponse(in, req)
	if err != nil {
		return nil, fmt.Errorf("read answer of proxy %s: %w", proxy.Host, err)
	}
	if err := checkProxyAnswer(ctx, proxy, req, res); err != nil {
		return nil, err
	}
	if !stop() {
		return nil, context.Cause(ctx)
	}
	conn.SetDeadline(time.Time{})
	return &buffered{Conn: conn, in: in}, nil
}

// buffered is a connection whose first bytes may have been read already.
type buffered struct {
	net.Conn
	in *bufio.Reader
}

func (b *buffered) Read(p []byte) (int, error) { return b.in.Read(p) }
