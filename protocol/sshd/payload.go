package sshd

import (
	"net"
	"strconv"

	"golang.org/x/crypto/ssh"

	"github.com/remotegpu/remotegpu/protocol"
)

// Payloads of requests and channels, as RFC 4254 and OpenSSH's PROTOCOL have
// them.

// setting is one environment variable.
type setting struct{ Name, Value string }

func parseSetting(payload []byte) (v setting, ok bool) {
	return v, ssh.Unmarshal(payload, &v) == nil
}

// text of "exec", "subsystem" and "signal".
func parseText(payload []byte) (text string, ok bool) {
	var p struct{ Text string }
	ok = ssh.Unmarshal(payload, &p) == nil
	return p.Text, ok
}

func parsePTY(payload []byte) (term string, size protocol.WindowSize, ok bool) {
	var p struct {
		Term                      string
		Cols, Rows, Width, Height uint32
		Modes                     string
	}
	if ssh.Unmarshal(payload, &p) != nil || len(p.Term) > 64 {
		return "", size, false
	}
	if p.Term == "" {
		p.Term = "dumb"
	}
	return p.Term, windowSize(p.Cols, p.Rows, p.Width, p.Height), true
}

func parseResize(payload []byte) (size protocol.WindowSize, ok bool) {
	var p struct{ Cols, Rows, Width, Height uint32 }
	if ssh.Unmarshal(payload, &p) != nil {
		return size, false
	}
	return windowSize(p.Cols, p.Rows, p.Width, p.Height), true
}

func windowSize(cols, rows, width, height uint32) protocol.WindowSize {
	const most = 1<<16 - 1
	return protocol.WindowSize{
		Cols: uint16(min(cols, most)), Rows: uint16(min(rows, most)),
		Width: uint16(min(width, most)), Height: uint16(min(height, most)),
	}
}

// forward of "tcpip-forward" and its cancellation.
type forward struct {
	Address string
	Port    uint32
}

func parseForward(payload []byte) (f forward, ok bool) {
	return f, ssh.Unmarshal(payload, &f) == nil && f.Port <= maxPort
}

const maxPort = 1<<16 - 1

// endpoints of "direct-tcpip", "forwarded-tcpip" and, without the first two,
// "x11".
type endpoints struct {
	Host       string
	Port       uint32
	OriginHost string
	OriginPort uint32
}

// parseDirectTCP reads where a client wants to be connected with.
func parseDirectTCP(payload []byte) (t protocol.Target, ok bool) {
	var p endpoints
	if ssh.Unmarshal(payload, &p) != nil || p.Host == "" || p.Port > maxPort {
		return t, false
	}
	return protocol.Target{Network: protocol.NetworkTCP, Address: net.JoinHostPort(p.Host, strconv.Itoa(int(p.Port)))}, true
}

// parseDirectUnix is its twin of OpenSSH.
func parseDirectUnix(payload []byte) (t protocol.Target, ok bool) {
	var p struct {
		Path     string
		Reserved string
		Zero     uint32
	}
	if ssh.Unmarshal(payload, &p) != nil || p.Path == "" {
		return t, false
	}
	return protocol.Target{Network: protocol.NetworkUnix, Address: p.Path}, true
}

// x11 of "x11-req".
type x11 struct {
	Single bool // one connection only
	Proto  string
	Cookie string // hexadecimal
	Screen uint32
}

func parseX11(payload []byte) (x x11, ok bool) {
	return x, ssh.Unmarshal(payload, &x) == nil && len(x.Proto) <= 64 && len(x.Cookie) <= 256 && x.Screen < 64
}
