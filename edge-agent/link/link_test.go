package link

import (
	"bytes"
	"crypto/ed25519"
	"crypto/tls"
	"fmt"
	"math"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/remotegpu/remotegpu/edge-agent/reach"
	"github.com/remotegpu/remotegpu/protocol"
)

const testHost = protocol.PrefixHost + "00000000000000000000"

func cutLogin(login string) (user, password string, ok bool) { return strings.Cut(login, ":") }

func receive[T any](t *testing.T, from <-chan T, what string) T {
	t.Helper()
	select {
	case v := <-from:
		return v
	case <-time.After(patience):
		t.Fatalf("no %s within %s", what, patience)
		panic("unreachable")
	}
}

func TestFirstWords(t *testing.T) {
	t.Parallel()
	c := newControl(t)
	h := newHost(t, c, t.TempDir())
	birth := next[protocol.Presence](c, protocol.TopicPresence, nil)
	hello := next[protocol.Hello](c, protocol.TopicHello, nil)
	status := next[protocol.Status](c, protocol.TopicStatus, nil)
	if !birth.Online || birth.Epoch == 0 || hello.Epoch != birth.Epoch || status.Epoch != birth.Epoch {
		t.Errorf("epochs differ: %+v, %d, %d", birth, hello.Epoch, status.Epoch)
	}
	want := protocol.Hello{
		Version: protocol.Version, Epoch: birth.Epoch, BootID: "boot", Agent: "1.2.3",
		Capabilities: []string{"session"}, Inventory: protocol.Inventory{Hostname: "gpu-1", CPUs: 2},
	}
	if diff := cmp.Diff(want, *hello); diff != "" {
		t.Errorf("hello (-want +got):\n%s", diff)
	}
	if got := h.State(); got.Phase != Connected {
		t.Errorf("state %+v", got)
	}
	h.stop()
	if bye := next[protocol.Presence](c, protocol.TopicPresence, nil); bye.Online || bye.Epoch != birth.Epoch {
		t.Errorf("goodbye %+v", bye)
	}
}

// TestTelemetry: a batch that the broker has is said to have arrived, and one
// without a connection is not.
func TestTelemetry(t *testing.T) {
	t.Parallel()
	c := newControl(t)
	h := newHost(t, c, t.TempDir())
	next[protocol.Status](c, protocol.TopicStatus, nil)
	want := protocol.TelemetryBatch{
		Version: protocol.Version, First: 7, At: []int64{1, 2},
		GPUs: []protocol.GPUTelemetry{{UUID: "GPU-1", Series: []protocol.Series{{Metric: protocol.MetricGPUPower, Values: []float32{300, 301}}}}},
	}
	if err := h.Telemetry(t.Context(), &want); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, *next[protocol.TelemetryBatch](c, protocol.TopicTelemetry, nil)); diff != "" {
		t.Errorf("batch (-want +got):\n%s", diff)
	}
	h.stop()
	if err := h.Telemetry(t.Context(), &want); err == nil {
		t.Error("a link that has ended said a batch")
	}
}

func TestThroughProxy(t *testing.T) {
	t.Parallel()
	c := newControl(t)
	p := newProxy(t, "me:secret")
	newHost(t, c, t.TempDir(), func(rc *reach.Config, _ *Config) { rc.Proxy = p.through("me:secret") })
	next[protocol.Status](c, protocol.TopicStatus, nil)
	if p.used.Load() < 2 {
		t.Errorf("proxy was used %d times, want for the clock and for MQTT", p.used.Load())
	}
}

func TestProxyAsksForLogin(t *testing.T) {
	t.Parallel()
	c := newControl(t)
	p := newProxy(t, "me:secret")
	h := newHost(t, c, t.TempDir(), func(rc *reach.Config, _ *Config) { rc.Proxy = p.through("") })
	waitState(t, h, func(s State) bool { return strings.Contains(s.Message, "asks for a login") })
}

func TestOverTLS(t *testing.T) {
	t.Parallel()
	c := newControl(t)
	l, err := tls.Listen("tcp", "127.0.0.1:0", c.http.TLS)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go c.serve(conn)
		}
	}()
	p := newProxy(t, "")
	newHost(t, c, t.TempDir(), func(rc *reach.Config, cfg *Config) {
		rc.Proxy, cfg.MQTT = p.through(""), "tls://"+l.Addr().String()
	})
	next[protocol.Status](c, protocol.TopicStatus, nil)
	if p.used.Load() != 2 {
		t.Errorf("proxy was used %d times, want for the clock and for MQTT", p.used.Load())
	}
}

