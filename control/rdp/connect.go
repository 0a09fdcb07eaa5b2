package rdp

import (
	"context"
	"errors"
	"io"
	"net/http"
	"sync"
	"time"

	"github.com/gorilla/websocket"

	"github.com/remotegpu/remotegpu/control/auth"
	"github.com/remotegpu/remotegpu/control/errs"
	"github.com/remotegpu/remotegpu/control/pg"
	"github.com/remotegpu/remotegpu/control/web"
	"github.com/remotegpu/remotegpu/protocol/tunnel"
)

const (
	requestTimeout = 10 * time.Second // until a page has sent its request
	pingEvery      = 15 * time.Second
	deadAfter      = 45 * time.Second
	writeTimeout   = time.Minute // of one write to a page that does not read
	maxMessage     = 1 << 20     // bytes of a page's message; a client's units are under 64 KiB
	bufSize        = 64 << 10
)

// The upgrader's own check lets in pages of this server, and programs, which
// send no Origin.
var (
	writeBufs sync.Pool
	upgrader  = websocket.Upgrader{ReadBufferSize: 16 << 10, WriteBufferSize: bufSize, WriteBufferPool: &writeBufs, HandshakeTimeout: requestTimeout, CheckOrigin: tunnel.SameOrigin}
)

// serveBrowser speaks RDCleanPath with a page.
func (s *Service) serveBrowser(api *web.API, w http.ResponseWriter, r *http.Request) {
	select {
	case s.slots <- struct{}{}:
	default:
		api.Fail(w, r, errs.E(errs.Unavailable, "Too many desktops are being opened right now; try again in a moment."))
		return
	}
	free := sync.OnceFunc(func() { <-s.slots })
	defer free()
	ws, err := upgrader.Upgrade(w, r, nil)
	if err != nil {
		return // Upgrade has answered
	}
	defer ws.Close()
	p := &page{ws: ws}
	conn, err := s.begin(r.Context(), p, auth.From(r.Context()).Remote)
	free()
	if err != nil {
		s.log.Info("desktop refused", "remote", auth.From(r.Context()).Remote, "err", err)
		return
	}
	defer conn.Close()
	p.serve(conn)
}

// begin takes the request, opens the stream and answers.
func (s *Service) begin(ctx context.Context, p *page, remote string) (*tunnel.Conn, error) {
	request, err := p.readRequest(s.patience)
	if err != nil {
		return nil, p.refuse(errs.E(errs.Invalid, "The page's request cannot be read.", err))
	}
	token, negotiation, err := parseCleanPath(request)
	if err != nil {
		return nil, p.refuse(errs.E(errs.Invalid, "The page's request cannot be read.", err))
	}
	d, c, err := s.redeem(ctx, token, remote)
	if err != nil {
		return nil, p.refuse(err)
	}
	conn, name, err := s.open(ctx, c, d, negotiation)
	if err != nil {
		return nil, p.refuse(err)
	}
	reply, err := answer(conn.RDP(), name)
	if err == nil {
		err = p.write(reply)
	}
	if err == nil && len(conn.RDP().Certificates) == 0 {
		err = errors.New("the RDP server refuses the client's protocols")
	}
	if err != nil {
		conn.Close()
	}
	return conn, err
}

// open connects with what d says, as far as c may now.
func (s *Service) open(ctx context.Context, c auth.Caller, d desktop, negotiation []byte) (conn *tunnel.Conn, name string, err error) {
	req := d.request(negotiation)
	if d.Host != "" {
		h, err := s.cfg.Host(ctx, c, d.Host)
		if err != nil {
			return nil, "", err
		}
		conn, err = s.cfg.Access.HostDesktop(ctx, c, h, req)
		return conn, h.Name, err
	}
	env, err := s.cfg.Environment(ctx, c, d.Workspace, d.Environment)
	if err != nil {
		return nil, "", err
	}
	conn, err = s.cfg.Access.Desktop(ctx, c, env, req)
	if err == nil && conn.RDP() == nil {
		conn.Close()
		err = errs.E(errs.Unavailable, "The host's agent is too old for desktops in a browser; upgrade it.")
	}
	return conn, env.Name, err
}

// page is a browser's end of the WebSocket: bytes in binary messages.
type page struct {
	ws   *websocket.Conn
	rest []byte // read with the request and not of it
}

func (p *page) readRequest(within time.Duration) ([]byte, error) {
	p.ws.SetReadLimit(maxCleanPath)
	_ = p.ws.SetReadDeadline(time.Now().Add(within)) // fails only on a closed socket
	var got []byte
	for {
		n, err := cleanPathLength(got)
		switch {
		case err != nil:
			return nil, err
		case n > 0 && len(got) >= n:
			p.rest = got[n:]
			return got[:n], nil
		case len(got) > maxCleanPath:
			return nil, errors.New("request is too long")
		}
		_, b, err := p.ws.ReadMessage()
		if err != nil {
			return nil, err
		}
		got = append(got, b...)
	}
}

func (p *page) write(b []byte) error {
	_ = p.ws.SetWriteDeadline(time.Now().Add(writeTimeout)) // as above
	return p.ws.WriteMessage(websocket.BinaryMessage, b)
}

// refuse tells the page why not, and returns err.
func (p *page) refuse(err error) error {
	b, marshalErr := refuse(web.Status(err))
	if marshalErr == nil {
		marshalErr = p.write(b)
	}
	reason := errs.Text(pg.Meaning(err))
	if len(reason) > 120 { // a close frame holds 123 bytes
		reason = reason[:120]
	}
	_ = p.ws.WriteControl(websocket.CloseMessage, websocket.FormatCloseMessage(websocket.CloseNormalClosure, reason), time.Now().Add(time.Second)) // it may be gone
	return errors.Join(err, marshalErr)
}

// serve moves bytes until one side ends.
func (p *page) serve(conn *tunnel.Conn) {
	p.ws.SetReadLimit(maxMessage)
	alive := func(string) error { return p.ws.SetReadDeadline(time.Now().Add(deadAfter)) }
	p.ws.SetPongHandler(alive)
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer p.ws.Close()
		p.down(conn)
	}()
	p.up(conn, alive)
	conn.Close()
	<-done
}

func (p *page) up(conn *tunnel.Conn, alive func(string) error) {
	if _, err := conn.Write(p.rest); err != nil {
		return
	}
	for {
		_ = alive("") // as above
		_, r, err := p.ws.NextReader()
		if err != nil {
			return
		}
		if _, err := io.Copy(conn, r); err != nil {
			return
		}
	}
}

func (p *page) down(conn *tunnel.Conn) {
	pings := time.NewTicker(pingEvery)
	defer pings.Stop()
	stop := make(chan struct{})
	defer close(stop)
	go func() { // a WebSocket's ping may be written beside a message
		for {
			select {
			case <-pings.C:
				_ = p.ws.WriteControl(websocket.PingMessage, nil, time.Now().Add(pingEvery)) // the reader notices the end
			case <-stop:
				return
			}
		}
	}()
	buf := make([]byte, bufSize)
	for {
		n, err := conn.Read(buf)
		if n > 0 {
			if p.write(buf[:n]) != nil {
				return
			}
		}
		if err != nil {
			reason := websocket.FormatCloseMessage(websocket.CloseNormalClosure, "")
			_ = p.ws.WriteControl(websocket.CloseMessage, reason, time.Now().Add(time.Second)) // it may be gone
			return
		}
	}
}
