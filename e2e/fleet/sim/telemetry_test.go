package sim

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/eclipse/paho.golang/autopaho"
	"github.com/eclipse/paho.golang/paho"

	"github.com/remotegpu/remotegpu/protocol"
)

// said is a batch and who said it.
type said struct {
	host string
	protocol.TelemetryBatch
}

// listen returns what hosts say of their telemetry, as an integration sees it.
func (p *plane) listen(t *testing.T) <-chan said {
	t.Helper()
	u, err := url.Parse("wss" + strings.TrimPrefix(p.url, "https") + "/mqtt")
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(p.ca)
	heard, subscribed := make(chan said, 1000), make(chan error, 1)
	cm, err := autopaho.NewConnection(t.Context(), autopaho.ClientConfig{
		ServerUrls: []*url.URL{u}, TlsCfg: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}, KeepAlive: 30,
		ConnectUsername: protocol.MQTTUserToken, ConnectPassword: []byte(p.token),
		OnConnectionUp: func(cm *autopaho.ConnectionManager, _ *paho.Connack) {
			_, err := cm.Subscribe(t.Context(), &paho.Subscribe{Subscriptions: []paho.SubscribeOptions{{Topic: protocol.AllHosts(protocol.TopicTelemetry)}}})
			subscribed <- err
		},
		ClientConfig: paho.ClientConfig{ClientID: "listener", OnPublishReceived: []func(paho.PublishReceived) (bool, error){
			func(pr paho.PublishReceived) (bool, error) {
				var s said
				s.host, _, _ = protocol.SplitHostTopic(pr.Packet.Topic)
				if err := protocol.Unmarshal(pr.Packet.Payload, &s.TelemetryBatch); err != nil || pr.Packet.Retain {
					t.Errorf("%s said %d bytes, retained %v: %v", s.host, len(pr.Packet.Payload), pr.Packet.Retain, err)
				}
				heard <- s
				return true, nil
			},
		}},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		_ = cm.Disconnect(ctx) // the server may be gone
	})
	if err := <-subscribed; err != nil {
		t.Fatal(err)
	}
	return heard
}

// TestTelemetry: each host says a sample of each of its GPUs for every second,
// and as often as it is told; nobody is cut off, and the server has nothing to say.
func TestTelemetry(t *testing.T) {
	t.Parallel()
	p := newPlane(t)
	heard := p.listen(t)
	f := NewFleet(FleetConfig{Server: p.url, CA: p.ca, Token: p.join, Dir: t.TempDir(), Agents: 3, Telemetry: 2 * time.Second})
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- f.Run(ctx) }()
	defer func() {
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}()
	next, batches := map[string]uint64{}, map[string]int{}
	began, samples := map[string]int64{}, map[string]int64{}
	for deadline := time.After(patience); len(batches) < 3 || least(batches) < 3; {
		select {
		case b := <-heard:
			checkBatch(t, b, next[b.host])
			next[b.host] = b.First + uint64(len(b.At))
			if batches[b.host]++; batches[b.host] == 1 {
				began[b.host] = b.At[0]
			}
			samples[b.host] += int64(len(b.At))
			if took := b.At[len(b.At)-1] - began[b.host]; 1000*(samples[b.host]-1) > took+1000 { // the first may be late
				t.Errorf("%s says %d samples of %d ms", b.host, samples[b.host], took)
			}
		case <-deadline:
			t.Fatalf("batches of hosts within %v: %v", patience, batches)
		}
	}
	eventually(t, "hosts know that the broker has them", func() bool { return f.Progress().Batches >= 9 })
	f.Telemetry(0)
	if now := f.Progress(); now.Connected != 3 || now.Lost > 0 {
		t.Errorf("%+v", now)
	}
	if text := p.log.String(); text != "" {
		t.Errorf("the server says %s", text)
	}
	eventually(t, "it is quiet", func() bool {
		before := f.Progress().Batches
		time.Sleep(3 * time.Second)
		return f.Progress().Batches == before
	})
}

// TestParts: hosts in a process of their own begin and end when they are told.
func TestParts(t *testing.T) {
	t.Parallel()
	p := newPlane(t)
	parts, err := Start(FleetConfig{Server: p.url, CA: p.ca, Token: p.join, Dir: t.TempDir(), Agents: 2})
	if err != nil {
		t.Fatal(err)
	}
	defer parts.Stop()
	ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
	defer cancel()
	if now, err := parts.Wait(ctx, func(p Progress) bool { return p.Connected == 2 }); err != nil || now.Batches > 0 {
		t.Fatalf("%+v, %v", now, err)
	}
	if err := parts.Telemetry(time.Second); err != nil {
		t.Fatal(err)
	}
	if _, err := parts.Wait(ctx, func(p Progress) bool { return p.Batches >= 4 }); err != nil {
		t.Fatal(err)
	}
	if err := parts.Telemetry(0); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it is quiet", func() bool {
		before := parts.Progress().Batches
		time.Sleep(3 * time.Second)
		return parts.Progress().Batches == before
	})
}

func least(of map[string]int) int {
	n := 1 << 30
	for _, v := range of {
		n = min(n, v)
	}
	return n
}

func checkBatch(t *testing.T, b said, next uint64) {
	t.Helper()
	if next > 0 && b.First < next || len(b.At) > 2 || len(b.GPUs) != 8 || len(b.Host) != 6 {
		t.Errorf("%s says %d samples of %d GPUs from %d on, %d was next", b.host, len(b.At), len(b.GPUs), b.First, next)
	}
	for _, g := range b.GPUs {
		if len(g.Series) != 7 || g.Series[0].Metric != protocol.MetricGPUUtilisation || g.Series[3].Values[0] == 0 {
			t.Errorf("%s is said to be %+v", g.UUID, g.Series)
		}
	}
	for i := range b.At[1:] {
		if gap := b.At[i+1] - b.At[i]; gap <= 0 {
			t.Errorf("two samples in %d ms", gap)
		}
	}
}
