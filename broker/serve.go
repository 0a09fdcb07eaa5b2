package broker

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"runtime/debug"
	"time"

	"github.com/gorilla/websocket"
	"github.com/mochi-mqtt/server/v2/packets"
)

// Serve takes MQTT connections from l until ctx ends or the broker is closed,
// and closes l.
func (b *Broker) Serve(ctx context.Context, l net.Listener) error {
	defer l.Close()
	defer context.AfterFunc(ctx, func() { l.Close() })()
	b.mu.Lock()
	closed := b.closed
	b.listeners[l] = struct{}{}
	b.mu.Unlock()
	defer func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		delete(b.listeners, l)
	}()
	for wait := time.Duration(0); !closed; {
		c, err := l.Accept()
		switch {
		case err == nil:
			wait = 0
			go b.establish(&conn{Conn: c, raw: c, remote: address(c.RemoteAddr().String())})
		case ctx.Err() != nil || errors.Is(err, net.ErrClosed):
			return nil
		default: // out of files, most likely: those who are connected stay so
			wait = min(time.Second, max(2*wait, 5*time.Millisecond))
			b.cfg.Log.Error("mqtt accept", "err", err, "retry_ms", wait.Milliseconds())
			time.Sleep(wait)
		}
	}
	return nil
}

// ServeHTTP takes one MQTT connection over WebSocket, subprotocol mqtt.
func (b *Broker) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	remote := address(r.RemoteAddr)
	if b.cfg.Remote != nil {
		remote = b.cfg.Remote(r)
	}
	ws, err := upgrader.Upgrade(w, r, nil)
	if err != nil {
		return // Upgrade has answered
	}
	ws.SetReadLimit(2 * maxPacket)
	c := &conn{Conn: &wsConn{Conn: ws}, raw: ws.NetConn(), remote: remote}
	if ws.Subprotocol() != "mqtt" {
		_ = ws.WriteControl(websocket.CloseMessage, // the close below says it too
			websocket.FormatCloseMessage(websocket.CloseProtocolError, "ask for subprotocol mqtt"), time.Now().Add(byeTimeout))
		c.Close()
		return
	}
	go b.establish(c) // what the request had is given back: it is more than a session needs
}

// establish serves one connection until it ends.
func (b *Broker) establish(c *conn) {
	defer c.Close()
	if !b.limit.enter(c.remote) {
		b.cfg.Log.Debug("mqtt connection refused: too many from this address", "remote", c.remote.String())
		return
	}
	if !b.enter(c) {
		b.limit.settle(c.remote)
		return
	}
	defer b.leave(c)
	_ = c.SetDeadline(time.Now().Add(connectTimeout)) // mochi moves it after CONNECT
	err := c.sniff()
	if err == nil {
		err = b.speak(c)
	}
	b.cfg.Log.Debug("mqtt connection ended", "remote", c.remote.String(), "err", err)
}

// speak stands between what a client may send and the life of the server:
// mochi's decoders index past the end of some packets.
func (b *Broker) speak(c *conn) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("packet made the decoder panic: %v", p)
			b.cfg.Log.Warn("mqtt client sent what no client sends and was cut", "remote", c.remote.String(), "err", fmt.Errorf("%w\n%s", err, debug.Stack()))
		}
	}()
	return b.server.EstablishConnection("remotegpu", c)
}

func (b *Broker) enter(c *conn) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return false
	}
	b.conns[c] = struct{}{}
	b.wg.Add(1)
	return true
}

func (b *Broker) leave(c *conn) {
	if s := c.session.Load(); s != nil {
		b.forget(s)
	} else {
		b.limit.settle(c.remote)
	}
	b.mu.Lock()
	delete(b.conns, c)
	b.mu.Unlock()
	b.wg.Done()
}

// sniff reads the fixed header of the first packet and gives it back to Read:
// mochi would make room for whatever length a stranger claims.
func (c *conn) sniff() error {
	head := make([]byte, 2, 5)
	if _, err := io.ReadFull(c.Conn, head); err != nil {
		return fmt.Errorf("wait for CONNECT: %w", err)
	}
	if head[0] != packets.Connect<<4 {
		return errors.New("first packet is no CONNECT")
	}
	for len(head) < 5 && head[len(head)-1]&0x80 != 0 {
		head = head[:len(head)+1]
		if _, err := io.ReadFull(c.Conn, head[len(head)-1:]); err != nil {
			return fmt.Errorf("read length of CONNECT: %w", err)
		}
	}
	size, n := binary.Uvarint(head[1:]) // the same encoding as MQTT's
	if n <= 0 || size > maxConnect {
		return fmt.Errorf("CONNECT is over the limit of %d bytes", maxConnect)
	}
	c.first = head
	return nil
}

func address(hostport string) netip.Addr {
	ap, err := netip.ParseAddrPort(hostport)
	if err != nil {
		return netip.Addr{}
	}
	return ap.Addr().Unmap()
}
