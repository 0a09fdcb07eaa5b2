package chaos

import (
	"context"
	"errors"
	"net"
	"testing"
	"time"
)

func TestNames(t *testing.T) {
	conn, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	names := NewNames(conn, net.IPv4(203, 0, 113, 10))
	r := net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "udp4", conn.LocalAddr().String())
	}}
	ask := func(within time.Duration) ([]net.IP, error) {
		ctx, cancel := context.WithTimeout(t.Context(), within)
		defer cancel()
		return r.LookupIP(ctx, "ip", "cloud.example.")
	}
	for _, tt := range []struct {
		does     int
		timeout  bool
		notFound bool
	}{{Silent, true, false}, {Fails, false, false}, {Denies, false, true}} {
		names.Do(tt.does)
		within := 10 * time.Second
		if tt.timeout {
			within = 300 * time.Millisecond
		}
		_, err := ask(within)
		if dns, ok := errors.AsType[*net.DNSError](err); !ok || dns.IsTimeout != tt.timeout || dns.IsNotFound != tt.notFound {
			t.Errorf("when it does %d: %#v", tt.does, err)
		}
	}
	names.Do(Answers)
	if got, err := ask(10 * time.Second); err != nil || len(got) != 1 || got[0].String() != "203.0.113.10" {
		t.Errorf("%v, %v", got, err)
	}
}
