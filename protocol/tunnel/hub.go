package tunnel

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"github.com/remotegpu/remotegpu/protocol"
)

// HubConfig is what the control plane's side of the tunnel needs.
type HubConfig struct {
	// Ask sends a host the request to dial a stream. It may return ErrOffline.
	Ask func(ctx context.Context, host string, d protocol.Dial) error
	// Online reports whether a host can be asked at all; nil: Ask will tell.
	Online func(host string) bool
	// Name is this hub's among several that share an address, and so get each
	// other's connections; without a dot. Forward brings one that another hub
	// has asked for to that one, and answers the request.
	Name       string
	Forward    func(hub string, w http.ResponseWriter, r *http.Request)
	MaxSpares  int // warm connections of all hosts; 0: no limit. Others are asked for when they are needed
	MaxPerHost int // streams open at a time; 0: no cap
	MaxPerUser int // 0: no cap
	OpenRate   int // streams that a user may open per second, after a burst of ten times as many; 0: 50
	// Bytes per second of all streams of a user, of a host, and of one session, both
	// directions together; 0: no cap.
	UserRate, HostRate, SessionRate int
	Log                             *slog.Logger
}

const (
	askTimeout   = 15 * time.Second
	hedgeAfter   = 2 * time.Second  // a spare that is silent for so long may be dead
	spareTimeout = 5 * time.Second  // and after so long more is taken for it
	hubMaxSpares = 2 * maxSpares    // of one host
	fullFor      = 10 * time.Minute // until a host tries again that has no spare because there are enough
)

// Hub is the control plane's side: it takes in what agents dial and opens
// streams on it.
type Hub struct {
	cfg HubConfig

	mu     sync.Mutex // guards what follows
	spares map[string][]*spare
	warm   int                           // of all hosts
	asked  map[string]*ask               // by token
	open   map[string]map[*Conn]struct{} // streams, by host
	byHost map[string]int                // streams open and being opened
	byUser map[string]int
	rates  map[string]*rate.Limiter // by name; those that hold nobody up are forgotten
	// mostRates is how many there are before that is done.
	mostRates int
}

// NewHub returns a hub.
func NewHub(cfg HubConfig) *Hub {
	if cfg.OpenRate == 0 {
		cfg.OpenRate = 50
	}
	return &Hub{
		cfg: cfg, rates: map[string]*rate.Limiter{}, mostRates: maxRates, spares: map[string][]*spare{}, asked: map[string]*ask{},
		open: map[string]map[*Conn]struct{}{}, byHost: map[string]int{}, byUser: map[string]int{},
	}
}

// Accept takes a connection that host, already authenticated, has dialled, or
// forwards it.
func (h *Hub) Accept(host string, w http.ResponseWriter, r *http.Request) {
	token := r.Header.Get(protocol.StreamTokenHeader)
	if hub := askedBy(token); token != "" && hub != h.cfg.Name && h.cfg.Forward != nil {
		h.cfg.Forward(hub, w, r)
		return
	}
	h.AcceptHere(host, w, r)
}

// AcceptHere is Accept for a connection that goes no further, as one that was
// forwarded.
func (h *Hub) AcceptHere(host string, w http.ResponseWriter, r *http.Request) {
	var a *ask
	if token := r.Header.Get(protocol.StreamTokenHeader); token != "" {
		if a = h.redeem(host, token); a == nil {
			http.Error(w, "stream token is unknown, used or expired", http.StatusForbidden)
			return
		}
	} else if h.count(host) >= hubMaxSpares {
		http.Error(w, "enough spare connections", http.StatusTooManyRequests)
		return
	} else if h.full() {
		w.Header().Set("Retry-After", strconv.Itoa(int(fullFor.Seconds())))
		http.Error(w, "enough spare connections of all hosts; a stream is asked for when it is needed", http.StatusServiceUnavailable)
		return
	}
	conn, err := Upgrade(w, r)
	if err != nil {
		h.cfg.Log.Debug("tunnel connection", "host", host, "err", err)
		return
	}
	s := &spare{conn: conn, first: make(chan message, 1)}
	h.deliver(host, a, s)
	go h.watch(host, s)
}

// Online reports whether a stream to host has a chance.
func (h *Hub) Online(host string) bool {
	return h.count(host) > 0 || h.cfg.Online == nil || h.cfg.Online(host)
}

// count returns how many spares host has.
func (h *Hub) count(host string) int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.spares[host])
}

// full reports whether there is room for no more spares.
func (h *Hub) full() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.cfg.MaxSpares > 0 && h.warm >= h.cfg.MaxSpares
}

// Open opens a stream to host. It fails with ErrOffline at once when the host
// is not there, with ErrLimit at a cap, and with *Refused when the agent says
// no.
func (h *Hub) Open(ctx context.Context, host string, head protocol.StreamHeader) (*Conn, error) {
	b, err := protocol.Marshal(head)
	if err != nil {
		return nil, fmt.Errorf("encode stream header: %w", err)
	}
	if err := h.reserve(host, head.User); err != nil {
		return nil, err
	}
	conn, err := h.connect(ctx, host, b)
	if err != nil {
		h.release(host, head.User, nil)
		return nil, err
	}
	conn.onClose = func() { h.release(host, head.User, conn) }
	h.mu.Lock()
	defer h.mu.Unlock()
	conn.caps = h.byteCaps(host, head.User)
	if h.open[host] == nil {
		h.open[host] = map[*Conn]struct{}{}
	}
	h.open[host][conn] = struct{}{}
	return conn, nil
}

