package tunnel

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"sync"
	"time"

	"github.com/gorilla/websocket"

	"github.com/remotegpu/remotegpu/protocol"
)

// DialConfig says where and how to dial.
type DialConfig struct {
	URL    string // wss://…
	Header http.Header
	TLS    *tls.Config
	Proxy  func(*http.Request) (*url.URL, error) // nil: none
	// Dial opens the TCP connection; nil: as the system does, paced.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
}

const handshakeTimeout = 20 * time.Second

var writeBufs = sync.Pool{} // shared by all connections; held during a write alone

// upgradedBufSize makes the first record of TLS full: who need not mask copies
// no more than that of a message.
const upgradedBufSize = 16<<10 - 4

var upgradedBufs = sync.Pool{} // as writeBufs

// Rejected is an HTTP answer that is no WebSocket.
type Rejected struct {
	Status int
	Body   string        // at most 4 KiB of it
	After  time.Duration // when to come back; 0: not said
}

func (r *Rejected) Error() string {
	return fmt.Sprintf("server answers %d: %s", r.Status, r.Body)
}

// Dial opens a WebSocket.
func Dial(ctx context.Context, cfg DialConfig) (*Conn, error) {
	d := websocket.Dialer{
		NetDialContext: cfg.dialBatch, Proxy: cfg.Proxy, TLSClientConfig: cfg.TLS, HandshakeTimeout: handshakeTimeout,
		ReadBufferSize: readBufSize, WriteBufferSize: bufSize, WriteBufferPool: &writeBufs,
	}
	ws, resp, err := d.DialContext(ctx, cfg.URL, cfg.Header)
	if err != nil {
		if resp != nil && errors.Is(err, websocket.ErrBadHandshake) {
			body, _ := io.ReadAll(io.LimitReader(resp.Body, 4096))   // what came is enough
			after, _ := strconv.Atoi(resp.Header.Get("Retry-After")) // as a date or as nonsense: not said
			return nil, &Rejected{resp.StatusCode, string(body), time.Duration(min(max(after, 0), 3600)) * time.Second}
		}
		return nil, fmt.Errorf("dial %s: %w", cfg.URL, err)
	}
	return newConn(ws), nil
}

func (cfg DialConfig) dialBatch(ctx context.Context, network, addr string) (net.Conn, error) {
	dial := cfg.Dial
	if dial == nil {
		dial = (&net.Dialer{Control: Pace}).DialContext
	}
	c, err := dial(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	return &batch{Conn: c}, nil
}

var upgrader = websocket.Upgrader{
	ReadBufferSize: readBufSize, WriteBufferSize: upgradedBufSize, WriteBufferPool: &upgradedBufs,
	HandshakeTimeout: handshakeTimeout, CheckOrigin: SameOrigin, Subprotocols: []string{protocol.TerminalProtocol},
}

// SameOrigin is a CheckOrigin: it lets programs in, which send no Origin, and
// pages of this server; a page of another site could otherwise ride on a cookie.
func SameOrigin(r *http.Request) bool {
	origin := r.Header.Get("Origin")
	if origin == "" {
		return true
	}
	u, err := url.Parse(origin)
	return err == nil && u.Host == r.Host && (u.Scheme == "https" || r.TLS == nil) // nil: TLS ends before us
}

// Upgrade answers a request with a WebSocket. When it fails it has answered.
func Upgrade(w http.ResponseWriter, r *http.Request) (*Conn, error) {
	ws, err := upgrader.Upgrade(w, r, nil)
	if err != nil {
		return nil, fmt.Errorf("upgrade to WebSocket: %w", err)
	}
	return newConn(ws), nil
}
