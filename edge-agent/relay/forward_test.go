package relay_test

import (
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/remotegpu/remotegpu/protocol"
)

// TestDialCarriesBytesBothWaysAndHalfClose: a service that answers when it has
// read all. (The box has the network of the test.)
func TestDialCarriesBytesBothWaysAndHalfClose(t *testing.T) {
	b := newBox(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		sum := sha256.New()
		_, _ = io.Copy(sum, conn)
		fmt.Fprintf(conn, "%x", sum.Sum(nil))
	}()
	c, r := b.open(t, protocol.StreamDial, protocol.NetworkTCP, l.Addr().String())
	if r.Code != "" {
		t.Fatal(r.Message)
	}
	data := make([]byte, 3<<20)
	rand.Read(data)
	if _, err := c.Write(data); err != nil {
		t.Fatal(err)
	}
	c.CloseWrite()
	got, err := io.ReadAll(c)
	if want := fmt.Sprintf("%x", sha256.Sum256(data)); err != nil || string(got) != want {
		t.Errorf("the service got %s, want %s (%v)", got, want, err)
	}
}

func TestDialSaysWhyNot(t *testing.T) {
	b := newBox(t)
	for _, c := range []struct{ network, address, code, says string }{
		{protocol.NetworkTCP, "127.0.0.1:7999", protocol.ReplyRefused, "Nothing listens on 127.0.0.1:7999"},
		{protocol.NetworkUnix, "/tmp/none", protocol.ReplyRefused, "Nothing listens on /tmp/none"},
		{"icmp", "127.0.0.1", protocol.ReplyUnsupported, `"icmp"`},
		{protocol.NetworkTCP, "nonsense", protocol.ReplyRefused, "nonsense"},
	} {
		if _, r := b.open(t, protocol.StreamDial, c.network, c.address); r.Code != c.code || !strings.Contains(r.Message, c.says) {
			t.Errorf("%s %s: %s %q", c.network, c.address, r.Code, r.Message)
		}
	}
	if _, r := b.open(t, protocol.StreamDial, "", ""); r.Code != protocol.ReplyInternal {
		t.Errorf("no target: %+v", r)
	}
}

func TestDialOfDatagrams(t *testing.T) {
	b := newBox(t)
	u, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer u.Close()
	go func() {
		buf := make([]byte, 2048)
		for {
			n, from, err := u.ReadFrom(buf)
			if err != nil {
				return
			}
			_, _ = u.WriteTo(buf[:n], from)
		}
	}()
	c, r := b.open(t, protocol.StreamDial, protocol.NetworkUDP, u.LocalAddr().String())
	if r.Code != "" {
		t.Fatal(r.Message)
	}
	c.SetDeadline(time.Now().Add(30 * time.Second))
	frames := protocol.NewFrameReader(c)
	for _, want := range []string{"one datagram", "", "another"} {
		if err := protocol.WriteFrame(c, protocol.FrameDatagram, []byte(want)); err != nil {
			t.Fatal(err)
		}
		if kind, got, err := frames.Next(); err != nil || kind != protocol.FrameDatagram || string(got) != want {
			t.Errorf("sent %q, got %d %q %v", want, kind, got, err)
		}
	}
}

// TestListenAndAccept: what connects inside the box reaches the person outside
// who forwards, over TCP and a unix socket.
func TestListenAndAccept(t *testing.T) {
	b := newBox(t, "--user", "ann")
	if err := os.Chmod(b.dir+"/root/tmp", 0o777); err != nil {
		t.Fatal(err)
	}
	for _, network := range []string{protocol.NetworkTCP, protocol.NetworkUnix} {
		address := map[string]string{protocol.NetworkTCP: "127.0.0.1:0"}[network]
		l, r := b.open(t, protocol.StreamListen, network, address)
		if r.Code != "" {
			t.Fatal(r.Message)
		}
		inside := r.Address
		if network == protocol.NetworkUnix {
			inside = b.dir + "/root" + inside
		}
		program, err := net.Dial(network, inside)
		if err != nil {
			t.Fatal(err)
		}
		defer program.Close()
		if _, err := io.WriteString(program, "from inside"); err != nil {
			t.Fatal(err)
		}
		id := accepted(t, l)
		c, r2 := b.open(t, protocol.StreamAccept, network, id)
		if r2.Code != "" {
			t.Fatal(r2.Message)
		}
		got := make([]byte, len("from inside"))
		if _, err := io.ReadFull(c, got); err != nil || string(got) != "from inside" {
			t.Errorf("%s: %q %v", network, got, err)
		}
		if _, again := b.open(t, protocol.StreamAccept, network, id); again.Code != protocol.ReplyRefused {
			t.Errorf("%s: accepted twice: %+v", network, again)
		}
		l.Close()
		if err := listenerEnds(network, inside); err != nil {
			t.Errorf("%s: %v", network, err)
		}
	}
}

func accepted(t *testing.T, l *net.UnixConn) string {
	t.Helper()
	l.SetDeadline(time.Now().Add(30 * time.Second))
	var came protocol.Accepted
	kind, payload, err := protocol.NewFrameReader(l).Next()
	if err != nil || kind != protocol.FrameAccepted || protocol.Unmarshal(payload, &came) != nil {
		t.Fatalf("frame %d %x %v", kind, payload, err)
	}
	return came.ID
}

func listenerEnds(network, address string) error {
	for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		c, err := net.Dial(network, address)
		if err != nil {
			return nil
		}
		c.Close()
	}
	return errors.New("somebody listens still")
}

// TestForwardsHaveTheUsersRights: a socket that only root may use, and a folder
// that only root may write to.
func TestForwardsHaveTheUsersRights(t *testing.T) {
	b := newBox(t, "--user", "ann")
	root := b.dir + "/root"
	l, err := net.Listen("unix", root+"/home/roots.sock")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if _, r := b.open(t, protocol.StreamDial, protocol.NetworkUnix, "/home/roots.sock"); r.Code != protocol.ReplyRefused || !strings.Contains(r.Message, "may not use") {
		t.Errorf("a socket of root: %+v", r)
	}
	if _, r := b.open(t, protocol.StreamListen, protocol.NetworkUnix, "/root/new.sock"); r.Code != protocol.ReplyRefused || !strings.Contains(r.Message, "permission denied") {
		t.Errorf("a folder of root: %+v", r)
	}
}
