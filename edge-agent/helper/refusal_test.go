package main

import (
	"strings"
	"syscall"
	"testing"

	"github.com/remotegpu/remotegpu/protocol"
)

// A refusal says where nothing listens: here, or wherever the address leads.
func TestRefusalSaysWhere(t *testing.T) {
	for _, tt := range []struct {
		network, address string
		here             bool
	}{
		{protocol.NetworkTCP, "127.0.0.1:80", true},
		{protocol.NetworkTCP, "127.8.9.1:80", true},
		{protocol.NetworkTCP, "localhost:80", true},
		{protocol.NetworkTCP, "[::1]:80", true},
		{protocol.NetworkTCP, "0.0.0.0:80", true},
		{protocol.NetworkUnix, "/tmp/none", true},
		{protocol.NetworkTCP, "203.0.113.10:80", false},
		{protocol.NetworkTCP, "example.org:80", false},
		{protocol.NetworkUDP, "[2001:db8::1]:80", false},
	} {
		got := refusal(protocol.Target{Network: tt.network, Address: tt.address}, syscall.ECONNREFUSED).Message
		if !strings.HasPrefix(got, "Nothing listens on "+tt.address) || strings.Contains(got, "in the environment") != tt.here {
			t.Errorf("%s: %s", tt.address, got)
		}
	}
}