// connect tries spares until one answers. One that is dead is noticed at once
// or, when a NAT has forgotten it, by its silence; then a fresh one is asked for.
func (h *Hub) connect(ctx context.Context, host string, head []byte) (*Conn, error) {
	for s := h.take(host); s != nil; s = h.take(host) {
		conn, err := s.start(ctx, head, hedgeAfter)
		switch {
		case errors.Is(err, errSilent):
			return h.hedge(ctx, host, head, s)
		case !errors.Is(err, errDead):
			return conn, err
		}
	}
	return h.fresh(ctx, host, head)
}

// hedge asks for a fresh connection while a silent spare may still answer; the
// one that answers first is the stream.
func (h *Hub) hedge(ctx context.Context, host string, head []byte, silent *spare) (*Conn, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	type result struct {
		conn *Conn
		err  error
	}
	results := make(chan result, 2)
	go func() {
		conn, err := silent.await(ctx, spareTimeout)
		if err != nil {
			silent.conn.Close()
		}
		results <- result{conn, err}
	}()
	go func() {
		conn, err := h.fresh(ctx, host, head)
		results <- result{conn, err}
	}()
	first := <-results
	if first.err == nil || isRefused(first.err) || errors.Is(first.err, ErrOffline) { // silent, and offline: it has left the spare behind
		go func() { // whatever the other becomes is not needed
			if other := <-results; other.conn != nil {
				other.conn.Close()
			}
		}()
		return first.conn, first.err
	}
	second := <-results
	if second.err != nil && (errors.Is(second.err, errSilent) || errors.Is(second.err, errDead)) {
		return nil, first.err // it says more
	}
	return second.conn, second.err
}

func isRefused(err error) bool {
	var r *Refused
	return errors.As(err, &r)
}

// fresh opens a stream on a connection that the host is asked for.
func (h *Hub) fresh(ctx context.Context, host string, head []byte) (*Conn, error) {
	if h.cfg.Online != nil && !h.cfg.Online(host) {
		return nil, ErrOffline
	}
	s, err := h.ask(ctx, host)
	if err != nil {
		return nil, err
	}
	conn, err := s.start(ctx, head, askTimeout)
	if err != nil {
		s.conn.Close()
	}
	return conn, err
}

// reserve counts a stream of a host and a user, within their caps.
func (h *Hub) reserve(host, user string) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	whose := "for this user"
	if !isOwn(user) {
		whose = "for this app" // its users share them
	}
	switch {
	case h.cfg.MaxPerHost > 0 && h.byHost[host] >= h.cfg.MaxPerHost:
		return fmt.Errorf("%w to this host: at most %d at a time", ErrLimit, h.cfg.MaxPerHost)
	case h.cfg.MaxPerUser > 0 && h.byUser[user] >= h.cfg.MaxPerUser:
		return fmt.Errorf("%w %s: at most %d at a time", ErrLimit, whose, h.cfg.MaxPerUser)
	case !h.limiter("streams of user "+user, h.cfg.OpenRate, 10*h.cfg.OpenRate).Allow():
		return fmt.Errorf("%w %s: at most %d new ones per second", ErrLimit, whose, h.cfg.OpenRate)
	}
	h.byHost[host]++
	h.byUser[user]++
	return nil
}

func (h *Hub) release(host, user string, conn *Conn) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.byHost[host]--; h.byHost[host] == 0 {
		delete(h.byHost, host)
	}
	if h.byUser[user]--; h.byUser[user] == 0 {
		delete(h.byUser, user)
	}
	if delete(h.open[host], conn); len(h.open[host]) == 0 {
		delete(h.open, host)
	}
}

// Busy returns how many streams are open whose users would lose something by
// their end.
func (h *Hub) Busy() (n int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, streams := range h.open {
		for conn := range streams {
			if !conn.survives.Load() {
				n++
			}
		}
	}
	return n
}

// Drop ends everything of a host, as when it is retired.
func (h *Hub) Drop(host string) {
	h.drop(host, func(c *Conn) { c.CloseWithError(errors.New("the host may not be used any more")) })
}

func (h *Hub) drop(host string, end func(*Conn)) {
	for s := h.take(host); s != nil; s = h.take(host) {
		end(s.conn)
	}
	h.mu.Lock()
	var streams []*Conn
	for conn := range h.open[host] {
		streams = append(streams, conn)
	}
	h.mu.Unlock()
	for _, conn := range streams {
		end(conn) // it calls release
	}
}

// Close drops all hosts, as when the server stops, and says when to come back.
func (h *Hub) Close() {
	h.mu.Lock()
	var hosts []string
	for host := range h.spares {
		hosts = append(hosts, host)
	}
	for host := range h.open {
		hosts = append(hosts, host)
	}
	h.mu.Unlock()
	for _, host := range slices.Compact(slices.Sorted(slices.Values(hosts))) {
		h.drop(host, func(c *Conn) { c.CloseRestart(RestartAfter()) })
	}
}
