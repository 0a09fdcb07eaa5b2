package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestExternalBroker: two servers, and hosts at a mosquitto that both share.
func TestExternalBroker(t *testing.T) {
	w := newWorld(t)
	dir := filepath.Join(w.dir, "mosquitto")
	r := w.newReplicas(t, func(r *replicas) { w.mosquitto(r, dir) })
	m := w.machine()
	m.cwd = w.dir
	w.must("cp", filepath.Join(w.dir, "lb.crt"), filepath.Join(w.dir, "ca.pem"))
	t.Cleanup(func() { m.dump(t) })
	r.login()
	r.pushBusybox()
	r.join(m, "--name box")
	w.in("client", "remotegpu env create one --gpus 1 --image "+busyboxImage)
	key := r.sshKey()
	if out := m.must("grep MQTT /etc/remotegpu/agent.env; ss -Htn state established '( dport = :8883 )' | wc -l"); out != "REMOTEGPU_MQTT='tls://"+srvAddr+":8883'\n1" {
		t.Fatalf("the host is not at the external broker: %s", out)
	}

	t.Run("ssh through either", func(t *testing.T) { sshThroughEither(t, r, key) })
	t.Run("events", func(t *testing.T) {
		eventsOutside(t, r, dir)
		eventsAtEach(t, r)
	})
	t.Run("nobody else", func(t *testing.T) { strangersOutside(t, r, m, dir) })
	t.Run("killed", func(t *testing.T) { leadersKilled(t, r) })
	t.Run("broker gone", func(t *testing.T) {
		pid := r.env("one").Pid
		w.must("sh", "-c", "kill -9 $(cat "+dir+"/pid)")
		w.start("srv", "mosquitto.log", "mosquitto", "-c", dir+"/remotegpu.conf")
		eventually(t, 30*time.Second, "the host is back", func() string {
			if out, err := w.try("client", "timeout 20 remotegpu env create three --image "+busyboxImage+" && remotegpu env rm three"); err != nil {
				return out
			}
			return ""
		})
		if now := r.env("one").Pid; now != pid {
			t.Errorf("the container noticed: pid %d, was %d", now, pid)
		}
	})
	t.Run("offline", func(t *testing.T) {
		m.unplug()
		eventually(t, 30*time.Second, "its last will is heard", func() string {
			if out := w.in("client", "remotegpu host ls"); !strings.Contains(out, "offline") {
				return out
			}
			return ""
		})
		offlineIsSaid(t, r, key)
	})
}

// mosquitto starts the real one with the configuration that we write for it,
// but for the certificate, which hosts know another authority of here.
func (w *world) mosquitto(r *replicas, dir string) {
	w.t.Helper()
	w.must("mkdir", "-p", dir)
	w.must(filepath.Join(w.bin, "remotegpu"), "server", "mosquitto", "--database-url", r.database, "--host", srvAddr, dir)
	w.must("cp", filepath.Join(w.dir, "lb.crt"), dir+"/broker.pem")
	w.must("cp", filepath.Join(w.dir, "lb.key"), dir+"/broker.key")
	w.must("mosquitto_passwd", "-b", dir+"/passwords", "grafana", "secret")
	w.must("sh", "-c", "printf 'user grafana\ntopic read rg/v1/workspaces/#\ntopic read rg/v1/hosts/+/presence\n' >>"+dir+"/acl-integrations; printf 'pid_file "+dir+"/pid\nuser root\n' >"+dir+"/head; cat "+dir+"/remotegpu.conf >>"+dir+"/head; mv "+dir+"/head "+dir+"/remotegpu.conf")
	w.start("srv", "mosquitto.log", "mosquitto", "-c", dir+"/remotegpu.conf")
	r.flags = []string{"--mqtt-broker", "tls://" + srvAddr + ":8884", "--mqtt-broker-ca", filepath.Join(w.dir, "lb.crt"), "--mqtt-broker-hosts", "tls://" + srvAddr + ":8883"}
}

const grafana = "-V 5 -h " + srvAddr + " -p 8885 -u grafana -P secret --cafile "

// eventsOutside subscribes at the external broker, as an integration does: each
// event comes once, though two servers hear of it.
func eventsOutside(t *testing.T, r *replicas, dir string) {
	w := r.w
	ca := filepath.Join(w.dir, "lb.crt")
	if out := w.in("client", "mosquitto_sub "+grafana+ca+" -W 10 -C 1 -F '%t %r' -t rg/v1/hosts/+/presence"); !strings.HasSuffix(out, "/presence 1") {
		t.Errorf("presence is not retained: %q", out)
	}
	sub := w.start("client", "outside.log", "sh", "-c", "mosquitto_sub "+grafana+ca+" -W 10 -F '%t %p' -t 'rg/v1/workspaces/+/events/#'")
	time.Sleep(time.Second) // until it has subscribed
	w.in("client", "remotegpu env create two --image "+busyboxImage+" && remotegpu env rm two")
	sub.Wait()
	b, err := os.ReadFile(filepath.Join(w.dir, "outside.log"))
	if err != nil {
		t.Fatal(err)
	}
	for _, phase := range []string{"pending", "running", "deleting", "deleted"} {
		if n := strings.Count(string(b), "/events/environment/"+phase+" "); n != 1 {
			t.Errorf("%d events of %s:\n%s", n, phase, b)
		}
	}
}

// strangersOutside tries what the configuration must deny.
func strangersOutside(t *testing.T, r *replicas, m *machine, dir string) {
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

// leadersKilled kills the server that hears the hosts, twice, while a person
// works in a session.
func leadersKilled(t *testing.T, r *replicas) {
	work := r.w.newWork(t, "one", uint64(time.Now().UnixNano()), hurried)
	work.until(1, 30*time.Second)
	dies := "a"
	if !r.leads("a") {
		dies = "b"
	}
	for range 2 {
		lines, _ := work.lines()
		began := time.Now()
		r.kill(dies)
		work.until(lines+2, 20*time.Second)
		resumed := time.Since(began)
		r.w.in("client", "timeout 30 remotegpu env create two --image "+busyboxImage+" && remotegpu env rm two")
		t.Logf("%s killed: session goes on after %v; an environment was made and removed after %v", dies, resumed.Round(time.Millisecond), time.Since(began).Round(time.Millisecond))
		if status := r.w.in("client", "remotegpu host ls"); strings.Contains(status, "offline") {
			t.Errorf("a host that noticed nothing: %s", status)
		}
		os.Remove(filepath.Join(r.w.dir, dies+".log"))
		r.begin(dies)
		dies = other(dies)
	}
	work.finish()
}