func TestReconnect(t *testing.T) {
	t.Parallel()
	c := newControl(t)
	dir := t.TempDir()
	h := newHost(t, c, dir)
	first := next[protocol.Hello](c, protocol.TopicHello, nil)
	c.cut()
	will := next(c, protocol.TopicPresence, func(p *protocol.Presence) bool { return !p.Online })
	if will.Epoch != first.Epoch {
		t.Errorf("will has epoch %d, the connection had %d", will.Epoch, first.Epoch)
	}
	second := next[protocol.Hello](c, protocol.TopicHello, nil)
	if second.Epoch <= first.Epoch {
		t.Errorf("epoch %d after %d", second.Epoch, first.Epoch)
	}
	h.stop()
	newHost(t, c, dir)
	if third := next[protocol.Hello](c, protocol.TopicHello, nil); third.Epoch <= second.Epoch {
		t.Errorf("epoch %d after a restart, %d before", third.Epoch, second.Epoch)
	}
}

func TestDesired(t *testing.T) {
	t.Parallel()
	c := newControl(t)
	dir := t.TempDir()
	h := newHost(t, c, dir)
	next[protocol.Status](c, protocol.TopicStatus, nil)
	c.say(protocol.TopicDesired, c.sign(protocol.Desired{Generation: 3}))
	if d := receive(t, h.desired, "document"); d.Generation != 3 {
		t.Errorf("generation %d", d.Generation)
	}
	next(c, protocol.TopicStatus, func(s *protocol.Status) bool { return s.Observed == 3 })
	h.stop()
	h = newHost(t, c, dir)
	hello := next[protocol.Hello](c, protocol.TopicHello, nil)
	if hello.Observed != 3 || len(hello.Digest) != 32 {
		t.Errorf("hello after a restart: %+v", hello)
	}
	next(c, protocol.TopicStatus, func(s *protocol.Status) bool { return s.Observed == 3 })
	h.stop()
	if err := os.Remove(filepath.Join(dir, "desired.cose")); err != nil {
		t.Fatal(err)
	}
	newHost(t, c, dir)
	hello = next[protocol.Hello](c, protocol.TopicHello, nil)
	if hello.Observed != 3 || len(hello.Digest) != 32 {
		t.Errorf("hello after the loss of the document: %+v", hello)
	}
	next(c, protocol.TopicStatus, func(s *protocol.Status) bool { return s.Observed == 0 })
}

func TestRefusedDocuments(t *testing.T) {
	t.Parallel()
	c := newControl(t)
	h := newHost(t, c, t.TempDir())
	next[protocol.Status](c, protocol.TopicStatus, nil)
	c.say(protocol.TopicDesired, c.sign(protocol.Desired{Generation: 7}))
	receive(t, h.desired, "document")
	_, stranger, _ := ed25519.GenerateKey(nil)
	hostile := []struct {
		text    string // in the event
		payload []byte
	}{
		{"no pinned key", signBy(t, stranger, protocol.Desired{Generation: 8})},
		{"for another host", c.sign(protocol.Desired{Generation: 8, Host: protocol.NewID(protocol.PrefixHost)})},
		{"has generation 6", c.sign(protocol.Desired{Generation: 6})},
		{"other content", c.sign(protocol.Desired{Generation: 7, IssuedAt: 1})},
		{"not a signed document", []byte("garbage")},
		{"larger than any document", make([]byte, 10<<20)},
	}
	for _, m := range hostile {
		c.say(protocol.TopicDesired, m.payload)
		next(c, protocol.TopicStatus, func(s *protocol.Status) bool {
			for _, e := range s.Events {
				if e.Severity == protocol.SeveritySecurity && e.Reason == "DesiredRefused" && strings.Contains(e.Message, m.text) {
					return s.Observed == 7
				}
			}
			return false
		})
	}
	c.say(protocol.TopicDesired, c.sign(protocol.Desired{Generation: 8}))
	if d := receive(t, h.desired, "document"); d.Generation != 8 {
		t.Errorf("obeys generation %d after the attack, want 8", d.Generation)
	}
}

