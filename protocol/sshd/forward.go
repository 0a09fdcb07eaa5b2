package sshd

import (
	"context"
	"io"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/remotegpu/remotegpu/protocol"
)

// serveDial connects a channel of the client with what listens at t.
func (s *server) serveDial(ctx context.Context, nc ssh.NewChannel, t protocol.Target, ok bool) {
	if !ok {
		_ = nc.Reject(ssh.ConnectionFailed, "the request cannot be read") // the client may be gone
		return
	}
	stream, _, err := s.Open(ctx, Request{Kind: protocol.StreamDial, Target: &t, Say: func(string) {}})
	if err != nil {
		_ = nc.Reject(ssh.ConnectionFailed, s.Text(err)) // as above
		return
	}
	ch, requests, err := nc.Accept()
	if err != nil {
		stream.Close()
		return
	}
	move(ctx, ch, requests, stream)
}

// lingerFor is how long bytes that a client has sent before it closed its
// channel may take to their reader.
const lingerFor = 5 * time.Second

// move copies both ways until both ends have said all, or one is gone.
func move(ctx context.Context, ch ssh.Channel, requests <-chan *ssh.Request, stream Stream) {
	defer ch.Close()
	defer stream.Close()
	stop := context.AfterFunc(ctx, func() { stream.Close() })
	defer stop()
	back := make(chan struct{})
	go func() { // a service that says nothing would never notice that nobody listens
		ssh.DiscardRequests(requests)
		select {
		case <-back:
		case <-time.After(lingerFor):
			stream.Close()
		}
	}()
	go func() {
		defer close(back)
		if _, err := io.Copy(ch, stream); err != nil {
			ch.Close()
			stream.Close()
			return
		}
		_ = ch.CloseWrite() // the client may be gone
	}()
	if _, err := io.Copy(stream, ch); err != nil {
		ch.Close()
		stream.Close()
	} else {
		_ = stream.CloseWrite() // the service may be gone
	}
	<-back
}
