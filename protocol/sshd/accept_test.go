package sshd

import (
	"bytes"
	"crypto/ed25519"
	"encoding/binary"
	"io"
	"net"
	"testing"

	"golang.org/x/crypto/ssh"
)

// TestAccept: OpenSSH gets AES-GCM where it has it, whatever its order; others
// get what they like best; and who has no GCM gets in as well.
func TestAccept(t *testing.T) {
	ctr, gcm := ssh.CipherAES128CTR, ssh.CipherAES128GCM
	for _, tt := range []struct {
		client  string
		ciphers []string
		want    string
	}{
		{"SSH-2.0-OpenSSH_9.2p1 Debian-2+deb12u7", []string{ctr, gcm}, gcm},
		{"SSH-2.0-OpenSSH_for_Windows_9.5", []string{ctr, gcm}, gcm},
		{"SSH-2.0-OpenSSH_9.2p1", []string{ctr}, ctr},
		{"SSH-2.0-PuTTY_Release_0.78", []string{ctr, gcm}, ctr},
	} {
		near, far := sockets(t)
		go func() {
			c, _, _, err := ssh.NewClientConn(near, "", &ssh.ClientConfig{
				Config: ssh.Config{Ciphers: tt.ciphers}, ClientVersion: tt.client, HostKeyCallback: ssh.InsecureIgnoreHostKey(),
			})
			if err != nil {
				t.Errorf("%s: %v", tt.client, err)
				near.Close()
				return
			}
			_ = c.Wait()
		}()
		cfg := ServerConfig()
		cfg.NoClientAuth = true
		cfg.Ciphers = []string{gcm, ctr} // as on a CPU with AES
		cfg.AddHostKey(hostKey(t))
		c, err := Accept(far, cfg)
		if err != nil {
			t.Fatalf("%s: %v", tt.client, err)
		}
		if got := c.Conn.(ssh.AlgorithmsConnMetadata).Algorithms().Read.Cipher; got != tt.want || string(c.ClientVersion()) != tt.client {
			t.Errorf("%s that lists %v is taken for %s and gets %s, want %s", tt.client, tt.ciphers, c.ClientVersion(), got, tt.want)
		}
		c.Close()
	}
}

func hostKey(t *testing.T) ssh.Signer {
	_, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	signer, err := ssh.NewSignerFromKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return signer
}

func sockets(t *testing.T) (near, far net.Conn) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if near, err = net.Dial("tcp", l.Addr().String()); err != nil {
		t.Fatal(err)
	}
	if far, err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	return near, far
}

// script is a connection from which all has been sent.
type script struct {
	net.Conn
	in io.Reader
}

func (s script) Read(p []byte) (int, error)  { return s.in.Read(p) }
func (s script) Write(p []byte) (int, error) { return len(p), nil }

// FuzzGreet: whatever a client says first comes again, byte by byte.
func FuzzGreet(f *testing.F) {
	packet := append([]byte{4, msgKexInit}, make([]byte, 16)...)
	for _, names := range []string{"curve25519-sha256", "ssh-ed25519", ssh.CipherAES128GCM, ssh.CipherAES128GCM} {
		packet = append(binary.BigEndian.AppendUint32(packet, uint32(len(names))), names...)
	}
	f.Add(append(binary.BigEndian.AppendUint32([]byte("SSH-2.0-OpenSSH_9.2\r\n"), uint32(len(packet))), packet...))
	f.Add([]byte("SSH-2.0-OpenSSH_9.2\r\n\xff\xff\xff\xffmore"))
	f.Add([]byte("SSH-2.0-Go\r\nmore"))
	f.Add([]byte("GET / HTTP/1.1\r\n\r\n"))
	f.Fuzz(func(t *testing.T, said []byte) {
		c, _, err := greet(script{in: bytes.NewReader(said)})
		if err != nil {
			return
		}
		again, err := io.ReadAll(c)
		if err != nil || !bytes.Equal(again, said) {
			t.Errorf("%q comes again as %q, %v", said, again, err)
		}
	})
}