func TestFloodIsMerged(t *testing.T) {
	t.Parallel()
	c := newControl(t)
	h := newHost(t, c, t.TempDir())
	next[protocol.Status](c, protocol.TopicStatus, nil)
	garbage := bytes.Repeat([]byte("garbage "), 1000)
	for i := range 2000 {
		c.say([]string{protocol.TopicDesired, protocol.TopicDial, protocol.TopicAck}[i%3], garbage)
	}
	c.say(protocol.TopicDesired, c.sign(protocol.Desired{Generation: 1}))
	for len(h.desired) == 0 { // QoS 0: the broker may have dropped it in the flood
		next[protocol.Status](c, protocol.TopicStatus, nil)
		c.say(protocol.TopicDesired, c.sign(protocol.Desired{Generation: 1}))
	}
	h.stop()
	store := newStore(t, c, h.store.Dir())
	defer store.Close()
	if n := len(store.Events(1000)); n == 0 || n > 6 {
		t.Errorf("the flood made %d events: %+v", n, store.Events(1000))
	}
}

// TestSilentBroker: a status is said at QoS 0, and at QoS 1 when nobody has
// acknowledged the one before, so a broker that hangs is noticed: also by a host
// that always has something new to say.
func TestSilentBroker(t *testing.T) {
	t.Parallel()
	for what, every := range map[string]time.Duration{"nothing new": time.Hour, "always something new": 100 * time.Millisecond} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			c := newControl(t)
			h := newHost(t, c, t.TempDir())
			for _, want := range []byte{0, 1} {
				if m := nextOn(c, protocol.TopicStatus); m.qos != want {
					t.Fatalf("a status at QoS %d, want %d", m.qos, want)
				}
			}
			epoch := h.epoch.Load()
			c.hang()
			tick := time.NewTicker(every)
			defer tick.Stop()
			for late := time.After(patience); h.epoch.Load() == epoch; {
				select {
				case <-tick.C:
					h.Changed()
				case <-time.After(50 * time.Millisecond):
				case <-late:
					t.Fatalf("it has not noticed within %s", patience)
				}
			}
		})
	}
}

// TestWhoComesBackDoesNotMeasure: a fleet that comes back takes one connection each;
// the clock is compared day by day, by hosts that are connected.
func TestWhoComesBackDoesNotMeasure(t *testing.T) {
	t.Parallel()
	c := newControl(t)
	h := newHost(t, c, t.TempDir())
	first := next[protocol.Status](c, protocol.TopicStatus, nil) // the next look at the clock is half a minute away
	h.mu.Lock()
	h.measured = time.Now().Add(-clockEvery - time.Minute)
	h.mu.Unlock()
	c.cut()
	again := next(c, protocol.TopicHello, func(m *protocol.Hello) bool { return m.Epoch > first.Epoch })
	if n := c.before.Load(); n != 1 {
		t.Errorf("it had asked for the time %d times when it came back", n)
	}
	next(c, protocol.TopicHello, func(m *protocol.Hello) bool { return m.Epoch == again.Epoch }) // with what it has measured since
	if n := c.timed.Load(); n != 2 {
		t.Errorf("it asked for the time %d times", n)
	}
}

func nextOn(c *control, topic string) message {
	c.t.Helper()
	deadline := time.After(patience)
	for {
		select {
		case m := <-c.said:
			if m.topic == topic {
				return m
			}
		case <-deadline:
			c.t.Fatalf("nothing on %s within %s", topic, patience)
		}
	}
}

func TestAckEndsRepetition(t *testing.T) {
	t.Parallel()
	c := newControl(t)
	h := newHost(t, c, t.TempDir())
	first := next[protocol.Status](c, protocol.TopicStatus, nil)
	again := next[protocol.Status](c, protocol.TopicStatus, nil)
	if again.Seq != first.Seq {
		t.Fatalf("status %d was repeated as %d", first.Seq, again.Seq)
	}
	h.store.Append(protocol.Event{Severity: protocol.SeverityNormal, Reason: "Test"})
	h.Changed()
	fresh := next(c, protocol.TopicStatus, func(s *protocol.Status) bool { return s.Seq > first.Seq })
	if len(fresh.Events) != 1 || fresh.Events[0].Reason != "Test" {
		t.Fatalf("events %+v", fresh.Events)
	}
	c.sayDocument(protocol.TopicAck, &protocol.Ack{Version: protocol.Version, Status: fresh.Seq, Event: fresh.Events[0].Seq})
	quiet := time.NewTimer(10 * h.firstRepeat) // repetitions are at 1, 3, 7 of it
	for silent := false; !silent; {
		select {
		case m := <-c.said:
			var s protocol.Status
			if err := protocol.Unmarshal(m.payload, &s); err == nil && s.Seq > fresh.Seq {
				t.Errorf("a new status %d without a reason", s.Seq)
			}
			quiet.Reset(8 * h.firstRepeat)
		case <-quiet.C:
			silent = true
		}
	}
	if left := h.store.Events(10); len(left) > 0 {
		t.Errorf("acknowledged events are left: %+v", left)
	}
}

