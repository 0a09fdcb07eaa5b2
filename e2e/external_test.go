package e2e

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/remotegpu/remotegpu/protocol"
)

// eachBroker runs a test twice: with hosts at the server's own broker, and at a
// mosquitto beside it.
func eachBroker(t *testing.T, test func(*testing.T, *world)) {
	for _, at := range []string{"built-in broker", "mosquitto"} {
		t.Run(at, func(t *testing.T) {
			w := newWorld(t)
			w.external = at == "mosquitto"
			test(t, w)
		})
	}
}

// TestExternalBroker: two servers, and hosts at a mosquitto that both share.
func TestExternalBroker(t *testing.T) {
	w := newWorld(t)
	w.external = true
	r, m := w.newReplicas(t), w.machine()
	m.cwd = w.dir
	w.must("cp", filepath.Join(w.dir, "lb.crt"), filepath.Join(w.dir, "ca.pem"))
	t.Cleanup(func() { m.dump(t) })
	r.login()
	r.pushBusybox()
	r.join(m, "--name box")
	w.in("client", "remotegpu env create one --gpus 1 --image "+busyboxImage)
	key := r.sshKey()

	t.Run("ssh through either", func(t *testing.T) { sshThroughEither(t, r, key) })
	t.Run("events", func(t *testing.T) {
		eventsOutside(t, r)
		eventsAtEach(t, r)
	})
	t.Run("nobody else", func(t *testing.T) { strangersOutside(t, r, m) })
	t.Run("another host", func(t *testing.T) { hostOutside(t, r) })
	t.Run("killed", func(t *testing.T) { replicasKilled(t, r) })
	t.Run("stopped", func(t *testing.T) { replicaStopped(t, r) })
	t.Run("hangs", func(t *testing.T) { replicaHangs(t, r) })
	t.Run("offline", func(t *testing.T) {
		m.unplug()
		eventually(t, 30*time.Second, "its last will is heard", func() (string, bool) {
			out := w.in("client", "remotegpu host ls")
			return out, strings.Contains(out, "offline")
		})
		offlineIsSaid(t, r, key)
	})
}

// mosquitto starts the real one with the configuration that we write for it, and
// returns the servers' flags. cert is a certificate where hosts know another
// authority than the fleet's, by its file without .crt and .key.
func (w *world) mosquitto(database, cert string) (flags []string) {
	w.t.Helper()
	dir := filepath.Join(w.dir, "mosquitto")
	w.must("mkdir", "-p", dir)
	w.must(filepath.Join(w.bin, "remotegpu"), "server", "mosquitto", "--database-url", database, "--host", srvAddr, dir)
	if cert != "" {
		w.must("cp", cert+".crt", dir+"/broker.pem")
		w.must("cp", cert+".key", dir+"/broker.key")
		flags = append(flags, "--mqtt-broker-ca", cert+".crt")
	}
	w.in("srv", "nft -f "+dir+"/remotegpu.nft")
	w.must("mosquitto_passwd", "-b", dir+"/passwords", "grafana", "secret")
	w.must("sh", "-c", "printf 'user grafana\ntopic read rg/v1/workspaces/#\ntopic read rg/v1/hosts/+/presence\n' >>"+dir+"/acl-integrations; printf 'pid_file "+dir+"/pid\nuser root\n' >"+dir+"/head; cat "+dir+"/remotegpu.conf >>"+dir+"/head; mv "+dir+"/head "+dir+"/remotegpu.conf")
	w.startMosquitto()
	return append(flags, "--mqtt-broker", "tls://"+srvAddr+":8884", "--mqtt-broker-hosts", "tls://"+srvAddr+":8883")
}

func (w *world) startMosquitto() {
	w.t.Helper()
	w.broker = w.start("srv", "mosquitto.log", "mosquitto", "-c", filepath.Join(w.dir, "mosquitto/remotegpu.conf"))
}

func (w *world) killMosquitto() {
	w.t.Helper()
	w.end(w.broker, syscall.SIGKILL)
}

// atMosquitto sees that the host is there and nowhere else.
func (w *world) atMosquitto(m *machine) {
	w.t.Helper()
	eventually(w.t, 20*time.Second, "the host is at the external broker", func() (string, bool) {
		out := m.must("grep MQTT /etc/remotegpu/agent.env; ss -Htn state established '( dport = :8883 )' | wc -l")
		return out, out == "REMOTEGPU_MQTT='tls://"+srvAddr+":8883'\n1"
	})
}

const grafana = "-V 5 -h " + srvAddr + " -p 8885 -u grafana -P secret --cafile "

// eventsOutside subscribes at the external broker, as an integration does: each
// event comes once, though two servers hear of it.
func eventsOutside(t *testing.T, r *replicas) {
	w := r.w
	ca := filepath.Join(w.dir, "lb.crt")
	if out := w.in("client", "mosquitto_sub "+grafana+ca+" -W 30 -C 1 -F '%t %r' -t rg/v1/hosts/+/presence"); !strings.HasSuffix(out, "/presence 1") {
		t.Errorf("presence is not retained: %q", out)
	}
	sub := w.listen("outside.log", grafana+ca+" -F '%t %p' -t 'rg/v1/workspaces/+/events/#'")
	w.in("client", "remotegpu env create two --image "+busyboxImage+" && remotegpu env rm two")
	heard := sub.until(t, "/events/environment/deleted ")
	for _, phase := range []string{"pending", "running", "deleting", "deleted"} {
		if n := strings.Count(heard, "/events/environment/"+phase+" "); n != 1 {
			t.Errorf("%d events of %s:\n%s", n, phase, heard)
		}
	}
}

