package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// shellOn joins a machine, starts an environment on it and has shells there, and
// the machine no port.
func shellOn(t *testing.T, p *plane, m *machine, options string) {
	t.Helper()
	w := p.w
	t.Cleanup(func() { m.dump(t) })
	p.login()
	p.pushBusybox()
	p.join(m, options)
	w.in("client", "remotegpu env create one --image "+busyboxImage)
	ssh := p.sshKey() + " one.default@" + srvAddr
	if out := w.in("client", ssh+" hostname"); out != "one" {
		t.Errorf("ssh: %q", out)
	}
	p.terminal(t, ssh)
	if out := w.in("client", "remotegpu ssh one -- hostname"); out != "one" {
		t.Errorf("remotegpu ssh: %q", out)
	}
	m.noPort(t)
}

// TestOnlyThroughAProxy takes every way out from the host but an HTTP proxy
// with a password.
func TestOnlyThroughAProxy(t *testing.T) {
	w := newWorld(t)
	p, m := w.newPlane(), w.machine()
	conf := filepath.Join(w.dir, "tinyproxy.conf")
	text := "Port 3128\nListen " + proxyAddr + "\nConnectPort 8443\nBasicAuth lab secret\nMaxClients 50\n"
	if err := os.WriteFile(conf, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	w.start("proxy", "proxy.log", "tinyproxy", "-d", "-c", conf)
	w.in("nat1", "nft insert rule ip guard through ip daddr != "+proxyAddr+" iifname lan drop")
	if out, err := m.sh("curl -sSk -m 3 " + p.url + "/healthz"); err == nil {
		t.Fatalf("the host reaches the server without the proxy: %s", out)
	}
	proxy := "http://lab:secret@" + proxyAddr + ":3128"
	m.env = []string{"https_proxy=" + proxy}
	shellOn(t, p, m, "--proxy "+proxy)
	if out := m.must("cat /var/log/remotegpu/*.log"); strings.Contains(out, "secret") {
		t.Error("the proxy's password is in the agent's log")
	}
}

// TestBehindAProxyThatEndsTLS puts nginx with a certificate of its own in front
// of the server.
func TestBehindAProxyThatEndsTLS(t *testing.T) {
	w := newWorld(t)
	crt, key := filepath.Join(w.dir, "nginx.crt"), filepath.Join(w.dir, "nginx.key")
	w.must("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "30",
		"-keyout", key, "-out", crt, "-subj", "/CN="+srvAddr, "-addext", "subjectAltName=IP:"+srvAddr)
	conf := filepath.Join(w.dir, "nginx.conf")
	text := Nginx{Dir: w.dir, Listen: srvAddr + ":8443", Cert: crt, Key: key, Server: "127.0.0.1:8080"}.Config()
	if err := os.WriteFile(conf, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	w.start("srv", "nginx.log", "nginx", "-c", conf)
	p := w.newPlane("--behind-proxy", "--proxy-ca", crt, "--listen", "127.0.0.1:8080")
	m := w.machine()
	m.cwd = w.dir
	w.must("cp", crt, filepath.Join(w.dir, "ca.pem"))
	shellOn(t, p, m, "")
	if out := w.in("srv", "ss -Htn state established '( sport = :8080 )' | wc -l"); out == "0" {
		t.Error("nothing goes through nginx")
	}
}
