package e2e

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/gorilla/websocket"
	"github.com/jackc/pgx/v5"
	mqtt "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/hooks/auth"
	"github.com/vishvananda/netns"

	"github.com/remotegpu/remotegpu/protocol"
)

// TestSignatures puts a stolen broker in the control plane's place: it has the
// server's certificate, lets everybody in and publishes what it likes. The
// agent must obey none of it, go on, and tell.
func TestSignatures(t *testing.T) { eachBroker(t, signatures) }

func signatures(t *testing.T, w *world) {
	crt, key := filepath.Join(w.dir, "srv.crt"), filepath.Join(w.dir, "srv.key")
	w.must("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "30",
		"-keyout", key, "-out", crt, "-subj", "/CN="+srvAddr, "-addext", "subjectAltName=IP:"+srvAddr)
	flags := []string{"--mqtt-listen", srvAddr + ":1883"}
	if !w.external { // where the broker's certificate is the server's
		flags = append(flags, "--tls-cert", crt, "--tls-key", key)
	}
	p, m := w.newPlane(flags...), w.machine()
	t.Cleanup(func() { m.dump(t) })
	p.login()
	p.pushBusybox()
	p.join(m, "--name box")
	w.in("client", "remotegpu env create keep --image "+busyboxImage)
	before := p.life(m, "keep")
	host := p.env("keep").Host
	generation, real := p.secrets(host)
	if !w.external { // TestExternalBroker has what mosquitto refuses
		adminPublishes(t, p, crt, protocol.HostTopic(host, protocol.TopicDesired))
	}
	_, stolen, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}

	publish, back := p.steal(crt, key, host)
	empty := func(host string, generation uint64, key ed25519.PrivateKey) []byte {
		doc, err := protocol.Sign(&protocol.Desired{Version: protocol.Version, Host: host, Generation: generation, IssuedAt: 1}, key)
		if err != nil {
			t.Fatal(err)
		}
		return doc
	}
	attacks := map[string][]byte{
		"signed by another key":    empty(host, generation+10, stolen),
		"for another host":         empty("host_00000000000000000000", generation+10, real),
		"an older generation":      empty(host, max(1, generation-1), real),
		"this generation, changed": empty(host, generation, real),
		"garbage":                  []byte("run everything, please"),
		"10 MB":                    make([]byte, 10<<20),
	}
	for range 3 {
		for _, payload := range attacks {
			publish(protocol.HostTopic(host, protocol.TopicDesired), payload)
		}
	}
	time.Sleep(3 * time.Second) // for whatever an agent that obeyed would do
	back()
	p.waitPhase("keep", "running", 30*time.Second)
	eventually(t, 60*time.Second, "each try is a security event", func() (string, bool) {
		var all struct {
			Items []struct{ Severity, Reason, Message string }
		}
		if err := json.Unmarshal([]byte(w.in("client", "remotegpu host events box -o json")), &all); err != nil {
			t.Fatal(err)
		}
		kinds := map[string]bool{}
		for _, e := range all.Items {
			if e.Severity == protocol.SeveritySecurity {
				kinds[e.Message] = true
			}
		}
		return fmt.Sprintf("%d kinds of %d: %v", len(kinds), len(attacks), kinds), len(kinds) >= len(attacks)
	})
	if now := p.life(m, "keep"); now != before {
		t.Errorf("the container is another: %s, was %s", now, before)
	}
	w.in("client", "remotegpu env create after --image "+busyboxImage)
	if out := w.in("client", "remotegpu ssh after -- echo obeyed"); out != "obeyed" {
		t.Errorf("the agent does not go on: %q", out)
	}
}

// adminPublishes tries, with a platform admin's token, what only the control
// plane may do.
func adminPublishes(t *testing.T, p *plane, crt, topic string) {
	token := p.w.in("client", "remotegpu token create mqtt")
	for _, tt := range []struct{ name, password, want string }{
		{"an admin's token", token, "Not authorized"},
		{"a wrong token", "rgt_wrong", "Bad User Name or Password"},
	} {
		out, err := p.w.try("client", "mosquitto_pub -V 5 -h "+srvAddr+" -p 1883 --cafile "+crt+" -u "+protocol.MQTTUserToken+" -P "+tt.password+" -q 1 -t "+topic+" -m obey")
		if !strings.Contains(out, tt.want) {
			t.Errorf("publishing to %s with %s: %v, %q lacks %q", topic, tt.name, err, out, tt.want)
		}
	}
}

// steal puts a broker that lets everybody in in the place of the one where the
// host is, until back.
func (p *plane) steal(crt, key, host string) (publish func(topic string, payload []byte), back func()) {
	w := p.w
	w.t.Helper()
	if w.external {
		return w.stealMosquitto()
	}
	p.kill()
	b, stop := w.hostileBroker(crt, key)
	eventually(w.t, 60*time.Second, "agent listens at the stolen broker", func() (string, bool) {
		_, ok := b.Topics.Subscribers(protocol.HostTopic(host, protocol.TopicDesired)).Subscriptions[host]
		return "not subscribed", ok
	})
	publish = func(topic string, payload []byte) {
		if err := b.Publish(topic, payload, false, 0); err != nil {
			w.t.Fatal(err)
		}
	}
	return publish, func() { stop(); p.start() }
}

