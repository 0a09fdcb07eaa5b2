package access

import (
	"bufio"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/remotegpu/remotegpu/control/door"
)

// TestTooManyStrangers: connections without a key take all places of their own
// network for a while, then there is room again.
func TestTooManyStrangers(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(s *Service) {
		s.handshake = 5 * time.Second // all that is tried meanwhile takes less
		s.door = door.New("ssh", 3, 100, s.log)
	})
	var first net.Conn
	for i := range 3 {
		conn, err := net.Dial("tcp", w.addr)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if _, err := bufio.NewReader(conn).ReadString('\n'); err != nil { // its greeting: it has a slot
			t.Fatal(err)
		}
		if i == 0 {
			first = conn
		}
	}
	if _, _, err := w.client("box"); err == nil {
		t.Error("one more than there are places is let in")
	}
	if said := greets(t, w.addr, "127.0.0.1"); !strings.Contains(said, "try again") {
		t.Errorf("the one too many is told %q", said)
	}
	if said := greets(t, w.addr, "127.0.0.2"); said != "SSH-2.0-RemoteGPU\r\n" {
		t.Errorf("another network is told %q", said)
	}
	if _, err := io.Copy(io.Discard, first); err != nil { // until the deadline
		t.Error(err)
	}
	for {
		if _, _, err := w.client("box"); err == nil {
			return
		} else if t.Context().Err() != nil {
			t.Fatal(err)
		}
	}
}

// greets connects from an address and returns the first line that it is told.
func greets(t *testing.T, to, from string) string {
	t.Helper()
	conn, err := (&net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}).Dial("tcp", to)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	conn.SetReadDeadline(time.Now().Add(30 * time.Second))
	line, _ := bufio.NewReader(conn).ReadString('\n')
	return line
}

// TestAlgorithms: what is broken is not there to be agreed on, in whatever order
// a client asks for it.
func TestAlgorithms(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	signer, err := ssh.NewSignerFromKey(w.key)
	if err != nil {
		t.Fatal(err)
	}
	all := ssh.InsecureAlgorithms()
	try := func(name string, cfg ssh.Config, hostKeys ...string) {
		t.Helper()
		c, err := ssh.Dial("tcp", w.addr, &ssh.ClientConfig{
			Config: cfg, User: "box", Auth: []ssh.AuthMethod{ssh.PublicKeys(signer)},
			HostKeyCallback: ssh.InsecureIgnoreHostKey(), HostKeyAlgorithms: hostKeys, Timeout: 30 * time.Second,
		})
		if err == nil {
			c.Close()
			t.Errorf("%s is agreed on", name)
		} else if !strings.Contains(err.Error(), "no common algorithm") {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, name := range all.KeyExchanges {
		try(name, ssh.Config{KeyExchanges: []string{name}})
	}
	for _, name := range all.Ciphers {
		try(name, ssh.Config{Ciphers: []string{name}})
	}
	for _, name := range all.MACs {
		try(name, ssh.Config{MACs: []string{name}, Ciphers: []string{ssh.CipherAES128CTR}})
	}
	for _, name := range all.HostKeys {
		try(name, ssh.Config{}, name)
	}
	if len(all.KeyExchanges) == 0 || len(all.Ciphers) == 0 || len(all.MACs) == 0 {
		t.Error("the library knows of nothing that is broken: this test tests nothing")
	}
	w.mustClient("box")
}

// TestBanners: a client that says what no client says, however much of it and
// however slowly, is gone by the deadline, and costs the next one nothing.
func TestBanners(t *testing.T) {
	t.Parallel()
	const handshake = 5 * time.Second // enough for somebody beside them
	w := newWorld(t, func(s *Service) { s.handshake = handshake })
	banner := strings.Repeat("x", 200) + "\r\n"
	for name, say := range map[string]func(net.Conn) error{
		"lines before the version": func(c net.Conn) error { _, err := io.WriteString(c, banner); return err },
		"a line without an end":    func(c net.Conn) error { _, err := io.WriteString(c, strings.Repeat("x", 1<<16)); return err },
		"a line, slowly": func(c net.Conn) error {
			time.Sleep(20 * time.Millisecond)
			_, err := io.WriteString(c, "S")
			return err
		},
		"a packet of 4 GB": func(c net.Conn) error {
			_, err := io.WriteString(c, "SSH-2.0-OpenSSH_9\r\n\xff\xff\xff\xff\x01")
			return err
		},
		"packets without meaning": func(c net.Conn) error {
			_, err := io.WriteString(c, "SSH-2.0-OpenSSH_9\r\n"+strings.Repeat("\x00\x00\x00\x0c\x0a\x02aaaaaaaaaa", 1000))
			return err
		},
		"one key exchange after another": func(c net.Conn) error {
			_, err := io.WriteString(c, "SSH-2.0-x\r\n"+strings.Repeat("\x00\x00\x00\x24\x0a\x14"+strings.Repeat("\x00", 34), 100))
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			conn, err := net.Dial("tcp", w.addr)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			go io.Copy(io.Discard, conn)
			for start := time.Now(); say(conn) == nil; {
				if time.Since(start) > handshake+20*time.Second {
					t.Fatal("it may go on")
				}
			}
		})
	}
	t.Run("somebody beside them", func(t *testing.T) {
		t.Parallel()
		w.mustClient("box")
	})
}
