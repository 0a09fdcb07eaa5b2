package external

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/eclipse/paho.golang/autopaho"
	"github.com/eclipse/paho.golang/paho"

	"github.com/remotegpu/remotegpu/broker"
	"github.com/remotegpu/remotegpu/protocol"
)

// mosquitto starts the real one, which lets everybody do everything, and
// returns its address.
func mosquitto(t *testing.T) *url.URL {
	t.Helper()
	for {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		address := l.Addr().(*net.TCPAddr)
		l.Close() // its port is free now, if nobody else is quicker
		conf := filepath.Join(t.TempDir(), "mosquitto.conf")
		text := fmt.Sprintf("listener %d 127.0.0.1\nallow_anonymous true\nuser root\nmax_queued_messages 0\n", address.Port)
		if err := os.WriteFile(conf, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		if listens(t, exec.Command("mosquitto", "-c", conf), address.String()) {
			return &url.URL{Scheme: "mqtt", Host: address.String()}
		}
	}
}

// listens starts a program and reports whether it listens at an address, or
// finds it taken.
func listens(t *testing.T, cmd *exec.Cmd, address string) bool {
	t.Helper()
	var said strings.Builder
	cmd.Stderr = &said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() { defer close(ended); _ = cmd.Wait() }()
	t.Cleanup(func() { cmd.Process.Kill(); <-ended })
	for late := time.After(30 * time.Second); ; {
		select {
		case <-ended:
			if !strings.Contains(said.String(), "Address already in use") {
				t.Fatalf("%s: %s", cmd, said.String())
			}
			return false
		case <-late:
			t.Fatalf("nothing listens at %s", address)
		case <-time.After(20 * time.Millisecond):
		}
		if c, err := net.Dial("tcp", address); err == nil {
			c.Close()
			return true
		}
	}
}

// knock is said until somebody listens; it counts for nothing.
const knock = "hello?"

func newClient(t *testing.T, at *url.URL, name string) *Client {
	t.Helper()
	c, err := New(Config{URL: at, Name: name, Log: slog.New(slog.NewTextHandler(io.Discard, nil))})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	if err := c.publisher.AwaitConnection(t.Context()); err != nil {
		t.Fatal(err)
	}
	return c
}

// agent is a client as hosts are.
func agent(t *testing.T, at *url.URL, id string) *autopaho.ConnectionManager {
	t.Helper()
	cm, err := autopaho.NewConnection(t.Context(), autopaho.ClientConfig{ServerUrls: []*url.URL{at}, KeepAlive: 10, ClientConfig: paho.ClientConfig{ClientID: id}})
	if err == nil {
		err = cm.AwaitConnection(t.Context())
	}
	if err != nil {
		t.Fatal(err)
	}
	return cm
}

func say(t *testing.T, cm *autopaho.ConnectionManager, host string, text string, retain bool) {
	t.Helper()
	p := &paho.Publish{Topic: protocol.HostTopic(host, protocol.TopicStatus), QoS: 1, Retain: retain, Payload: []byte(text)}
	if _, err := cm.Publish(t.Context(), p); err != nil {
		t.Fatal(err)
	}
}

// TestReceive: what hosts say comes in order, to one replica after another, and
// not once is lost or doubled in between; what is retained is not a host's.
func TestReceive(t *testing.T) {
	t.Parallel()
	at := mosquitto(t)
	cm := agent(t, at, "host_a")
	say(t, cm, "host_a", "from before", true)
	heard := make(chan string, 1000)
	var got, want []string
	n := 0
	speak := func(times int) {
		for range times {
			n++
			want = append(want, fmt.Sprint(n))
			say(t, cm, "host_a", fmt.Sprint(n), false)
		}
	}
	collect := func() {
		t.Helper()
		for len(got) < len(want) {
			select {
			case text := <-heard:
				got = append(got, text)
			case <-time.After(20 * time.Second):
				t.Fatalf("heard %d of %d", len(got), len(want))
			}
		}
	}
	for turn := range 4 {
		c := newClient(t, at, fmt.Sprint("rep_", turn))
		c.Handle(protocol.TopicStatus, func(host string, payload []byte) {
			if host != "host_a" {
				t.Errorf("from %s", host)
			}
			if string(payload) != knock {
				heard <- string(payload)
			}
		})
		ctx, stop := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- c.Receive(ctx) }()
		if turn == 0 { // nobody has ever subscribed: what is said before is for nobody
			for end := time.Now().Add(10 * time.Second); !c.Connected("host_a"); time.Sleep(20 * time.Millisecond) {
				say(t, cm, "host_a", knock, false)
				if time.Now().After(end) {
					t.Fatal("nothing is heard")
				}
			}
		}
		speak(50)
		collect()
		say(t, cm, "host_a", "retained", true)
		if !c.Connected("host_a") || c.Connected("host_b") {
			t.Error("who is there is not who was heard")
		}
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		if c.Connected("host_a") {
			t.Error("a replica that receives nothing thinks that a host is there")
		}
		speak(50) // while nobody leads
	}
	c := newClient(t, at, "rep_last")
	c.Handle(protocol.TopicStatus, func(_ string, payload []byte) { heard <- string(payload) })
	go c.Receive(t.Context())
	collect()
	if !slices.Equal(got, want) {
		t.Errorf("heard %v", got)
	}
}

