package sshd

import (
	"context"
	"fmt"
	"time"
)

const (
	keepalive   = 15 * time.Second // from an answer to the next question
	answerAfter = 45 * time.Second // at most
)

var tooMany = fmt.Sprintf("at most %d sessions and forwarded connections at a time; close some", MaxChannels)

// keepAlive ends a connection whose client no longer answers.
func (s *server) keepAlive(ctx context.Context) {
	for {
		answer := make(chan error, 1)
		go func() {
			_, _, err := s.conn.SendRequest("keepalive@openssh.com", true, nil)
			answer <- err
		}()
		select {
		case <-ctx.Done():
			return
		case err := <-answer:
			if err != nil {
				return // it has ended
			}
		case <-time.After(answerAfter):
			s.conn.Close()
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(keepalive):
		}
	}
}
