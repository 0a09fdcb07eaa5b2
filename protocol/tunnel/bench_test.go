package tunnel

import (
	"context"
	"crypto/tls"
	"io"
	"net"
	"testing"

	"github.com/remotegpu/remotegpu/protocol"
)

// relayed returns a stream through a plain relay of two TCP hops with TLS in
// the middle: what the tunnel is measured against.
func relayed(b *testing.B, cert tls.Certificate, serve func(net.Conn)) net.Conn {
	b.Helper()
	listen := func(handle func(net.Conn)) string {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() { l.Close() })
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				go handle(c)
			}
		}()
		return l.Addr().String()
	}
	pipe := func(a, z net.Conn) {
		go io.Copy(a, z)
		io.Copy(z, a)
	}
	target := listen(serve)
	hop := listen(func(c net.Conn) {
		z, err := net.Dial("tcp", target)
		if err == nil {
			pipe(tls.Server(c, &tls.Config{Certificates: []tls.Certificate{cert}}), z)
		}
	})
	entry := listen(func(c net.Conn) {
		z, err := tls.Dial("tcp", hop, &tls.Config{InsecureSkipVerify: true})
		if err == nil {
			pipe(c, z)
		}
	})
	c, err := net.Dial("tcp", entry)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { c.Close() })
	return c
}

// tunnelled returns a TCP connection that a gateway moves over a stream to a
// TCP target beside the agent: the same hops as relayed.
func tunnelled(b *testing.B, serve func(net.Conn)) net.Conn {
	b.Helper()
	target, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { target.Close() })
	go func() {
		for {
			c, err := target.Accept()
			if err != nil {
				return
			}
			go serve(c)
		}
	}()
	w := newWorld(b, HubConfig{}, func(_ context.Context, c *Conn, _ protocol.StreamHeader) {
		z, err := net.Dial("tcp", target.Addr().String())
		if err != nil || Reply(c, protocol.StreamReply{}) != nil {
			return
		}
		defer z.Close()
		go io.Copy(c, z)
		io.Copy(z, c)
	})
	w.run(b)
	w.waitSpare(b)
	gateway, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { gateway.Close() })
	go func() {
		c, err := gateway.Accept()
		if err != nil {
			return
		}
		z, err := w.hub.Open(context.Background(), testHost, header())
		if err != nil {
			return
		}
		go io.Copy(z, c)
		io.Copy(c, z)
	}()
	c, err := net.Dial("tcp", gateway.Addr().String())
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { c.Close() })
	return c
}

func bothWays(b *testing.B, serve func(net.Conn), measure func(b *testing.B, c net.Conn)) {
	w := newWorld(b, HubConfig{}, echo) // for its certificate
	cert := w.srv.TLS.Certificates[0]
	b.Run("relay", func(b *testing.B) { measure(b, relayed(b, cert, serve)) })
	b.Run("tunnel", func(b *testing.B) { measure(b, tunnelled(b, serve)) })
}

// BenchmarkThroughput is one bulk stream down, TLS in the middle.
func BenchmarkThroughput(b *testing.B) {
	chunk := make([]byte, 64<<10)
	source := func(c net.Conn) {
		defer c.Close()
		io.ReadFull(c, make([]byte, 1))
		for {
			if _, err := c.Write(chunk); err != nil {
				return
			}
		}
	}
	bothWays(b, source, func(b *testing.B, c net.Conn) {
		buf := make([]byte, len(chunk))
		c.Write([]byte{1})
		io.ReadFull(c, buf)
		b.SetBytes(int64(len(chunk)))
		for b.Loop() {
			if _, err := io.ReadFull(c, buf); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// BenchmarkRoundTrip is 64 bytes there and back on an idle stream.
func BenchmarkRoundTrip(b *testing.B) {
	bothWays(b, func(c net.Conn) { io.Copy(c, c) }, func(b *testing.B, c net.Conn) {
		buf := make([]byte, 64)
		for b.Loop() {
			c.Write(buf)
			if _, err := io.ReadFull(c, buf); err != nil {
				b.Fatal(err)
			}
		}
	})
}
