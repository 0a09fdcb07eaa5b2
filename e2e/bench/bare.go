package main

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/pprof"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/gorilla/websocket"
	mqtt "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/hooks/auth"
	"github.com/mochi-mqtt/server/v2/listeners"

	"github.com/remotegpu/remotegpu/protocol"
)

// bareBroker is what an idle host is compared with: mochi's own broker with its
// own WebSocket listener, and gorilla's WebSocket, nothing else.
func bareBroker(s settings, ready func(...string)) error {
	cfg, err := s.tlsConfig()
	if err != nil {
		return err
	}
	limits := mqtt.NewDefaultServerCapabilities()
	limits.MaximumClientWritesPending = 256
	m := mqtt.New(&mqtt.Options{Capabilities: limits, Logger: slog.New(slog.DiscardHandler)})
	free, err := listen() // mochi's listener does not say which port it was given
	if err != nil {
		return err
	}
	free.Close()
	ws := listeners.NewWebsocket(listeners.Config{ID: "ws", Address: free.Addr().String(), TLSConfig: cfg})
	if err := errors.Join(m.AddHook(new(auth.AllowHook), nil), m.AddListener(ws), m.Serve()); err != nil {
		return err
	}
	if err := until("the bare broker listens", func() error { // which it does after Serve
		c, err := net.Dial("tcp", ws.Address())
		if err != nil {
			return err
		}
		return c.Close()
	}); err != nil {
		return err
	}
	spare, err := listen()
	if err != nil {
		return err
	}
	debug, err := listen()
	if err != nil {
		return err
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/debug/pprof/", pprof.Index)
	go func() { _ = http.Serve(debug, mux) }() // until the process ends
	ready(ws.Address(), spare.Addr().String(), debug.Addr().String())
	if cfg != nil {
		spare = tls.NewListener(spare, cfg)
	}
	return http.Serve(spare, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c, err := new(websocket.Upgrader).Upgrade(w, r, nil)
		if err != nil {
			return // it has answered
		}
		defer c.Close()
		for err == nil {
			_, _, err = c.ReadMessage()
		}
	}))
}

// bareClients connects as many idle clients as settings.Hosts says to a bare
// broker, each with the subscriptions of an agent and a WebSocket beside.
func bareClients(s settings, ready func(...string)) error {
	mqttAddr, spareAddr, _ := strings.Cut(s.To, " ")
	cfg, err := s.tlsConfig()
	if err != nil {
		return err
	}
	d := &websocket.Dialer{TLSClientConfig: cfg, Subprotocols: []string{"mqtt"}}
	errs := make(chan error, s.Hosts)
	slots := make(chan struct{}, 16)
	var joined sync.WaitGroup
	for i := range s.Hosts {
		slots <- struct{}{}
		joined.Go(func() {
			defer func() { <-slots }()
			c, err := dialBare(d, mqttAddr, fmt.Sprintf("%s%05d", host, i))
			if err == nil {
				go c.idle()
				_, err = dialWS(d, spareAddr)
			}
			errs <- err
		})
	}
	joined.Wait()
	for range s.Hosts {
		if err := <-errs; err != nil {
			return err
		}
	}
	ready("all")
	select {} // until the process ends
}

// bareClient speaks as much MQTT 5 as a message there and back needs.
type bareClient struct {
	ws   *websocket.Conn
	in   *bufio.Reader
	host string
}

// dialWS dials with TLS if d has a configuration of it.
func dialWS(d *websocket.Dialer, addr string) (*websocket.Conn, error) {
	scheme := "ws"
	if d.TLSClientConfig != nil {
		scheme = "wss"
	}
	ws, _, err := d.Dial(scheme+"://"+addr, nil)
	return ws, err
}

func dialBare(d *websocket.Dialer, addr, host string) (*bareClient, error) {
	ws, err := dialWS(d, addr)
	if err != nil {
		return nil, err
	}
	c := &bareClient{ws: ws, host: host}
	c.in = bufio.NewReaderSize(c, 4096)
	connect := append(short("MQTT"), 5, 2, 0, 60, 0) // version, clean start, keep-alive, no properties
	if err := c.say(0x10, append(connect, short(host)...)); err != nil {
		return nil, err
	}
	if err := c.hear(0x20); err != nil {
		return nil, err
	}
	subscribe := []byte{0, 1, 0} // packet 1, no properties
	for _, topic := range protocol.DownTopics {
		subscribe = append(append(subscribe, short(protocol.HostTopic(host, topic))...), 0)
	}
	if err := c.say(0x82, subscribe); err != nil {
		return nil, err
	}
	return c, c.hear(0x90)
}

