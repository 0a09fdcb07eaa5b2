package relay_test

import (
	"crypto/tls"
	"io"
	"net"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/remotegpu/remotegpu/protocol"
)

var negotiation = []byte{3, 0, 0, 19, 14, 0xe0, 0, 0, 0, 0, 0, 1, 0, 8, 0, 3, 0, 0, 0}

// desktop is the header of a StreamRDP.
func desktop(workload, address string, req *protocol.RDPRequest) protocol.StreamHeader {
	return protocol.StreamHeader{
		Version: 1, Kind: protocol.StreamRDP, Workload: workload, User: "usr_x", RDP: req,
		Target: &protocol.Target{Network: protocol.NetworkTCP, Address: address},
	}
}

// listenAs answers every connection with text.
func listenAs(t *testing.T, text string) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				_, _ = io.WriteString(conn, text)
				_, _ = io.Copy(conn, conn) // until the relay leaves
			}()
		}
	}()
	return l.Addr().String()
}

func TestDesktopsThatAreRefused(t *testing.T) {
	b := newBox(t)
	ssh := listenAs(t, "SSH-2.0-OpenSSH_9.2\r\n")
	req := &protocol.RDPRequest{Negotiation: negotiation, Clipboard: protocol.ClipboardBoth}
	for _, c := range []struct {
		name string
		head protocol.StreamHeader
		code string
		says string
	}{
		{"nothing in the box", desktop(workload, "127.0.0.1:7998", req), protocol.ReplyRefused, "its image has no RDP server"},
		{"nothing on the host", desktop("", "127.0.0.1:7998", req), protocol.ReplyRefused, "nothing listens there"},
		{"another host's", desktop("", "192.0.2.1:3389", req), protocol.ReplyRefused, "Only the host's own"},
		{"by a name", desktop("", "localhost:3389", nil), protocol.ReplyRefused, "Only the host's own"},
		{"any address", desktop("", "0.0.0.0:3389", nil), protocol.ReplyRefused, "Only the host's own"},
		{"no RDP server", desktop("", ssh, req), protocol.ReplyRefused, "does not go on"},
		{"no RDP server in the box", desktop(workload, ssh, req), protocol.ReplyRefused, "does not go on"},
		{"no request", desktop("", ssh, &protocol.RDPRequest{Negotiation: []byte("GET / HTTP/1.1")}), protocol.ReplyRefused, "does not go on"},
		{"no such workload", desktop("env_other", ssh, req), protocol.ReplyNotFound, "no container on this host"},
		{"no target", protocol.StreamHeader{Version: 1, Kind: protocol.StreamRDP, Workload: workload}, protocol.ReplyUnsupported, "upgrade"},
	} {
		if _, r := b.begin(t, c.head); r.Code != c.code || !strings.Contains(r.Message, c.says) {
			t.Errorf("%s: %s %q", c.name, r.Code, r.Message)
		}
	}
}

// TestDesktopOfASystemsClient: its bytes go through as they are.
func TestDesktopOfASystemsClient(t *testing.T) {
	b := newBox(t)
	address := listenAs(t, "hello ")
	for _, workload := range []string{workload, ""} {
		c, r := b.begin(t, desktop(workload, address, nil))
		if r.Code != "" || r.RDP != nil {
			t.Fatalf("%+v", r)
		}
		_ = c.SetDeadline(time.Now().Add(30 * time.Second)) // ends a test that waits for what does not come
		if _, err := c.Write([]byte("world")); err != nil {
			t.Fatal(err)
		}
		got := make([]byte, len("hello world"))
		if _, err := io.ReadFull(c, got); err != nil || string(got) != "hello world" {
			t.Errorf("%q, %v", got, err)
		}
	}
}

// listenTLS is an RDP server up to TLS, and no further.
func listenTLS(t *testing.T) string {
	t.Helper()
	certified := httptest.NewTLSServer(nil)
	t.Cleanup(certified.Close)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				_, _ = io.ReadFull(conn, make([]byte, len(negotiation)))
				_, _ = conn.Write([]byte{3, 0, 0, 19, 14, 0xd0, 0, 0, 0x12, 0x34, 0, 2, 0, 8, 0, 1, 0, 0, 0})
				_, _ = io.Copy(io.Discard, tls.Server(conn, &tls.Config{Certificates: certified.TLS.Certificates})) // until the relay leaves
			}()
		}
	}()
	return l.Addr().String()
}

// TestDesktopLoginThatCannotBeSent: what the box says of whom to log in is
// bounded, and the person hears it.
func TestDesktopLoginThatCannotBeSent(t *testing.T) {
	b := newBox(t)
	address := listenTLS(t)
	if err := os.MkdirAll(b.dir+"/root/run/desktop", 0o755); err != nil {
		t.Fatal(err)
	}
	const most = protocol.MaxDesktopText
	for _, c := range []struct {
		file, says string
	}{
		{"user\n" + strings.Repeat("p", most) + "\n", ""},
		{strings.Repeat("\u00fc", most) + "\n" + strings.Repeat("\u4e2d", most) + "\n", ""},
		{"user\n" + strings.Repeat("p", most+1) + "\n", "at most 255 characters"},
		{strings.Repeat("u", most+1) + "\npass\n", "at most 255 characters"},
		{"user\n" + strings.Repeat("p", 70_000) + "\n", "at most 255 characters"},
		{"user\npass", "a line each"},
	} {
		write(t, b.dir+"/root"+protocol.DesktopCredentials, c.file)
		req := &protocol.RDPRequest{Negotiation: negotiation, Clipboard: protocol.ClipboardBoth}
		client, r := b.begin(t, desktop(workload, address, req))
		client.Close()
		if (r.Code == "") != (c.says == "") || !strings.Contains(r.Message, c.says) {
			t.Errorf("%d bytes: %q %q, want %q", len(c.file), r.Code, r.Message, c.says)
		}
	}
}
