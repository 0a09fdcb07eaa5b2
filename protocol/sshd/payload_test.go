package sshd

import (
	"strings"
	"testing"

	"golang.org/x/crypto/ssh"

	"github.com/remotegpu/remotegpu/protocol"
)

// FuzzPayloads gives what a client sends to every parser: none may panic, and
// what is accepted keeps to the limits of the wire.
func FuzzPayloads(f *testing.F) {
	f.Add(ssh.Marshal(setting{"LANG", "C"}))
	f.Add(ssh.Marshal(forward{"localhost", 8080}))
	f.Add(ssh.Marshal(endpoints{"127.0.0.1", 80, "::1", 50000}))
	f.Add(ssh.Marshal(x11{true, "MIT-MAGIC-COOKIE-1", "00ff", 0}))
	f.Add(ssh.Marshal(struct {
		Path, Reserved string
		Zero           uint32
	}{"/run/x.sock", "", 0}))
	f.Fuzz(func(t *testing.T, b []byte) {
		parseSetting(b)
		parseText(b)
		parseResize(b)
		if term, _, ok := parsePTY(b); ok && (term == "" || len(term) > 64) {
			t.Errorf("terminal %q", term)
		}
		if v, ok := parseForward(b); ok && v.Port > maxPort {
			t.Errorf("port %d", v.Port)
		}
		if to, ok := parseDirectTCP(b); ok && (to.Network != protocol.NetworkTCP || !strings.Contains(to.Address, ":")) {
			t.Errorf("target %+v", to)
		}
		if to, ok := parseDirectUnix(b); ok && (to.Network != protocol.NetworkUnix || to.Address == "") {
			t.Errorf("target %+v", to)
		}
		if x, ok := parseX11(b); ok && (len(x.Proto) > 64 || x.Screen > 63) {
			t.Errorf("display %+v", x)
		}
	})
}

func TestWhereToListen(t *testing.T) {
	for _, c := range []struct {
		f        forward
		at, name string
	}{
		{forward{"", 80}, ":80", ":80"},
		{forward{"*", 80}, ":80", "*:80"},
		{forward{"localhost", 0}, "127.0.0.1:0", "localhost:0"},
		{forward{"127.0.0.1", 80}, "127.0.0.1:80", "127.0.0.1:80"},
		{forward{"::1", 80}, "[::1]:80", "[::1]:80"},
	} {
		if at := c.f.target().Address; at != c.at || c.f.name() != c.name {
			t.Errorf("%+v: %s, %s", c.f, at, c.f.name())
		}
	}
}

func TestHostPort(t *testing.T) {
	for in, want := range map[string]endpoints{
		"10.0.0.1:99":         {"10.0.0.1", 99, "", 0},
		"[::ffff:10.0.0.1]:1": {"10.0.0.1", 1, "", 0},
		"[fe80::1%eth0]:5":    {"fe80::1%eth0", 5, "", 0},
		"":                    {"127.0.0.1", 0, "", 0},
		"name:80":             {"127.0.0.1", 0, "", 0},
	} {
		if host, port := hostPort(in); host != want.Host || port != want.Port {
			t.Errorf("%q: %s %d", in, host, port)
		}
	}
}
