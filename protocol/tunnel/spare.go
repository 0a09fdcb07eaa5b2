package tunnel

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/remotegpu/remotegpu/protocol"
)

var (
	errDead   = errors.New("connection of the host has ended")
	errSilent = errors.New("host does not answer on its connection")
)

// spare is a connection without a stream yet. Something reads it from the
// start, so that its end is noticed and pings are answered; what comes first
// is the answer to the header.
type spare struct {
	conn  *Conn
	first chan message // of one
}

type message struct {
	data []byte
	err  error
}

// ask is a stream that a host was asked for.
type ask struct {
	host string
	got  chan *spare // of one
	over bool        // nobody waits any more; guarded by Hub.mu
}

// token returns one that says who has asked, for whoever it comes to.
func (h *Hub) token() string {
	if h.cfg.Name == "" {
		return rand.Text()
	}
	return h.cfg.Name + "." + rand.Text()
}

// askedBy returns the name of the hub that made a token.
func askedBy(token string) string {
	name, _, ok := strings.Cut(token, ".")
	if !ok {
		return ""
	}
	return name
}

// redeem takes a token, which works once and for its own host alone.
func (h *Hub) redeem(host, token string) *ask {
	h.mu.Lock()
	defer h.mu.Unlock()
	a := h.asked[token]
	if a == nil || a.host != host {
		return nil
	}
	delete(h.asked, token)
	return a
}

// deliver hands a connection to who asked for it, or keeps it warm.
func (h *Hub) deliver(host string, a *ask, s *spare) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if a == nil {
		a = h.waiting(host) // it need not wait until the request has come through
	}
	switch {
	case a != nil && !a.over && len(a.got) == 0:
		a.got <- s
	case len(h.spares[host]) < hubMaxSpares:
		h.keep(host, append(h.spares[host], s))
	default:
		s.conn.Close()
	}
}

// waiting returns an ask of the host, if one has nothing yet. It needs mu.
func (h *Hub) waiting(host string) *ask {
	for _, a := range h.asked {
		if a.host == host && !a.over && len(a.got) == 0 {
			return a
		}
	}
	return nil
}

// watch reads the first message. A spare that ends, or speaks unasked, is no
// spare.
func (h *Hub) watch(host string, s *spare) {
	data, err := s.conn.ReadMessage(maxHead)
	h.mu.Lock()
	list := h.spares[host]
	i := slices.Index(list, s)
	if i >= 0 {
		h.keep(host, slices.Delete(list, i, i+1))
	}
	h.mu.Unlock()
	if err != nil || i >= 0 {
		s.conn.Close()
	}
	s.first <- message{data, err}
}

// keep needs mu.
func (h *Hub) keep(host string, list []*spare) {
	h.warm += len(list) - len(h.spares[host])
	if len(list) == 0 {
		delete(h.spares, host)
		return
	}
	h.spares[host] = list
}

// take returns the youngest spare, which is the least likely to be dead.
func (h *Hub) take(host string) *spare {
	h.mu.Lock()
	defer h.mu.Unlock()
	list := h.spares[host]
	if len(list) == 0 {
		return nil
	}
	s := list[len(list)-1]
	h.keep(host, list[:len(list)-1])
	return s
}

// ask gets a connection by asking the host to dial one.
func (h *Hub) ask(ctx context.Context, host string) (*spare, error) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	d := protocol.Dial{Version: protocol.Version, Token: h.token(), Expires: time.Now().Add(askTimeout).Unix()}
	a := &ask{host: host, got: make(chan *spare, 1)}
	h.mu.Lock()
	h.asked[d.Token] = a
	d.Spares = uint32(min(maxSpares, 1+h.byHost[host]/2))
	h.mu.Unlock()
	defer h.giveUp(d.Token, a)
	for again := time.Second; ; again *= 2 { // MQTT at QoS 0 may lose one
		if err := h.cfg.Ask(ctx, host, d); err != nil {
			return nil, fmt.Errorf("ask host for a stream: %w", err)
		}
		select {
		case s := <-a.got:
			return s, nil
		case <-time.After(again):
		case <-ctx.Done():
			return nil, fmt.Errorf("wait for the host to dial: %w", ctx.Err())
		}
	}
}

// giveUp ends an ask; what comes late is a spare.
func (h *Hub) giveUp(token string, a *ask) {
	h.mu.Lock()
	delete(h.asked, token)
	a.over = true
	h.mu.Unlock()
	select {
	case s := <-a.got:
		h.deliver(a.host, nil, s)
	default:
	}
}

// start sends the header and waits for the answer; after errSilent it may
// still come (await).
func (s *spare) start(ctx context.Context, head []byte, wait time.Duration) (*Conn, error) {
	if err := s.conn.WriteMessage(head); err != nil {
		s.conn.Close()
		return nil, fmt.Errorf("%w: %w", errDead, err)
	}
	conn, err := s.await(ctx, wait)
	if err != nil && !errors.Is(err, errSilent) {
		s.conn.Close()
	}
	return conn, err
}

func (s *spare) await(ctx context.Context, wait time.Duration) (*Conn, error) {
	select {
	case m := <-s.first:
		if m.err != nil {
			return nil, fmt.Errorf("%w: %w", errDead, m.err)
		}
		return s.opened(m.data)
	case <-time.After(wait):
		return nil, errSilent
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// opened reads the agent's answer.
func (s *spare) opened(reply []byte) (*Conn, error) {
	var r protocol.StreamReply
	err := protocol.Unmarshal(reply, &r)
	if err == nil && r.Code != "" {
		err = &Refused{r.Code, r.Message}
	}
	if err != nil {
		s.conn.Close()
		return nil, err
	}
	s.conn.listens, s.conn.rdp, s.conn.key = r.Address, r.RDP, r.Key
	return s.conn, nil
}
