package tunnel

import (
	"context"
	"crypto/rand"
	"fmt"
	"log/slog"
	"net/http"
	"sync"
	"time"

	"github.com/remotegpu/remotegpu/protocol"
)

// HubConfig is what the control plane's side of the tunnel needs.
type HubConfig struct {
	// Ask sends a host the request to dial a stream.
	Ask func(ctx context.Context, host string, d protocol.Dial) error
	// Online reports whether a host can be asked at all.
	Online     func(host string) bool
	MaxPerHost int // streams open at a time; 0: 512
	MaxPerUser int // 0: 256
	Log        *slog.Logger
}

const (
	askTimeout   = 15 * time.Second
	hedgeAfter   = 2 * time.Second // a spare that is silent for so long may be dead
	hubMaxSpares = 2 * maxSpares
)

// Hub is the control plane's side: it takes in what agents dial and opens
// streams on it.
type Hub struct {
	cfg HubConfig

	mu     sync.Mutex // guards what follows
	spares map[string][]*spare
	asked  map[string]ask // by token
	byHost map[string]int // open streams
	byUser map[string]int
}

// ask is a stream that a host was asked for.
type ask struct {
	host string
	got  chan *spare // of one
}

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

// NewHub returns a hub.
func NewHub(cfg HubConfig) *Hub {
	if cfg.MaxPerHost == 0 {
		cfg.MaxPerHost = 512
	}
	if cfg.MaxPerUser == 0 {
		cfg.MaxPerUser = 256
	}
	return &Hub{cfg: cfg, spares: map[string][]*spare{}, asked: map[string]ask{}, byHost: map[string]int{}, byUser: map[string]int{}}
}

// Accept takes a connection that host, already authenticated, has dialled.
func (h *Hub) Accept(host string, w http.ResponseWriter, r *http.Request) {
	token := r.Header.Get(protocol.StreamTokenHeader)
	var waiting ask
	h.mu.Lock()
	full := token == "" && len(h.spares[host]) >= hubMaxSpares
	if token != "" {
		var known bool
		if waiting, known = h.asked[token]; !known || waiting.host != host {
			h.mu.Unlock()
			http.Error(w, "stream token is unknown, used or expired", http.StatusForbidden)
			return
		}
		delete(h.asked, token) // single use
	}
	h.mu.Unlock()
	if full {
		http.Error(w, "enough spare connections", http.StatusTooManyRequests)
		return
	}
	conn, err := Upgrade(w, r)
	if err != nil {
		h.cfg.Log.Debug("tunnel connection", "host", host, "err", err)
		return
	}
	s := &spare{conn: conn, first: make(chan message, 1)}
	if token != "" {
		go s.watch()
		waiting.got <- s
		return
	}
	h.mu.Lock()
	h.spares[host] = append(h.spares[host], s)
	h.mu.Unlock()
	go func() {
		s.watch()
		h.drop(host, s)
	}()
}

func (s *spare) watch() {
	data, err := s.conn.ReadMessage(maxHead)
	if err != nil {
		s.conn.Close()
	}
	s.first <- message{data, err}
}

// drop takes a spare that ended by itself out of the list.
func (h *Hub) drop(host string, s *spare) {
	h.mu.Lock()
	defer h.mu.Unlock()
	list := h.spares[host]
	for i, other := range list {
		if other == s {
			h.spares[host] = append(list[:i:i], list[i+1:]...)
		}
	}
	if len(h.spares[host]) == 0 {
		delete(h.spares, host)
	}
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
	if h.spares[host] = list[:len(list)-1]; len(list) == 1 {
		delete(h.spares, host)
	}
	return s
}

// Open opens a stream to host. It fails with ErrOffline at once when the host
// is not there, with ErrLimit at a cap, and with *Refused when the agent says
// no.
func (h *Hub) Open(ctx context.Context, host string, head protocol.StreamHeader) (*Conn, error) {
	if err := h.count(host, head.User, 1); err != nil {
		return nil, err
	}
	conn, err := h.open(ctx, host, head)
	if err != nil {
		_ = h.count(host, head.User, -1) // giving back never fails
		return nil, err
	}
	return conn, nil
}

