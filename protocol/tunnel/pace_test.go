//go:build linux

package tunnel

import (
	"net"
	"os"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// TestPace: both ends of a connection are paced, whatever the system does by
// itself, where the kernel can.
func TestPace(t *testing.T) {
	can, err := os.ReadFile("/proc/sys/net/ipv4/tcp_available_congestion_control")
	if err != nil {
		t.Fatal(err)
	}
	want := ""
	if strings.Contains(string(can), "bbr") {
		want = "bbr"
	}
	cfg := net.ListenConfig{Control: Pace}
	l, err := cfg.Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	near, err := (&net.Dialer{Control: Pace}).DialContext(t.Context(), "tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer near.Close()
	far, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer far.Close()
	for _, c := range []net.Conn{near, far} {
		raw, err := c.(syscall.Conn).SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		var got string
		if err := raw.Control(func(fd uintptr) {
			got, err = unix.GetsockoptString(int(fd), unix.IPPROTO_TCP, unix.TCP_CONGESTION)
		}); err != nil {
			t.Fatal(err)
		}
		if err != nil || want != "" && got != want {
			t.Errorf("the connection is paced by %q (%v), want %q", got, err, want)
		}
	}
}
