package main

import (
	"context"
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"time"

	"github.com/gorilla/websocket"
	rancher "github.com/rancher/remotedialer"
	"github.com/sirupsen/logrus"
)

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
