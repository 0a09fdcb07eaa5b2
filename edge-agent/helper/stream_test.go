package main

import (
	"io"
	"net"
	"testing"
	"time"

	"github.com/remotegpu/remotegpu/protocol"
)

// dialService lets the helper connect an agent with a service of the box.
func dialService(t *testing.T) (agent *net.UnixConn, service net.Conn, ended chan struct{}) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	agent, far := unixPair(t)
	ended = make(chan struct{})
	go func() {
		defer close(ended)
		newServer(nil, account{}).dial(far, protocol.Target{Network: protocol.NetworkTCP, Address: l.Addr().String()})
	}()
	if service, err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { service.Close() })
	if kind, _, err := protocol.NewFrameReader(agent).Next(); err != nil || kind != protocol.FrameReply {
		t.Fatalf("frame %d, %v", kind, err)
	}
	return agent, service, ended
}

// TestAServiceThatIgnoresTheEnd: the agent is gone, and the service goes on as
// if it were not, without a word.
func TestAServiceThatIgnoresTheEnd(t *testing.T) {
	t.Parallel()
	agent, service, ended := dialService(t)
	if _, err := io.WriteString(agent, "last words"); err != nil {
		t.Fatal(err)
	}
	agent.Close()
	select {
	case <-ended:
	case <-time.After(10 * lingerFor):
		t.Fatal("the connection is kept for nobody")
	}
	if got, err := io.ReadAll(service); err != nil || string(got) != "last words" {
		t.Errorf("%q, %v", got, err)
	}
}

// TestAnAgentThatHasSaidAllStillListens: half an end is none.
func TestAnAgentThatHasSaidAllStillListens(t *testing.T) {
	t.Parallel()
	agent, service, ended := dialService(t)
	if err := agent.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(service); err != nil || len(got) != 0 {
		t.Fatalf("%q, %v", got, err)
	}
	select {
	case <-ended:
		t.Fatal("it ended with half of it")
	case <-time.After(lingerFor + lingerFor/2):
	}
	if _, err := io.WriteString(service, "an answer, late"); err != nil {
		t.Fatal(err)
	}
	service.Close()
	if got, err := io.ReadAll(agent); err != nil || string(got) != "an answer, late" {
		t.Errorf("%q, %v", got, err)
	}
	<-ended
}
