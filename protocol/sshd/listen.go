package sshd

import (
	"context"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/crypto/ssh"

	"github.com/remotegpu/remotegpu/protocol"
)

// maxListeners is how many places a connection may listen at.
const maxListeners = 32

// listeners are the places where a connection listens for its client.
type listeners struct {
	slots chan struct{} // one per listener

	mu   sync.Mutex        // guards what follows
	open map[string]Stream // by what the client calls them

	agentMu sync.Mutex // guards what follows, also while it is made
	agent   string     // the socket of the client's SSH agent; empty: none
}

func newListeners() *listeners {
	return &listeners{slots: make(chan struct{}, maxListeners), open: map[string]Stream{}}
}

// arrival makes the channel that tells a client who came.
type arrival func(protocol.Accepted) (channel string, payload []byte)

// maxRequests is how many global requests may wait for their turn.
const maxRequests = 256

// serveRequests answers global requests in their order, beside the reader of
// the connection: making a listener takes a while.
func (s *server) serveRequests(ctx context.Context, requests <-chan *ssh.Request) {
	queue := make(chan *ssh.Request, maxRequests)
	defer close(queue)
	go func() {
		for r := range queue {
			ok, payload := s.request(ctx, r)
			if r.WantReply {
				_ = r.Reply(ok, payload) // the client may be gone
			}
		}
	}()
	for r := range requests {
		select {
		case queue <- r:
		default:
			s.conn.Close() // it floods
		}
	}
}

func (s *server) request(ctx context.Context, r *ssh.Request) (ok bool, payload []byte) {
	switch r.Type {
	case "tcpip-forward", "cancel-tcpip-forward":
		f, ok := parseForward(r.Payload)
		if !ok {
			return false, nil
		}
		if r.Type == "tcpip-forward" {
			return s.forwardTCP(ctx, f)
		}
		return s.cancel(f.name()), nil
	case "streamlocal-forward@openssh.com", "cancel-streamlocal-forward@openssh.com":
		path, ok := parseText(r.Payload)
		if !ok || !strings.HasPrefix(path, "/") {
			return false, nil
		}
		if r.Type == "streamlocal-forward@openssh.com" {
			return s.forwardUnix(ctx, path), nil
		}
		return s.cancel(path), nil
	}
	return false, nil // an answer is all that a keepalive wants
}

// forwardTCP serves -R [ADDRESS:]PORT:…; with port 0 the answer says which one
// it is.
func (s *server) forwardTCP(ctx context.Context, f forward) (ok bool, payload []byte) {
	stream, at, err := s.listen(ctx, f.target())
	if err != nil {
		return false, nil
	}
	if f.Port == 0 {
		f.Port = portOf(at)
		payload = ssh.Marshal(struct{ Port uint32 }{f.Port})
	}
	s.put(f.name(), stream)
	go s.takeArrivals(ctx, stream, func(a protocol.Accepted) (string, []byte) {
		host, port := hostPort(a.Remote)
		return "forwarded-tcpip", ssh.Marshal(endpoints{f.Address, f.Port, host, port})
	})
	return true, payload
}

// forwardUnix serves -R /PATH:….
func (s *server) forwardUnix(ctx context.Context, path string) bool {
	stream, _, err := s.listen(ctx, protocol.Target{Network: protocol.NetworkUnix, Address: path})
	if err != nil {
		return false
	}
	s.put(path, stream)
	go s.takeArrivals(ctx, stream, func(protocol.Accepted) (string, []byte) {
		return "forwarded-streamlocal@openssh.com", ssh.Marshal(struct{ Path, Reserved string }{path, ""})
	})
	return true
}

