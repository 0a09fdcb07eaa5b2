package sshd

import (
	"context"
	"fmt"
	"time"
)

const (
	keepalive       = 15 * time.Second
	keepaliveMisses = 3
)

var tooMany = fmt.Sprintf("at most %d sessions and forwarded connections at a time; close some", MaxChannels)

// keepAlive ends a connection whose client no longer answers.
func (s *server) keepAlive(ctx context.Context) {
	answered := make(chan struct{}, 1)
	misses := 0
	for {
		go func() {
			if _, _, err := s.conn.SendRequest("keepalive@openssh.com", true, nil); err == nil {
				select {
				case answered <- struct{}{}:
				default: // another one has just been answered too
				}
			}
		}()
		select {
		case <-ctx.Done():
			return
		case <-time.After(keepalive):
		}
		select {
		case <-answered:
			misses = 0
		default:
			if misses++; misses >= keepaliveMisses {
				s.conn.Close()
				return
			}
		}
	}
}