func short(text string) []byte {
	return append(binary.BigEndian.AppendUint16(nil, uint16(len(text))), text...)
}

func (c *bareClient) say(kind byte, rest []byte) error {
	packet := append(binary.AppendUvarint([]byte{kind}, uint64(len(rest))), rest...) // the same encoding as MQTT's
	return c.ws.WriteMessage(websocket.BinaryMessage, packet)
}

// Read makes one stream of the messages.
func (c *bareClient) Read(p []byte) (int, error) {
	_, b, err := c.ws.ReadMessage()
	if len(b) > len(p) {
		return 0, io.ErrShortBuffer
	}
	return copy(p, b), err
}

// hear waits for a packet of a kind.
func (c *bareClient) hear(kind byte) error {
	for {
		got, err := c.in.ReadByte()
		if err != nil {
			return err
		}
		size, err := binary.ReadUvarint(c.in)
		if err != nil {
			return err
		}
		if _, err := c.in.Discard(int(size)); err != nil {
			return err
		}
		if got&0xf0 == kind&0xf0 {
			return nil
		}
	}
}

// idle keeps the connection.
func (c *bareClient) idle() {
	go func() {
		for c.say(0xc0, nil) == nil {
			time.Sleep(30 * time.Second)
		}
	}()
	for c.hear(0xd0) == nil {
	}
}

// echo publishes to itself, and waits for it; it returns the milliseconds.
func (c *bareClient) echo() (float64, error) {
	start := time.Now()
	message := append(short(protocol.HostTopic(c.host, protocol.TopicDesired)), 0)
	if err := c.say(0x30, append(message, make([]byte, 1024)...)); err != nil {
		return 0, err
	}
	err := c.hear(0x30)
	return time.Since(start).Seconds() * 1e3, err
}

// weigh lets the fleet in and returns what one of its hosts takes of the server's
// memory, and what bare connections of one would, in KiB.
func (c *crowd) weigh() (ours, bare float64, err error) {
	objects, stacks, err := memory(debugAddr)
	if err != nil {
		return 0, 0, err
	}
	if err := c.join(); err != nil {
		return 0, 0, err
	}
	after, afterStacks, err := memory(debugAddr)
	if err != nil {
		return 0, 0, err
	}
	bareObjects, bareStacks, err := c.bare()
	if err != nil {
		return 0, 0, err
	}
	each := float64(c.n) * 1024
	objects, stacks = (after-objects)/each, (afterStacks-stacks)/each
	fmt.Fprintf(os.Stderr, "an idle host: %.1f KiB of objects, %.1f of stacks; bare: %.1f and %.1f\n", objects, stacks, bareObjects, bareStacks)
	return objects + stacks, bareObjects + bareStacks, nil
}

// bare is what as many bare connections hold, each, in KiB, and keeps them for
// no longer.
func (c *crowd) bare() (objects, stacks float64, err error) {
	broker, err := c.b.start(settings{Role: "bare broker", Plain: c.plain})
	if err != nil {
		return 0, 0, err
	}
	defer broker.stop()
	before, beforeStacks, err := memory(broker.addrs[2])
	if err != nil {
		return 0, 0, err
	}
	const most = 2000 // they scale, and take files
	n := min(c.n, most)
	clients, err := c.b.start(settings{Role: "bare clients", To: broker.addrs[0] + " " + broker.addrs[1], Hosts: n, Plain: c.plain})
	if err != nil {
		return 0, 0, err
	}
	defer clients.stop()
	time.Sleep(5 * time.Second)
	after, afterStacks, err := memory(broker.addrs[2])
	each := float64(n) * 1024
	return (after - before) / each, (afterStacks - beforeStacks) / each, err
}

// memory is what a Go program holds after a collection, in bytes: objects, and
// stacks of goroutines.
func memory(debugAddr string) (objects, stacks float64, err error) {
	res, err := http.Get("http://" + debugAddr + "/debug/pprof/heap?gc=1&debug=1")
	if err != nil {
		return 0, 0, err
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	if err != nil {
		return 0, 0, err
	}
	value := func(name string) float64 {
		_, rest, _ := bytes.Cut(text, []byte("\n# "+name+" = "))
		n, _ := strconv.ParseFloat(string(bytes.TrimSpace(rest[:max(0, bytes.IndexAny(rest, "/\n"))])), 64)
		return n
	}
	objects, stacks = value("HeapAlloc"), value("Stack")
	if objects == 0 || stacks == 0 {
		return 0, 0, fmt.Errorf("the heap profile of %s does not say what is held", debugAddr)
	}
	return objects, stacks, nil
}
