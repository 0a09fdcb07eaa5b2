package main

import (
	"context"
	"crypto/tls"
	"io"
	"log/slog"
	"net"
	"net/http"
	"time"

	"github.com/gorilla/websocket"
	rancher "github.com/rancher/remotedialer"
	"github.com/remotegpu/remotegpu/protocol"
	"github.com/remotegpu/remotegpu/protocol/tunnel"
	"github.com/sirupsen/logrus"
)

// host is the one host of a way.
const host = "host_00000000000000000000"

// asksPath is where the agent hears what it is asked for, in place of MQTT.
const asksPath = "/asks"

// tunnelGateway opens a stream on the host for every connection.
func tunnelGateway(s settings, ready func(...string)) error {
	cfg, err := s.tlsConfig()
	if err != nil {
		return err
	}
	inside, err := listen()
	if err != nil {
		return err
	}
	entry, err := listen()
	if err != nil {
		return err
	}
	asks := make(chan *tunnel.Conn, 1)
	hub := tunnel.NewHub(tunnel.HubConfig{Log: slog.New(slog.DiscardHandler), Ask: askBy(asks)})
	mux := http.NewServeMux()
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) { hub.Accept(host, w, r) })
	mux.HandleFunc(asksPath, func(w http.ResponseWriter, r *http.Request) {
		if c, err := tunnel.Upgrade(w, r); err == nil {
			asks <- c
		}
	})
	srv := http.Server{Handler: mux}
	go func() { _ = srv.Serve(tls.NewListener(tunnel.Listener(inside), cfg)) }() // until the process ends
	ready(entry.Addr().String(), inside.Addr().String())
	return serve(entry, func(c net.Conn) {
		z, err := hub.Open(context.Background(), host, protocol.StreamHeader{
			Version: protocol.Version, ID: "str_00000000000000000000", Kind: protocol.StreamSession, User: "usr_00000000000000000000",
		})
		if err != nil {
			c.Close()
			return
		}
		splice(c, z)
	})
}

// askBy asks over the connection in asks.
func askBy(asks chan *tunnel.Conn) func(context.Context, string, protocol.Dial) error {
	return func(_ context.Context, _ string, d protocol.Dial) error {
		text, err := protocol.Marshal(d)
		if err != nil {
			return err
		}
		c := <-asks
		defer func() { asks <- c }()
		return c.WriteMessage(text)
	}
}

func tunnelAgent(s settings, ready func(...string)) error {
	cfg, err := s.tlsConfig()
	if err != nil {
		return err
	}
	pool := tunnel.NewPool(tunnel.PoolConfig{
		Log: slog.New(slog.DiscardHandler),
		Dial: func(ctx context.Context, token string) (*tunnel.Conn, error) {
			header := http.Header{}
			if token != "" {
				header.Set(protocol.StreamTokenHeader, token)
			}
			return tunnel.Dial(ctx, tunnel.DialConfig{URL: "wss://" + s.To, TLS: cfg, Header: header})
		},
		Serve: func(_ context.Context, c *tunnel.Conn, _ protocol.StreamHeader) {
			z, err := net.Dial("tcp", s.Target)
			if err != nil {
				c.CloseWithError(err)
				return
			}
			if tunnel.Reply(c, protocol.StreamReply{}) == nil {
				splice(z, c)
			}
		},
	})
	asks, err := tunnel.Dial(context.Background(), tunnel.DialConfig{URL: "wss://" + s.To + asksPath, TLS: cfg})
	if err != nil {
		return err
	}
	go hear(asks, pool)
	ready()
	return pool.Run(context.Background())
}

func hear(asks *tunnel.Conn, pool *tunnel.Pool) {
	for {
		text, err := asks.ReadMessage(1 << 10)
		if err != nil {
			return
		}
		var d protocol.Dial
		if protocol.Unmarshal(text, &d) == nil {
			pool.Request(d)
		}
	}
}

func remotedialerGateway(s settings, ready func(...string)) error {
	logrus.SetOutput(io.Discard)
	cfg, err := s.tlsConfig()
	if err != nil {
		return err
	}
	inside, err := listen()
	if err != nil {
		return err
	}
	entry, err := listen()
	if err != nil {
		return err
	}
	hub := rancher.New(func(*http.Request) (string, bool, error) { return host, true, nil }, rancher.DefaultErrorWriter)
	srv := http.Server{Handler: hub}
	go func() { _ = srv.Serve(tls.NewListener(inside, cfg)) }() // until the process ends
	ready(entry.Addr().String(), inside.Addr().String())
	return serve(entry, func(c net.Conn) {
		z, err := hub.Dialer(host)(context.Background(), "tcp", s.To)
		if err != nil {
			c.Close()
			return
		}
		splice(c, z)
	})
}

func remotedialerAgent(s settings, ready func(...string)) error {
	logrus.SetOutput(io.Discard)
	cfg, err := s.tlsConfig()
	if err != nil {
		return err
	}
	ready()
	dialer := &websocket.Dialer{TLSClientConfig: cfg, HandshakeTimeout: 10 * time.Second}
	any := func(string, string) bool { return true }
	return rancher.ClientConnect(context.Background(), "wss://"+s.To, http.Header{}, dialer, any, nil)
}

func relayGateway(s settings, ready func(...string)) error {
	cfg, err := s.tlsConfig()
	if err != nil {
		return err
	}
	l, err := listen()
	if err != nil {
		return err
	}
	ready(l.Addr().String())
	return serve(l, func(c net.Conn) {
		z, err := tls.Dial("tcp", s.To, cfg)
		if err != nil {
			c.Close()
			return
		}
		splice(c, z)
	})
}

func relayAgent(s settings, ready func(...string)) error {
	cfg, err := s.tlsConfig()
	if err != nil {
		return err
	}
	l, err := listen()
	if err != nil {
		return err
	}
	ready(l.Addr().String())
	return serve(tls.NewListener(l, cfg), func(c net.Conn) {
		z, err := net.Dial("tcp", s.To)
		if err != nil {
			c.Close()
			return
		}
		splice(z, c)
	})
}
