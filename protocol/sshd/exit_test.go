package sshd

import (
	"slices"
	"testing"

	"golang.org/x/crypto/ssh"

	"github.com/remotegpu/remotegpu/protocol"
)

// said is a channel that notes what is said on it.
type said struct {
	ssh.Channel
	all []string
}

func (s *said) SendRequest(name string, _ bool, _ []byte) (bool, error) {
	s.all = append(s.all, name)
	return true, nil
}

func (s *said) CloseWrite() error {
	s.all = append(s.all, "EOF")
	return nil
}

// TestHowItEndedComesFirst: a client whose input has ended answers the end of
// output by closing, as OpenSSH does, and must have heard the status by then.
func TestHowItEndedComesFirst(t *testing.T) {
	for want, exit := range map[string]protocol.SessionExit{"exit-status": {Code: 7}, "exit-signal": {Code: 130, Signal: "INT"}} {
		ch := &said{}
		(&session{ch: ch}).exit(exit)
		if !slices.Equal(ch.all, []string{want, "EOF"}) {
			t.Errorf("it is said: %v", ch.all)
		}
	}
}
