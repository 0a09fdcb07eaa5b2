package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"sync"
	"time"

	"github.com/eclipse/paho.golang/packets"
	"github.com/eclipse/paho.golang/paho"
	"github.com/golang-jwt/jwt/v5"
	"golang.org/x/crypto/ssh"

	"github.com/remotegpu/remotegpu/protocol"
)

// samples are milliseconds that things took.
type samples struct {
	Request   []float64 `json:"request"`   // the list of hosts, on a connection that is there
	Keystroke []float64 `json:"keystroke"` // a byte to an environment and back, in a session that is there
	Heartbeat []float64 `json:"heartbeat"` // a host's status until it is acknowledged
	Login     []float64 `json:"login"`     // a new SSH connection, until it is authenticated
}

// behave does each thing again and again and prints how long it took.
func (p *peer) behave(lasts time.Duration) error {
	request := func() error { return p.get("/api/v1/hosts") }
	session, key, err := p.session()
	if err != nil {
		return fmt.Errorf("session: %w", err)
	}
	defer session.Close()
	beat, err := p.heart()
	if err != nil {
		return fmt.Errorf("heartbeat: %w", err)
	}
	login := func() error {
		c, err := p.ssh()
		if err == nil {
			c.Close()
		}
		return err
	}
	var s samples
	var all sync.WaitGroup
	fails := make([]error, 4)
	for i, w := range []struct {
		into  *[]float64
		every time.Duration
		once  func() error
	}{{&s.Request, 40 * time.Millisecond, request}, {&s.Keystroke, 40 * time.Millisecond, key}, {&s.Heartbeat, 250 * time.Millisecond, beat}, {&s.Login, 250 * time.Millisecond, login}} {
		all.Go(func() { *w.into, fails[i] = measure(lasts, w.every, w.once) })
	}
	all.Wait()
	if err := errors.Join(fails...); err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(s)
}

func measure(lasts, every time.Duration, once func() error) (took []float64, err error) {
	if err := once(); err != nil { // the first one makes the connection
		return nil, err
	}
	for end := time.Now().Add(lasts); time.Now().Before(end); time.Sleep(every) {
		start := time.Now()
		if err := once(); err != nil {
			return nil, err
		}
		took = append(took, time.Since(start).Seconds()*1000)
	}
	return took, nil
}

func (p *peer) get(path string) error { return p.do(http.MethodGet, path, p.Token, nil, nil) }

func (p *peer) post(path string, in, out any) error {
	b, err := json.Marshal(in)
	if err != nil {
		return err
	}
	return p.do(http.MethodPost, path, "", b, out)
}

func (p *peer) do(method, path, token string, body []byte, out any) error {
	req, err := http.NewRequestWithContext(p.ctx, method, p.url(path), bytes.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	res, err := p.client.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		return err
	}
	if res.StatusCode >= 300 {
		return fmt.Errorf("%s %s: %s: %.200s", method, path, res.Status, b)
	}
	switch out := out.(type) {
	case nil:
		return nil
	case *[]byte: // as it is
		*out = b
		return nil
	}
	return json.Unmarshal(b, out)
}

func (p *peer) ssh() (*ssh.Client, error) {
	pem, err := os.ReadFile(p.Key)
	if err != nil {
		return nil, err
	}
	signer, err := ssh.ParsePrivateKey(pem)
	if err != nil {
		return nil, err
	}
	return ssh.Dial("tcp", net.JoinHostPort(p.Address, p.SSH), &ssh.ClientConfig{
		User: p.Env, Auth: []ssh.AuthMethod{ssh.PublicKeys(signer)}, HostKeyCallback: ssh.InsecureIgnoreHostKey(), Timeout: 20 * time.Second,
	})
}

// session opens a session whose program sends back what it is sent.
func (p *peer) session() (io.Closer, func() error, error) {
	c, err := p.ssh()
	if err != nil {
		return nil, nil, err
	}
	s, err := c.NewSession()
	if err != nil {
		return nil, nil, err
	}
	in, err := s.StdinPipe()
	if err != nil {
		return nil, nil, err
	}
	out, err := s.StdoutPipe()
	if err != nil {
		return nil, nil, err
	}
	if err := s.Start("cat"); err != nil {
		return nil, nil, err
	}
	return c, func() error {
		if _, err := in.Write([]byte("x")); err != nil {
			return err
		}
		_, err := io.ReadFull(out, make([]byte, 1))
		return err
	}, nil
}

// proof is a token that the host signs.
func (id identity) proof(audience string) (string, error) {
	now := time.Now()
	return jwt.NewWithClaims(jwt.SigningMethodEdDSA, jwt.RegisteredClaims{
		Subject: id.host, Audience: jwt.ClaimStrings{audience}, IssuedAt: jwt.NewNumericDate(now), ExpiresAt: jwt.NewNumericDate(now.Add(5 * time.Minute)),
	}).SignedString(id.key)
}

// connect opens the host's MQTT connection.
func (p *peer) connect(id identity, will *paho.WillMessage, got func(*paho.Publish)) (*paho.Client, net.Conn, error) {
	conn, err := p.dial(p.MQTT, id.shown...)
	if err != nil {
		return nil, nil, err
	}
	proof, err := id.proof(protocol.AudienceMQTT)
	if err != nil {
		return nil, nil, err
	}
	c := paho.NewClient(paho.ClientConfig{Conn: packets.NewThreadSafeConn(conn), OnPublishReceived: []func(paho.PublishReceived) (bool, error){
		func(r paho.PublishReceived) (bool, error) {
			if got != nil {
				got(r.Packet)
			}
			return true, nil
		},
	}})
	_, err = c.Connect(p.ctx, &paho.Connect{
		ClientID: id.host, Username: protocol.MQTTUserHost, UsernameFlag: true, Password: []byte(proof), PasswordFlag: true,
		KeepAlive: 30, CleanStart: true, WillMessage: will,
	})
	if err != nil {
		conn.Close()
	}
	return c, conn, err
}

// heart joins as a host and returns what sends a status and waits for its
// acknowledgement.
func (p *peer) heart() (func() error, error) {
	id, err := p.enroll()
	if err != nil {
		return nil, err
	}
	acks := make(chan uint64, 64)
	c, _, err := p.connect(id, nil, func(m *paho.Publish) {
		var a protocol.Ack
		if protocol.Unmarshal(m.Payload, &a) == nil {
			acks <- a.Status
		}
	})
	if err != nil {
		return nil, err
	}
	if _, err := c.Subscribe(p.ctx, &paho.Subscribe{Subscriptions: []paho.SubscribeOptions{{Topic: protocol.HostTopic(id.host, protocol.TopicAck)}}}); err != nil {
		return nil, err
	}
	seq := uint64(0)
	return func() error {
		seq++
		// Something is always new: what is not is noted with others, once per second.
		b, err := protocol.Marshal(protocol.Status{Version: protocol.Version, Epoch: 1, Seq: seq, Workloads: []protocol.WorkloadStatus{{ID: fmt.Sprint(seq)}}})
		if err != nil {
			return err
		}
		if _, err := c.Publish(p.ctx, &paho.Publish{Topic: protocol.HostTopic(id.host, protocol.TopicStatus), QoS: 1, Payload: b}); err != nil {
			return err
		}
		late := time.After(20 * time.Second)
		for {
			select {
			case n := <-acks:
				if n >= seq {
					return nil
				}
			case <-late:
				return errors.New("no acknowledgement within 20 s")
			}
		}
	}, nil
}