// TestWhatTheServerTakes: whatever texts, sizes and numbers there are, a status
// passes.
func TestWhatTheServerTakes(t *testing.T) {
	t.Parallel()
	const text = "zero \x00, no UTF-8 \xff"
	said := &protocol.Status{
		Version: protocol.Version, Events: []protocol.Event{{Seq: 1, Message: text}}, Applied: 7,
		Workloads: []protocol.WorkloadStatus{{ID: "env_a", Message: text, Done: math.MaxUint64, Total: math.MaxUint64}},
	}
	for i := range 3 * protocol.MaxWorkloads {
		said.Workloads = append(said.Workloads, protocol.WorkloadStatus{ID: fmt.Sprint("env_b", i), Phase: protocol.PhaseStopping, Message: strings.Repeat(text, 300)})
	}
	said.Workloads = append(said.Workloads, protocol.WorkloadStatus{ID: "env_c", Phase: protocol.PhaseRunning})
	payload, err := encodeStatus(said)
	if err != nil {
		t.Fatal(err)
	}
	var st protocol.Status
	if err := protocol.Unmarshal(payload, &st); err != nil {
		t.Error(err)
	}
	if !slices.ContainsFunc(st.Workloads, func(w protocol.WorkloadStatus) bool { return w.ID == "env_c" }) {
		t.Error("one that stays was left out for those that go")
	}
	if st.Applied != 0 {
		t.Error("what was left out passes for removed")
	}
}

func TestDialRequest(t *testing.T) {
	t.Parallel()
	c := newControl(t)
	h := newHost(t, c, t.TempDir(), func(rc *reach.Config, _ *Config) {
		rc.Now = func() time.Time { return time.Now().Add(time.Hour) }
	})
	next[protocol.Status](c, protocol.TopicStatus, nil)
	expires := time.Now().Add(10 * time.Second).Unix()
	c.sayDocument(protocol.TopicDial, &protocol.Dial{Version: protocol.Version, Token: "once", Expires: expires, Spares: 2})
	d := receive(t, h.dials, "dial request")
	if ahead := d.Expires - expires; d.Token != "once" || d.Spares != 2 || ahead < 3590 || ahead > 3610 {
		t.Errorf("got %+v, %d s later than said; the host's clock is an hour ahead", d, ahead)
	}
}

func TestClockAnHourOff(t *testing.T) {
	t.Parallel()
	for name, off := range map[string]time.Duration{"fast": time.Hour, "slow": -time.Hour} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := newControl(t)
			newHost(t, c, t.TempDir(), func(rc *reach.Config, _ *Config) {
				rc.Now = func() time.Time { return time.Now().Add(off) }
			})
			hello := next[protocol.Hello](c, protocol.TopicHello, nil)
			if d := time.Duration(hello.ClockOffset)*time.Millisecond - off; d.Abs() > 5*time.Second {
				t.Errorf("hello tells an offset of %d ms", hello.ClockOffset)
			}
			status := next(c, protocol.TopicStatus, func(s *protocol.Status) bool { return len(s.Events) > 0 })
			if e := status.Events[0]; e.Reason != "ClockWrong" || !strings.Contains(e.Message, name) || !strings.Contains(e.Message, "set it") {
				t.Errorf("event %+v", e)
			}
		})
	}
}

func waitState(t *testing.T, h *host, fits func(State) bool) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for !fits(h.State()) {
		if time.Now().After(deadline) {
			t.Fatalf("state stays %+v", h.State())
		}
		time.Sleep(10 * time.Millisecond) // State has no channel
	}
}

func TestHostThatMayNotComeIn(t *testing.T) {
	t.Parallel()
	c := newControl(t)
	h := newHost(t, c, t.TempDir(), func(_ *reach.Config, cfg *Config) { c.hostKey.Store(nil) })
	waitState(t, h, func(s State) bool {
		return s.Phase == Refused && strings.Contains(s.Message, "waits for approval")
	})
	public := h.store.Identity().PrivateKey.Public().(ed25519.PublicKey)
	c.hostKey.Store(&public) // approved
	waitState(t, h, func(s State) bool { return s.Phase == Connected })
}

func TestNobodyThere(t *testing.T) {
	t.Parallel()
	c := newControl(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	h := newHost(t, c, t.TempDir(), func(rc *reach.Config, _ *Config) { rc.URL = "https://" + l.Addr().String() })
	waitState(t, h, func(s State) bool { return strings.Contains(s.Message, "Nothing accepts connections at") })
}