func (h *Hub) open(ctx context.Context, host string, head protocol.StreamHeader) (*Conn, error) {
	b, err := protocol.Marshal(head)
	if err != nil {
		return nil, err
	}
	release := func() { _ = h.count(host, head.User, -1) }
	for s := h.take(host); s != nil; s = h.take(host) {
		if s.conn.WriteMessage(b) != nil {
			s.conn.Close()
			continue
		}
		select {
		case m := <-s.first:
			if m.err == nil {
				return s.opened(m.data, release)
			}
			s.conn.Close() // it was dead; the next one
		case <-time.After(hedgeAfter):
			return h.hedge(ctx, host, b, s, release)
		case <-ctx.Done():
			s.conn.Close()
			return nil, ctx.Err()
		}
	}
	if h.cfg.Online != nil && !h.cfg.Online(host) {
		return nil, ErrOffline
	}
	s, err := h.ask(ctx, host)
	if err != nil {
		return nil, err
	}
	return s.start(ctx, b, release)
}

// hedge asks for a fresh connection while a silent spare may still answer; the
// one that answers first is the stream.
func (h *Hub) hedge(ctx context.Context, host string, head []byte, silent *spare, release func()) (*Conn, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	type opened struct {
		conn *Conn
		err  error
	}
	fresh := make(chan opened, 1)
	go func() {
		s, err := h.ask(ctx, host)
		if err != nil {
			fresh <- opened{nil, err}
			return
		}
		conn, err := s.start(ctx, head, release)
		fresh <- opened{conn, err}
	}()
	select {
	case m := <-silent.first:
		if m.err == nil {
			go func() { // whatever the other becomes is not needed
				if o := <-fresh; o.conn != nil {
					o.conn.onClose = nil
					o.conn.Close()
				}
			}()
			return silent.opened(m.data, release)
		}
		o := <-fresh
		return o.conn, o.err
	case o := <-fresh:
		silent.conn.Close()
		return o.conn, o.err
	}
}

// ask gets a connection by asking the host to dial one.
func (h *Hub) ask(ctx context.Context, host string) (*spare, error) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	token := rand.Text()
	waiting := ask{host: host, got: make(chan *spare, 1)}
	h.mu.Lock()
	h.asked[token] = waiting
	spares := min(maxSpares, 1+h.byHost[host]/2)
	h.mu.Unlock()
	defer func() {
		h.mu.Lock()
		delete(h.asked, token)
		h.mu.Unlock()
	}()
	for again := time.Second; ; again *= 2 { // MQTT at QoS 0 may lose one
		d := protocol.Dial{Version: protocol.Version, Token: token, Expires: time.Now().Add(askTimeout).Unix(), Spares: uint32(spares)}
		if err := h.cfg.Ask(ctx, host, d); err != nil {
			return nil, fmt.Errorf("ask host for a stream: %w", err)
		}
		select {
		case s := <-waiting.got:
			return s, nil
		case <-time.After(again):
		case <-ctx.Done():
			select { // it may have come in the last moment
			case s := <-waiting.got:
				s.conn.Close()
			default:
			}
			return nil, ctx.Err()
		}
	}
}

// start sends the header on a connection that was asked for and waits for the
// answer.
func (s *spare) start(ctx context.Context, head []byte, release func()) (*Conn, error) {
	if err := s.conn.WriteMessage(head); err != nil {
		s.conn.Close()
		return nil, err
	}
	select {
	case m := <-s.first:
		if m.err != nil {
			s.conn.Close()
			return nil, m.err
		}
		return s.opened(m.data, release)
	case <-ctx.Done():
		s.conn.Close()
		return nil, ctx.Err()
	}
}

// opened reads the agent's answer.
func (s *spare) opened(reply []byte, release func()) (*Conn, error) {
	var r protocol.StreamReply
	err := protocol.Unmarshal(reply, &r)
	if err == nil && r.Code != "" {
		err = &Refused{r.Code, r.Message}
	}
	if err != nil {
		s.conn.Close()
		return nil, err
	}
	s.conn.onClose = release
	return s.conn, nil
}

// count adds to the streams of a host and a user, within their caps.
func (h *Hub) count(host, user string, n int) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	switch {
	case n > 0 && h.byHost[host] >= h.cfg.MaxPerHost:
		return fmt.Errorf("%w to this host: at most %d at a time", ErrLimit, h.cfg.MaxPerHost)
	case n > 0 && h.byUser[user] >= h.cfg.MaxPerUser:
		return fmt.Errorf("%w for you: at most %d at a time", ErrLimit, h.cfg.MaxPerUser)
	}
	if h.byHost[host] += n; h.byHost[host] == 0 {
		delete(h.byHost, host)
	}
	if h.byUser[user] += n; h.byUser[user] == 0 {
		delete(h.byUser, user)
	}
	return nil
}

// Drop closes the spare connections of a host, as when it is retired.
func (h *Hub) Drop(host string) {
	for s := h.take(host); s != nil; s = h.take(host) {
		s.conn.Close()
	}
}
