package e2e

import (
	"strings"
	"testing"
	"time"
)

// TestBadInput is what goes wrong in every fleet: each must give one clear
// sentence where the person looks, and lose nothing.
func TestBadInput(t *testing.T) {
	w := newWorld(t)
	recordings, flags := w.recordingsOn("1m")
	p, m := w.newPlane(flags...), w.machine()
	t.Cleanup(func() { m.dump(t) })
	p.login()
	p.pushBusybox()
	w.in("client", "remotegpu workspace create other")

	// On the host, before it has joined.
	token := func(options string) string {
		line := w.in("client", "remotegpu host join -o json "+options)
		_, rest, _ := strings.Cut(line, `"token": "`)
		tok, _, _ := strings.Cut(rest, `"`)
		return tok
	}
	script := "curl -fsSk " + p.url + "/install.sh | sh -s -- --gpu-source sim:2xH100 --token "
	good := token("")
	for _, tt := range []struct{ name, line, want string }{
		{"unknown token", script + "rgj_NOSUCHTOKEN", "This join token is unknown here."},
		{"cut token", script + good[:len(good)-3], "This join token is unknown here."},
		{"no token", strings.TrimSuffix(script, " --token "), "a join token is missing"},
		{"wrong key of the server", "curl -fsSk --pinnedpubkey sha256//AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA= " + p.url + "/install.sh", "public key does not match pinned public key"},
	} {
		if out, err := m.sh(tt.line); err == nil || !strings.Contains(out, tt.want) {
			t.Errorf("%s: err %v, output lacks %q:\n%s", tt.name, err, tt.want, out)
		}
	}
	if out, err := m.sh("ls /etc/remotegpu /var/lib/remotegpu /usr/local/bin/remotegpu-agent 2>/dev/null | grep ."); err == nil {
		t.Errorf("refused tries leave something: %s", out)
	}
	m.must(script + good)
	used, err := m.sh("REMOTEGPU_DATA_DIR=/var/lib/second REMOTEGPU_TOKEN=" + good + " /usr/local/bin/remotegpu-agent enroll --server " + p.url + " --ca /etc/remotegpu/ca.pem")
	if err == nil || !strings.Contains(used, "used up: 1 of 1") {
		t.Errorf("a used token: %v %s", err, used)
	}
	if out := w.in("client", "remotegpu host ls"); !strings.Contains(out, "online") {
		t.Fatalf("the host is not online: %s", out)
	}

	w.in("client", "remotegpu env create keep --gpus 1 --image "+busyboxImage)
	before := p.life(m, "keep")
	for _, tt := range []struct{ name, line, want string }{
		{"name taken", "remotegpu env create keep --image " + busyboxImage, "keep"},
		{"bad name", "remotegpu env create 'Not a name' --image " + busyboxImage, "name"},
		{"more GPUs than the fleet has", "remotegpu env create huge --gpus 64", "GPU"},
		{"a model that nobody has", "remotegpu env create odd --gpus 1 --gpu-model MI300", "MI300"},
		{"no such environment", "remotegpu ssh nothing -- true", "nothing"},
		{"no such host", "remotegpu host show nowhere", "nowhere"},
		{"bad size", "remotegpu env create x --memory lots", "lots"},
		{"image of another workspace", "remotegpu env create x --image " + srvAddr + ":8443/other/secret:1", "other"},
		{"bad image", "remotegpu env create x --image 'UPPER CASE'", "image"},
		{"not logged in", "REMOTEGPU_CONFIG=/nonexistent remotegpu env ls", "remotegpu login"},
		{"wrong server", "REMOTEGPU_URL=https://" + srvAddr + ":9 REMOTEGPU_TOKEN=rgt_x remotegpu env ls", "cannot reach"},
		{"unknown authority", "REMOTEGPU_URL=" + p.url + " REMOTEGPU_TOKEN=rgt_x remotegpu env ls", "unknown authority"},
	} {
		out, err := w.try("client", tt.line)
		if err == nil || !strings.Contains(out, tt.want) {
			t.Errorf("%s: err %v, output lacks %q: %s", tt.name, err, tt.want, out)
		}
		if n := strings.Count(out, "\n"); n > 1 {
			t.Errorf("%s: %d lines, one sentence is enough:\n%s", tt.name, n+1, out)
		}
		if strings.Contains(out, "Internal error") {
			t.Errorf("%s: %s", tt.name, out)
		}
	}

	// What shows only on the host.
	w.in("client", "remotegpu env create noimage --wait=false --image "+srvAddr+":8443/default/missing:1")
	w.in("client", "remotegpu env create nocommand --wait=false --restart never --image "+busyboxImage+" -- /no/such/program")
	for name, want := range map[string]string{"noimage": "missing", "nocommand": "command was not found"} {
		eventually(t, 30*time.Second, name+" says why", func() (string, bool) {
			e := p.env(name)
			return e.Phase + ": " + e.Message, e.Phase != "running" && strings.Contains(e.Message, want)
		})
		t.Logf("%s is %s: %s", name, p.env(name).Phase, p.env(name).Message)
		if out, err := w.try("client", "remotegpu ssh "+name+" -- true"); err == nil || !strings.Contains(out, name) {
			t.Errorf("ssh to %s: %v %s", name, err, out)
		}
	}
	key := strings.Replace(p.sshKey(), "-o LogLevel=ERROR", "", 1)
	w.in("client", "ssh-keygen -q -t ed25519 -N '' -f "+w.dir+"/unknown")
	out, _ := w.try("client", strings.Replace(key, w.dir+"/id", w.dir+"/unknown", 1)+" keep.default@"+srvAddr+" true")
	if !strings.Contains(out, "remotegpu key add") {
		t.Errorf("a key that is not registered: %s", out)
	}

	t.Run("recording store full", func(t *testing.T) { recordingStoreFull(t, p, recordings, key) })

	// State on the host that is damaged: set aside, told, and nothing lost.
	m.kill(t, "remotegpu-agent run")
	m.must("echo garbage > /var/lib/remotegpu/state.json; echo garbage > /var/lib/remotegpu/desired.cose")
	eventually(t, 30*time.Second, "damage is told", func() (string, bool) {
		out := w.in("client", "remotegpu host events $(remotegpu host ls | awk 'NR==2{print $1}')")
		return out, strings.Contains(out, "corrupt") || strings.Contains(out, "damaged")
	})
	if now := p.life(m, "keep"); now != before {
		t.Errorf("the container is another: %s, was %s", now, before)
	}
}