// TestFlood: of a host that says too much not all is taken, and of the others
// nothing is lost.
func TestFlood(t *testing.T) {
	t.Parallel()
	at := mosquitto(t)
	loud, quiet := agent(t, at, "host_loud"), agent(t, at, "host_quiet")
	c := newClient(t, at, "rep_a")
	heard := make(chan string, 100_000)
	c.Handle(protocol.TopicStatus, func(host string, payload []byte) {
		if string(payload) != knock {
			heard <- host
		}
	})
	go c.Receive(t.Context())
	for end := time.Now().Add(10 * time.Second); !c.Connected("host_quiet"); time.Sleep(20 * time.Millisecond) {
		say(t, quiet, "host_quiet", knock, false)
		if time.Now().After(end) {
			t.Fatal("nothing is heard")
		}
	}
	const flood, calm = 40, 20
	text := strings.Repeat("x", 1_000_000) // all together ten times what is taken at once
	began := time.Now()
	for i := range flood {
		if _, err := loud.Publish(t.Context(), &paho.Publish{Topic: protocol.HostTopic("host_loud", protocol.TopicStatus), Payload: []byte(text)}); err != nil {
			t.Fatal(err)
		}
		if i%(flood/calm) == 0 {
			say(t, quiet, "host_quiet", "still here", false)
		}
	}
	say(t, quiet, "host_quiet", "the last", false)
	got := map[string]int{}
	for late := time.After(20 * time.Second); got["host_quiet"] <= calm; {
		select {
		case host := <-heard:
			got[host]++
		case <-late:
			t.Fatalf("heard %v", got)
		}
	}
	most := int(4.2 + 2.1*time.Since(began).Seconds()) // 4 MiB, and 2 MiB a second
	if n := got["host_loud"]; n < 4 || n > most {
		t.Errorf("%d of %d messages of a flood are taken, not at most %d", n, flood, most)
	}
}

// TestPublish: messages of a replica come, retained ones to who comes later.
func TestPublish(t *testing.T) {
	t.Parallel()
	at := mosquitto(t)
	c := newClient(t, at, "rep_a")
	topic := protocol.HostTopic("host_a", protocol.TopicPresence)
	if err := c.Publish(broker.Message{Topic: topic, Payload: []byte("there"), Retain: true}); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("mosquitto_sub", "-V", "5", "-h", at.Hostname(), "-p", at.Port(), "-t", topic, "-C", "1", "-W", "10", "-F", "%r %p").CombinedOutput()
	if err != nil || string(out) != "1 there\n" {
		t.Errorf("%q, %v", out, err)
	}
	c.Close()
	if err := c.Publish(broker.Message{Topic: topic, Expiry: time.Second}); err == nil {
		t.Error("nobody is there, and it is not said")
	}
}
