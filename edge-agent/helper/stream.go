package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/remotegpu/remotegpu/protocol"
)

const dialTimeout = 10 * time.Second

// stream serves a connection of the agent that is no session: it answers with
// a StreamReply, then come bytes or frames.
func (s *server) stream(c *net.UnixConn, payload []byte) {
	var h protocol.StreamHeader
	if err := protocol.Unmarshal(payload, &h); err != nil || h.Target == nil {
		answer(c, protocol.StreamReply{Code: protocol.ReplyInternal, Message: "The request for a stream cannot be read."})
		return
	}
	switch h.Kind {
	case protocol.StreamDial:
		s.dial(c, *h.Target)
	case protocol.StreamListen:
		s.listenFor(c, *h.Target)
	case protocol.StreamAccept:
		s.accept(c, h.Target.Address)
	default:
		answer(c, protocol.StreamReply{Code: protocol.ReplyUnsupported, Message: "The environment's helper cannot do that yet; restart the environment to get a newer one."})
	}
}

// answer reports whether the agent has it.
func answer(c *net.UnixConn, r protocol.StreamReply) bool {
	r.Version = protocol.Version
	r.Message = protocol.Cut(r.Message)
	return protocol.WriteDocument(c, protocol.FrameReply, r) == nil
}

// dial connects with a service of the container, as the container's user.
func (s *server) dial(c *net.UnixConn, t protocol.Target) {
	var to net.Conn
	err := s.who.do(func() (err error) {
		ctx, cancel := context.WithTimeout(context.Background(), dialTimeout)
		defer cancel()
		to, err = new(net.Dialer).DialContext(ctx, t.Network, t.Address)
		return err
	})
	if err != nil {
		answer(c, refusal(t, err))
		return
	}
	defer to.Close()
	if !answer(c, protocol.StreamReply{}) {
		return
	}
	if t.Network == protocol.NetworkUDP {
		moveDatagrams(c, to)
		return
	}
	move(c, to.(halfCloser))
}

// refusal says why nothing could be reached, and what to do.
func refusal(t protocol.Target, err error) protocol.StreamReply {
	var dns *net.DNSError
	var timeout interface{ Timeout() bool }
	r := protocol.StreamReply{Code: protocol.ReplyRefused}
	switch {
	case t.Network != protocol.NetworkTCP && t.Network != protocol.NetworkUDP && t.Network != protocol.NetworkUnix:
		r.Code, r.Message = protocol.ReplyUnsupported, fmt.Sprintf("Connections of kind %q cannot be made here.", t.Network)
	case errors.As(err, &dns):
		r.Message = fmt.Sprintf("The environment does not know the name in %s; check it with: getent hosts NAME.", t.Address)
	case errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, os.ErrNotExist):
		r.Message = fmt.Sprintf("Nothing listens on %s; start the service there, or check the address.", t.Address)
		if inside(t) {
			r.Message = fmt.Sprintf("Nothing listens on %s in the environment; start the service there, or check the address.", t.Address)
		}
	case errors.Is(err, os.ErrPermission):
		r.Message = fmt.Sprintf("The environment's user may not use %s.", t.Address)
	case errors.As(err, &timeout) && timeout.Timeout(), errors.Is(err, syscall.ENETUNREACH), errors.Is(err, syscall.EHOSTUNREACH):
		r.Message = fmt.Sprintf("The environment cannot reach %s: its network does not lead there, or nobody answers.", t.Address)
	default:
		r.Message = fmt.Sprintf("The environment cannot reach %s: %v.", t.Address, err)
	}
	return r
}

// inside reports whether t is in the environment itself.
func inside(t protocol.Target) bool {
	host, _, err := net.SplitHostPort(t.Address)
	if t.Network == protocol.NetworkUnix || err != nil {
		return true
	}
	ip := net.ParseIP(host)
	return host == "localhost" || ip.IsLoopback() || ip.IsUnspecified()
}

// halfCloser is a TCP or unix connection.
type halfCloser interface {
	net.Conn
	CloseWrite() error
}

// move copies both ways until both ends have said all, or one is gone.
func move(agent *net.UnixConn, service halfCloser) {
	back := make(chan struct{})
	go func() {
		defer close(back)
		copyOne(agent, service)
	}()
	copyOne(service, agent)
	go func() { // a service that is silent would never notice that nobody listens; it may read what was for it
		awaitGone(agent)
		_ = service.SetReadDeadline(time.Now().Add(lingerFor)) // fails only on a closed socket
	}()
	<-back
	agent.Close() // ends the goroutine
}

// awaitGone waits until c's peer, who has said all, has closed it, too, or c is
// closed.
func awaitGone(c *net.UnixConn) {
	raw, err := c.SyscallConn()
	if err != nil {
		return // it is closed
	}
	_ = raw.Read(func(fd uintptr) bool { // as above
		p := []unix.PollFd{{Fd: int32(fd)}} // a hangup is told unasked
		_, err := unix.Poll(p, 0)
		return err == nil && p[0].Revents&(unix.POLLHUP|unix.POLLERR) != 0
	})
}

// copyOne copies until the end of from. When to is gone, what from still sends
// is for nobody.
func copyOne(to, from halfCloser) {
	if _, err := io.Copy(to, from); err != nil {
		to.Close()
		from.Close()
		return
	}
	_ = to.CloseWrite() // it may be gone
}

// maxDatagram is what fits into a UDP datagram over IPv4.
const maxDatagram = 65507

// datagramsIdle is how long a flow of datagrams may be silent: it has no end of
// its own.
const datagramsIdle = 5 * time.Minute

// moveDatagrams exchanges frames of c with datagrams of u.
func moveDatagrams(c *net.UnixConn, u net.Conn) {
	go func() {
		defer c.Close()
		buf := make([]byte, maxDatagram)
		for {
			_ = u.SetReadDeadline(time.Now().Add(datagramsIdle)) // fails only on a closed socket
			n, err := u.Read(buf)
			if errors.Is(err, syscall.ECONNREFUSED) {
				continue // nobody listened for the last one; somebody may for the next
			}
			if err != nil || protocol.WriteFrame(c, protocol.FrameDatagram, buf[:n]) != nil {
				return
			}
		}
	}()
	frames := protocol.NewFrameReader(c)
	for {
		kind, payload, err := frames.Next()
		if err != nil {
			return
		}
		if kind == protocol.FrameDatagram {
			_ = u.SetReadDeadline(time.Now().Add(datagramsIdle)) // as above
			_, _ = u.Write(payload)                              // a datagram may be lost
		}
	}
}
