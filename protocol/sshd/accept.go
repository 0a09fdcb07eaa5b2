package sshd

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"io"
	"net"
	"strings"
	"sync/atomic"

	"golang.org/x/crypto/ssh"
)

const (
	version     = "SSH-2.0-RemoteGPU"
	maxIdentity = 255 // bytes of a client's first line, RFC 4253, 4.2
	maxKexInit  = 8 << 10
	msgKexInit  = 20
)

// Accept speaks SSH on c until the client has authenticated. It is
// ssh.NewServerConn, but that OpenSSH's client gets AES-GCM where it can: in
// its own order, which counts, that comes behind AES-CTR, which takes another
// pass for its hash. The list of a client comes before ours only if we wait for
// it, which not every client bears; OpenSSH's does.
func Accept(c net.Conn, cfg *ssh.ServerConfig) (Conn, error) {
	g, gcm, err := greet(c)
	if err != nil {
		return Conn{}, err
	}
	if gcm && cfg.Ciphers != nil {
		only := *cfg
		only.Ciphers = []string{ssh.CipherAES128GCM, ssh.CipherAES256GCM}
		cfg = &only
	}
	sc, channels, requests, err := ssh.NewServerConn(g, cfg)
	g.joins.Store(gcm && err == nil)
	return Conn{sc, channels, requests}, err
}

// greet says who we are and reads what the client is. What it has read comes
// again, and what it has said is not said again.
func greet(c net.Conn) (_ *greeted, gcm bool, err error) {
	if _, err := io.WriteString(c, version+"\r\n"); err != nil {
		return nil, false, err
	}
	var seen bytes.Buffer
	in := bufio.NewReader(c)
	again := &greeted{Conn: c, said: len(version) + 2}
	line, err := in.ReadSlice('\n')
	seen.Write(line)
	if err == nil && len(line) <= maxIdentity && strings.HasPrefix(string(line), "SSH-2.0-OpenSSH_") {
		gcm, err = offersGCM(io.TeeReader(in, &seen))
	}
	if err != nil && err != bufio.ErrBufferFull { // that one NewServerConn refuses
		return nil, false, err
	}
	rest, _ := in.Peek(in.Buffered())
	seen.Write(rest)
	again.first = seen.Bytes()
	return again, gcm, nil
}

// offersGCM reads a client's first packet, which is in the clear.
func offersGCM(r io.Reader) (bool, error) {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return false, err
	}
	size := binary.BigEndian.Uint32(head[:])
	if size > maxKexInit {
		return false, nil // NewServerConn judges it
	}
	packet := make([]byte, size)
	if _, err := io.ReadFull(r, packet); err != nil {
		return false, err
	}
	return listsGCM(packet), nil
}

// listsGCM reports whether a packet begins a key exchange in which AES-GCM is
// possible both ways: padding's length, type, 16 random bytes, and lists of
// names, of which the third and fourth are ciphers.
func listsGCM(packet []byte) bool {
	if len(packet) < 18 || packet[1] != msgKexInit {
		return false
	}
	rest := packet[18:]
	for i := range 4 {
		if len(rest) < 4 || uint32(len(rest)-4) < binary.BigEndian.Uint32(rest) {
			return false
		}
		n := binary.BigEndian.Uint32(rest)
		names := rest[4 : 4+n]
		rest = rest[4+n:]
		if i >= 2 && !bytes.Contains(names, []byte(ssh.CipherAES128GCM)) {
			return false
		}
	}
	return true
}

// greeted is a connection whose beginning is behind it.
type greeted struct {
	net.Conn
	first []byte // read, and to be read again
	said  int    // bytes that are on the wire already

	joins atomic.Bool // what is written are packets of AES-GCM
	whole packets
}

func (g *greeted) Read(p []byte) (int, error) {
	if len(g.first) == 0 {
		return g.Conn.Read(p)
	}
	n := copy(p, g.first)
	g.first = g.first[n:]
	return n, nil
}

func (g *greeted) Write(p []byte) (int, error) {
	if g.joins.Load() {
		return g.whole.write(g.Conn, p)
	}
	if g.said == 0 {
		return g.Conn.Write(p)
	}
	known := min(g.said, len(p))
	g.said -= known
	if known == len(p) {
		return known, nil
	}
	n, err := g.Conn.Write(p[known:])
	return known + n, err
}