// agentSocket returns the path in the environment behind which the client's
// SSH agent answers. All sessions of a connection share it.
func (s *server) agentSocket(ctx context.Context) (string, error) {
	s.agentMu.Lock()
	defer s.agentMu.Unlock()
	if s.agent != "" {
		return s.agent, nil
	}
	stream, path, err := s.listen(ctx, protocol.Target{Network: protocol.NetworkUnix})
	if err != nil {
		return "", err
	}
	s.agent = path
	go func() {
		s.takeArrivals(ctx, stream, func(protocol.Accepted) (string, []byte) { return "auth-agent@openssh.com", nil })
		s.agentMu.Lock()
		defer s.agentMu.Unlock()
		s.agent = ""
	}()
	return path, nil
}

// listen opens a StreamListen; takeArrivals must follow.
func (s *server) listen(ctx context.Context, t protocol.Target) (stream Stream, at string, err error) {
	select {
	case s.slots <- struct{}{}:
	default:
		return nil, "", fmt.Errorf("this connection listens at %d places already", maxListeners)
	}
	stream, at, err = s.Open(ctx, Request{Kind: protocol.StreamListen, Target: &t, Say: func(string) {}})
	if err != nil {
		<-s.slots
	}
	return stream, at, err
}

// takeArrivals opens a channel to the client for each who comes, until the
// listener is cancelled.
func (s *server) takeArrivals(ctx context.Context, stream Stream, tell arrival) {
	defer func() { <-s.slots }()
	defer s.remove(stream)
	stop := context.AfterFunc(ctx, func() { stream.Close() })
	defer stop()
	frames := protocol.NewFrameReader(stream)
	for {
		kind, payload, err := frames.Next()
		if err != nil {
			return
		}
		var a protocol.Accepted
		if kind != protocol.FrameAccepted || protocol.Unmarshal(payload, &a) != nil {
			continue // of a later version
		}
		select {
		case s.busy <- struct{}{}:
		default:
			continue // too many at a time; who came is sent away after a while
		}
		go func() {
			defer func() { <-s.busy }()
			s.take(ctx, a, tell)
		}()
	}
}

func (s *server) take(ctx context.Context, a protocol.Accepted, tell arrival) {
	stream, _, err := s.Open(ctx, Request{Kind: protocol.StreamAccept, Target: &protocol.Target{Address: a.ID}, Say: func(string) {}})
	if err != nil {
		return // who came has gone
	}
	channel, payload := tell(a)
	ch, requests, err := s.conn.OpenChannel(channel, payload)
	if err != nil {
		stream.Close() // nothing answers at the client's side
		return
	}
	move(ctx, ch, requests, stream)
}

func (l *listeners) put(name string, stream Stream) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.open[name] = stream
}

// cancel ends the listener that the client calls name.
func (l *listeners) cancel(name string) bool {
	l.mu.Lock()
	stream := l.open[name]
	l.mu.Unlock()
	if stream != nil {
		l.remove(stream)
	}
	return stream != nil
}

func (l *listeners) remove(stream Stream) {
	stream.Close()
	l.mu.Lock()
	defer l.mu.Unlock()
	maps.DeleteFunc(l.open, func(_ string, s Stream) bool { return s == stream })
}

// name is what both ends call the listener.
func (f forward) name() string { return net.JoinHostPort(f.Address, strconv.Itoa(int(f.Port))) }

// target is where to listen, after RFC 4254, 7.1.
func (f forward) target() protocol.Target {
	host := f.Address
	switch host {
	case "*":
		host = ""
	case "localhost":
		host = "127.0.0.1" // an image may have no /etc/hosts
	}
	return protocol.Target{Network: protocol.NetworkTCP, Address: net.JoinHostPort(host, strconv.Itoa(int(f.Port)))}
}

// portOf reads the port of an address that our own side has written.
func portOf(address string) uint32 {
	_, port := hostPort(address)
	return port
}

// hostPort takes an address apart; what cannot be read is nowhere.
func hostPort(address string) (host string, port uint32) {
	to, err := netip.ParseAddrPort(address)
	if err != nil {
		return "127.0.0.1", 0
	}
	return to.Addr().Unmap().String(), uint32(to.Port())
}