// strangersOutside tries what the configuration must deny.
func strangersOutside(t *testing.T, r *replicas, m *machine) {
	w := r.w
	host := r.ask("select id from hosts")
	ca := "--cafile " + filepath.Join(w.dir, "lb.crt")
	for what, line := range map[string]string{
		"a host without a certificate": "mosquitto_pub -V 5 -h " + srvAddr + " -p 8883 " + ca + " -i " + host + " -u host -P x -q 1 -t rg/v1/hosts/" + host + "/status -m x",
		"a server without one":         "mosquitto_pub -V 5 -h " + srvAddr + " -p 8884 " + ca + " -q 1 -t rg/v1/hosts/" + host + "/desired -m x",
		"a wrong password":             "mosquitto_pub -V 5 -h " + srvAddr + " -p 8885 " + ca + " -u grafana -P wrong -q 1 -t x -m x",
		"no password":                  "mosquitto_pub -V 5 -h " + srvAddr + " -p 8885 " + ca + " -q 1 -t x -m x",
	} {
		if out, err := w.try("client", line); err == nil {
			t.Errorf("%s gets in: %s", what, out)
		}
	}
	// An integration may read what its acl says, and command nobody.
	out, _ := w.try("client", "mosquitto_pub "+grafana+filepath.Join(w.dir, "lb.crt")+" -q 1 -t rg/v1/hosts/"+host+"/desired -m x")
	if !strings.Contains(out, "Not authorized") {
		t.Errorf("an integration publishes to a host: %q", out)
	}
	if out := w.in("client", "mosquitto_sub "+grafana+filepath.Join(w.dir, "lb.crt")+" -W 5 -C 1 -t rg/v1/hosts/+/dial -t rg/v1/hosts/+/status; true"); !strings.Contains(out, "Timed out") {
		t.Errorf("an integration hears what is for hosts: %q", out)
	}
}

// hostOutside joins as a host that tries what another one may, with a certificate
// of its own.
func hostOutside(t *testing.T, r *replicas) {
	w, victim := r.w, r.ask("select id from hosts")
	dir := filepath.Join(w.dir, "hostile")
	w.must("mkdir", dir)
	w.must("go", "build", "-o", dir+"/peer", "./peer")
	conf := `{"Address": "` + srvAddr + `", "HTTPS": "8443", "Join": "` + regexp.MustCompile(`rgj_[0-9A-Z]+`).FindString(w.in("client", "remotegpu host join")) + `"}`
	if err := os.WriteFile(dir+"/peer.json", []byte(conf), 0o600); err != nil {
		t.Fatal(err)
	}
	own := w.in("client", "cd "+dir+" && ./peer -as host -config peer.json")
	w.in("client", "remotegpu host cordon "+own)
	defer w.in("client", "remotegpu host retire "+own)
	with := "-V 5 -h " + srvAddr + " -p 8883 --cafile " + filepath.Join(w.dir, "lb.crt") + " --cert " + dir + "/host.pem --key " + dir + "/host.key "
	topic := func(host, name string) string { return " -t " + protocol.HostTopic(host, name) }
	pub := func(args string) string {
		out, _ := w.try("client", "mosquitto_pub "+with+"-q 1 -m forged"+args)
		return out
	}
	if out := pub(topic(own, protocol.TopicStatus)); out != "" {
		t.Errorf("its own status: %s", out)
	}
	for what, args := range map[string]string{
		"another's status":         topic(victim, protocol.TopicStatus),
		"another's hello":          topic(victim, protocol.TopicHello),
		"another's presence":       " -r" + topic(victim, protocol.TopicPresence),
		"a document for another":   topic(victim, protocol.TopicDesired),
		"a document for itself":    topic(own, protocol.TopicDesired),
		"an event of a workspace":  " -t rg/v1/workspaces/ws_x/events/environment/running",
		"as a server, by its name": " -i control" + topic(victim, protocol.TopicDesired),
	} {
		if out := pub(args); !strings.Contains(out, "Not authorized") {
			t.Errorf("%s: %q", what, out)
		}
	}
	sub := w.listen("heard.log", with+"-W 20 -v"+topic(victim, protocol.TopicDesired)+topic(victim, protocol.TopicAck)+topic(victim, protocol.TopicDial)+" -t rg/v1/hosts/+/status -t '#'")
	// Under the other's name it is itself all the same, and its will goes nowhere.
	pub(" -i " + victim + " --will-topic " + protocol.HostTopic(victim, protocol.TopicPresence) + " --will-payload gone" + topic(own, protocol.TopicStatus))
	r.obeyed()
	sub.Wait()
	const timedOut = 27
	if out := sub.heard(); strings.Contains(out, victim) || sub.ProcessState.ExitCode() != timedOut {
		t.Errorf("it hears what is the other's, or does not listen: %v %s", sub.ProcessState, out)
	}
	if r.ask("select online::text from hosts where id = '"+victim+"'") != "true" {
		t.Error("the other one is gone")
	}
}
