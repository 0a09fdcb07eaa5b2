package main

import (
	"bytes"
	"crypto/sha256"
	"crypto/tls"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"testing"
	"time"

	"github.com/gorilla/websocket"
)

func TestTheLineKeepsOrderDelayAndEnd(t *testing.T) {
	echo, err := listen()
	if err != nil {
		t.Fatal(err)
	}
	defer echo.Close()
	go func() { _ = serve(echo, func(c net.Conn) { defer c.Close(); _, _ = io.Copy(c, c) }) }()
	const oneWay = 20 * time.Millisecond
	addr := make(chan string, 1)
	go func() {
		_ = delayEnd(settings{To: echo.Addr().String(), Delay: oneWay}, func(a ...string) { addr <- a[0] })
	}()
	c, err := net.Dial("tcp", <-addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	took, err := roundTrips(c, 5)
	if err != nil {
		t.Fatal(err)
	}
	if least := quantile(0, took); least < (2 * oneWay).Seconds() {
		t.Errorf("a round trip took %v s", least)
	}
	sent := make([]byte, 2*lineBytes+12345) // more than it holds
	for i := range sent {
		sent[i] = byte(rand.Uint32())
	}
	go func() {
		_, _ = c.Write(sent)
		_ = c.(*net.TCPConn).CloseWrite()
	}()
	got, err := io.ReadAll(c)
	if err != nil || sha256.Sum256(got) != sha256.Sum256(sent) {
		t.Errorf("%d of %d bytes came back, the same: %v, %v", len(got), len(sent), bytes.Equal(got, sent), err)
	}
}

func TestAFigureIsTheMedianOfPairs(t *testing.T) {
	b := &bench{}
	p := pairs{ours: []measured{{1}, {10}, {100}}, baseline: []measured{{2}, {10}, {50}}}
	b.add("x", "s", atMost(1), 0, p)
	if f := b.figures[0]; f.Value != 10 || f.Baseline != 10 || f.Ratio != 1 || !f.OK || f.Aim != "<= 1" {
		t.Errorf("%+v", f)
	}
	if atLeast(0.95).met(0.94, 0) || !atLeast(0.95).met(0.95, 0) || atMost(1.2).met(1.21, 0) || atMostMore(5).met(1, 5.1) || !atMostMore(5).met(9, 5) {
		t.Error("aims are not bounds")
	}
}

func TestPairsTakeTurns(t *testing.T) {
	var order []byte
	note := func(c byte) func() (measured, error) {
		return func() (measured, error) { order = append(order, c); return measured{1}, nil }
	}
	p, err := paired(3, note('A'), note('B'))
	if err != nil || string(order) != "ABABABAB" || len(p.ours) != 3 || len(p.baseline) != 3 {
		t.Errorf("%s, %d and %d, %v", order, len(p.ours), len(p.baseline), err)
	}
}

func TestABareBrokerAnswers(t *testing.T) {
	for _, plain := range []bool{false, true} {
		t.Run(fmt.Sprintf("plain %v", plain), func(t *testing.T) { bareBrokerAnswers(t, settings{Dir: t.TempDir(), Plain: plain}) })
	}
}

func bareBrokerAnswers(t *testing.T, s settings) {
	if err := writeCertificate(s.Dir); err != nil {
		t.Fatal(err)
	}
	addrs := make(chan []string, 1)
	go func() { _ = bareBroker(s, func(a ...string) { addrs <- a }) }()
	at := <-addrs
	cfg, err := s.tlsConfig()
	if err != nil {
		t.Fatal(err)
	}
	d := &websocket.Dialer{TLSClientConfig: cfg, Subprotocols: []string{"mqtt"}}
	c, err := dialBare(d, at[0], host)
	if err != nil {
		t.Fatal(err)
	}
	defer c.ws.Close()
	for range 3 {
		if ms, err := c.echo(); err != nil || ms <= 0 {
			t.Errorf("a message took %v ms, %v", ms, err)
		}
	}
	spare, err := dialWS(d, at[1])
	if err != nil {
		t.Fatal(err)
	}
	defer spare.Close()
	if _, ok := spare.NetConn().(*tls.Conn); ok == s.Plain {
		t.Errorf("the spare stream is by TLS: %v", ok)
	}
	if objects, stacks, err := memory(at[2]); err != nil || objects < 1<<16 || stacks < 1<<14 {
		t.Errorf("it holds %v and %v bytes, %v", objects, stacks, err)
	}
}