// stealMosquitto has the fleet's mosquitto start without its rules.
func (w *world) stealMosquitto() (publish func(topic string, payload []byte), back func()) {
	w.t.Helper()
	dir := filepath.Join(w.dir, "mosquitto")
	w.killMosquitto()
	w.in("srv", "nft delete table inet remotegpu")
	rules := "user root\nlistener 8883\ncertfile " + dir + "/broker.pem\nkeyfile " + dir + "/broker.key\nallow_anonymous true\n"
	w.must("sh", "-c", "printf '"+rules+"' >"+dir+"/stolen.conf")
	os.Remove(filepath.Join(w.dir, "stolen.log")) // of the last time
	cmd := w.start("srv", "stolen.log", "mosquitto", "-v", "-c", dir+"/stolen.conf")
	eventually(w.t, 60*time.Second, "agent subscribes at the stolen broker", func() (string, bool) {
		out := tail(filepath.Join(w.dir, "stolen.log"))
		return out, strings.Contains(out, "Received SUBSCRIBE from host_")
	})
	publish = func(topic string, payload []byte) {
		file := filepath.Join(w.dir, "forged")
		if err := os.WriteFile(file, payload, 0o644); err != nil {
			w.t.Fatal(err)
		}
		w.in("client", "mosquitto_pub -V 5 -h "+srvAddr+" -p 8883 --cafile "+dir+"/control-ca.pem -t "+topic+" -f "+file)
	}
	return publish, func() {
		w.end(cmd, syscall.SIGTERM)
		w.in("srv", "nft -f "+dir+"/remotegpu.nft")
		w.startMosquitto()
	}
}

// secrets reads what not even a stolen broker has: the signing key, to make
// documents that are right but for one thing, and the present generation.
func (p *plane) secrets(host string) (generation uint64, key ed25519.PrivateKey) {
	p.w.t.Helper()
	conn, err := pgx.Connect(context.Background(), "host="+filepath.Join(p.w.dir, "srv/postgres")+" port=5432 user=remotegpu dbname=remotegpu")
	if err != nil {
		p.w.t.Fatal(err)
	}
	defer conn.Close(context.Background())
	var seed []byte
	var n int64
	err = conn.QueryRow(context.Background(), "select generation, material from desired_documents, secret_keys where host_id = $1 and name = 'desired'", host).Scan(&n, &seed)
	if err != nil {
		p.w.t.Fatal(err)
	}
	return uint64(n), ed25519.NewKeyFromSeed(seed)
}

// hostileBroker is a broker without limits that lets everybody in.
type hostileBroker struct{ *mqtt.Server }

func (b *hostileBroker) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	up := websocket.Upgrader{Subprotocols: []string{"mqtt"}}
	ws, err := up.Upgrade(w, r, nil)
	if err != nil {
		return
	}
	_ = b.EstablishConnection("hostile", &messages{Conn: ws.NetConn(), ws: ws}) // until the agent leaves
}

// messages is a WebSocket's binary messages as a stream.
type messages struct {
	net.Conn
	ws   *websocket.Conn
	rest io.Reader
}

func (c *messages) Read(p []byte) (int, error) {
	for {
		if c.rest == nil {
			_, r, err := c.ws.NextReader()
			if err != nil {
				return 0, err
			}
			c.rest = r
		}
		n, err := c.rest.Read(p)
		if err == io.EOF {
			c.rest, err = nil, nil
		}
		if n > 0 || err != nil {
			return n, err
		}
	}
}

func (c *messages) Write(p []byte) (int, error) {
	return len(p), c.ws.WriteMessage(websocket.BinaryMessage, p)
}

// hostileBroker listens where the control plane did, with its certificate.
func (w *world) hostileBroker(crt, key string) (*hostileBroker, func()) {
	w.t.Helper()
	cert, err := tls.LoadX509KeyPair(crt, key)
	if err != nil {
		w.t.Fatal(err)
	}
	b := &hostileBroker{mqtt.New(&mqtt.Options{InlineClient: true, Logger: slog.New(slog.DiscardHandler)})}
	if err := b.AddHook(new(auth.AllowHook), nil); err != nil {
		w.t.Fatal(err)
	}
	if err := b.Serve(); err != nil {
		w.t.Fatal(err)
	}
	var l net.Listener
	listening := make(chan error)
	go func() { // a socket stays in the network where it was made
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		here, err := netns.Get()
		if err != nil {
			listening <- err
			return
		}
		defer netns.Set(here)
		there, err := netns.GetFromName(w.ns("srv"))
		if err == nil {
			err = netns.Set(there)
		}
		if err == nil {
			l, err = tls.Listen("tcp", srvAddr+":8443", &tls.Config{Certificates: []tls.Certificate{cert}})
		}
		listening <- err
	}()
	if err := <-listening; err != nil {
		w.t.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/healthz", func(rw http.ResponseWriter, _ *http.Request) { fmt.Fprintln(rw, "ok") })
	mux.Handle("/mqtt", b)
	srv := &http.Server{Handler: mux, ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)}
	go srv.Serve(l)
	return b, func() {
		srv.Close()
		for _, cl := range b.Clients.GetAll() {
			cl.Stop(io.EOF) // Close waits for them and does not end them
		}
		b.Close()
	}
}
