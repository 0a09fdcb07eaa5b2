package e2e

import (
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestTwoNATs is the main job: one line on a host that nobody can reach, then
// a shell in a container on it.
func TestTwoNATs(t *testing.T) {
	w := newWorld(t)
	p, m := w.newPlane("--mqtt-listen", srvAddr+":8883"), w.machine()
	t.Cleanup(func() { m.dump(t) })
	p.login()
	p.pushBusybox()
	if out := p.join(m, "--name box"); !strings.Contains(out, "this host is visible at "+p.url) {
		t.Errorf("the install line does not say where the host is visible:\n%s", out)
	}
	w.in("client", "remotegpu env create one --gpus 1 --image "+busyboxImage)
	ssh := p.sshKey() + " one.default@" + srvAddr

	t.Run("exec", func(t *testing.T) {
		if out := w.in("client", ssh+" 'echo out; hostname'"); out != "out\none" {
			t.Errorf("got %q", out)
		}
		if out, err := w.try("client", ssh+" 'echo err >&2; exit 7'; echo status $?"); err != nil || out != "err\nstatus 7" {
			t.Errorf("got %q, %v", out, err)
		}
		if out, _ := w.try("client", ssh+" 'kill -TERM $$'; echo status $?"); !strings.HasSuffix(out, "status 255") {
			t.Errorf("killed by a signal: %q; OpenSSH says 255", out)
		}
	})
	t.Run("binary", func(t *testing.T) {
		file := filepath.Join(w.dir, "random")
		w.must("sh", "-c", "head -c 5000000 /dev/urandom >"+file)
		want := strings.Fields(w.must("sha256sum", file))[0]
		if got := w.in("client", ssh+" cat <"+file+" | sha256sum"); !strings.HasPrefix(got, want) {
			t.Errorf("there and back: %s, want %s", got, want)
		}
		if got := w.in("client", ssh+" sha256sum <"+file); !strings.HasPrefix(got, want) {
			t.Errorf("there: %s, want %s", got, want)
		}
	})
	t.Run("terminal", func(t *testing.T) { p.terminal(t, ssh) })
	t.Run("many channels", func(t *testing.T) {
		mux := " -o ControlPath=" + w.dir + "/mux "
		w.in("client", strings.Replace(ssh, "ssh ", "ssh -M -N -f"+mux, 1))
		out := w.in("client", "for i in 1 2 3 4 5 6 7 8; do "+strings.Replace(ssh, "ssh ", "ssh "+mux, 1)+" 'echo n; sleep 0.3' & done; wait")
		if strings.Count(out, "n") != 8 {
			t.Errorf("got %q", out)
		}
		w.in("client", strings.Replace(ssh, "ssh ", "ssh -O exit"+mux, 1)+" 2>/dev/null")
	})
	t.Run("over HTTPS", func(t *testing.T) {
		if out, _ := w.try("client", "remotegpu ssh one -- 'echo hi; exit 9'; echo status $?"); out != "hi\nstatus 9" {
			t.Errorf("remotegpu ssh: %q", out)
		}
		cmd := "ssh -F none -o ProxyCommand='remotegpu ssh-proxy' -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR one.default@any echo proxied"
		if out := w.in("client", cmd); out != "proxied" {
			t.Errorf("ProxyCommand: %q", out)
		}
	})
	t.Run("cp", func(t *testing.T) { copies(t, p) })
	t.Run("attach", func(t *testing.T) { attaches(t, p) })
	t.Run("logs", func(t *testing.T) {
		w.in("client", "remotegpu env create talks --image "+busyboxImage+" -- sh -c 'for i in 1 2 3 4 5; do echo line $i; done; sleep 1; echo oops >&2; while ! test -e /tmp/more; do sleep 0.1; done; echo more; sleep 1000'")
		eventually(t, 10*time.Second, "the log", func() (string, bool) { return p.prints("remotegpu env logs talks --tail 3", "line 4\nline 5\noops") })
		w.start("client", "follow.log", "env", "REMOTEGPU_CONFIG="+filepath.Join(w.dir, "cli.json"), filepath.Join(w.bin, "remotegpu"), "env", "logs", "talks", "-f", "--tail", "1")
		follow := filepath.Join(w.dir, "follow.log")
		eventually(t, 10*time.Second, "the end of the log", func() (string, bool) { return tail(follow), tail(follow) == "oops\n" })
		w.in("client", "remotegpu ssh talks -- 'echo >/tmp/more'")
		eventually(t, 10*time.Second, "what is added to the log", func() (string, bool) { return tail(follow), tail(follow) == "oops\nmore\n" })
		w.in("client", "remotegpu env stop talks")
		if out := w.in("client", "remotegpu env logs talks | tail -n 1"); out != "more" {
			t.Errorf("the log of a stopped environment ends with %q", out)
		}
		w.in("client", "remotegpu env rm talks")
	})
	t.Run("no port", func(t *testing.T) { m.noPort(t) })
	t.Run("walls", func(t *testing.T) {
		w.in("client", "remotegpu env create two --image "+busyboxImage)
		two := strings.Replace(ssh, " one.default", " two.default", 1)
		one := strings.Fields(w.in("client", ssh+" ip -4 -o addr show eth0"))[3]
		one, _, _ = strings.Cut(one, "/")
		w.start("client", "listener.log", "sh", "-c", ssh+" 'nc -l -p 9999'")
		eventually(t, 10*time.Second, "somebody listens in the other environment", func() (string, bool) {
			out, err := w.try("client", ssh+" '/bin/busybox netstat -ltn | /bin/busybox grep :9999'")
			return out, err == nil
		})
		for what, line := range map[string]string{
			"another environment": "nc -w 2 " + one + " 9999 </dev/null",
			"the host":            "nc -w 2 192.168.77.2 22 </dev/null",
			"the metadata":        "nc -w 2 169.254.169.254 80 </dev/null",
		} {
			if out, err := w.try("client", two+" '"+line+"'"); err == nil {
				t.Errorf("an environment reaches %s: %s", what, out)
			}
		}
		if out := w.in("client", ssh+" ls /dev"); !strings.Contains(out, "nvidia") {
			t.Errorf("no GPU in /dev: %s", out)
		}
		if out := w.in("client", two+" ls /dev"); strings.Contains(out, "nvidia") {
			t.Errorf("a GPU that was not asked for: %s", out)
		}
	})
	t.Run("a stop waits", func(t *testing.T) { stopWaits(t, p, ssh) })
	t.Run("standard MQTT", func(t *testing.T) { standardMQTT(t, p) })
	t.Run("again and away", func(t *testing.T) { againAndAway(t, p, m) })
}

// terminal types in a shell on a terminal, whose size changes, that ssh opens.
func (p *plane) terminal(t *testing.T, ssh string) {
	t.Helper()
	out := p.w.in("client", strings.ReplaceAll(`expect -c '
set timeout 20
set stty_init "rows 41 cols 99"
spawn SSH
expect "# "
send "stty size\r"
expect "41 99"
stty rows 25 columns 66 < $spawn_out(slave,name)
for {set i 0} {$i < 30} {incr i} {
  send "stty size\r"
  expect -timeout 1 "25 66" break
}
send "sleep 100\r"
sleep 1
send "\003"
expect "# "
send "echo interrupted \$?\r"
expect "interrupted 130"
send "exit 3\r"
expect eof
lassign [wait] pid spawnid os status
puts "status $status"'`, "SSH", strings.Replace(ssh, "ssh ", "ssh -tt ", 1)))
	for _, want := range []string{"41 99", "25 66", "interrupted 130", "status 3"} {
		if !strings.Contains(out, want) {
			t.Errorf("%q is missing:\n%s", want, out)
		}
	}
}

// noPort checks that nobody listens on the machine beyond its loopback.
func (m *machine) noPort(t *testing.T) {
	t.Helper()
	for line := range strings.Lines(m.must("ss -Hltnp")) {
		if f := strings.Fields(line); !strings.HasPrefix(f[3], "127.") && !strings.HasPrefix(f[3], "[::1]") {
			t.Errorf("somebody listens beyond loopback: %s", line)
		}
	}
}

// stopWaits stops the server while a command runs that ends soon.
func stopWaits(t *testing.T, p *plane, ssh string) {
	w := p.w
	log := filepath.Join(w.dir, "under-way.log")
	command := w.start("client", "under-way.log", "sh", "-c", ssh+" 'echo begun; sleep 3; echo finished'")
	eventually(t, 10*time.Second, "the command", func() (string, bool) { return tail(log), tail(log) == "begun\n" })
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := command.Wait(); err != nil || tail(log) != "begun\nfinished\n" {
		t.Errorf("%v, it said %q", err, tail(log))
	}
	stopped := time.Now()
	if err := p.cmd.Wait(); err != nil || time.Since(stopped) > 20*time.Second {
		t.Errorf("the server stopped %v after the command: %v", time.Since(stopped), err)
	}
	p.start()
	p.waitPhase("one", "running", 30*time.Second)
}

// standardMQTT follows the fleet as an integration does, also over a restart of
// the server.
func standardMQTT(t *testing.T, p *plane) {
	w := p.w
	w.in("client", "curl -fsSk -o "+w.dir+"/ca.pem "+p.url+"/ca.pem")
	token := w.in("client", "remotegpu token create mqtt")
	with := "-V 5 -h " + srvAddr + " -p 8883 --cafile " + w.dir + "/ca.pem -u token -P " + token + " -W 60 -F '%t %r %p' "
	presence := "mosquitto_sub " + with + "-C 1 -t rg/v1/hosts/+/presence"
	if out := w.in("client", presence); !strings.Contains(out, "/presence 1 ") {
		t.Errorf("presence is not retained: %q", out)
	}
	events := w.listen("events.log", with+"-C 1 -t 'rg/v1/workspaces/+/events/#'")
	w.in("client", "remotegpu env restart two")
	events.Wait()
	if got := events.heard(); !strings.Contains(got, "/events/environment/") || !strings.Contains(got, `"two"`) {
		t.Errorf("event: %q", got)
	}
	p.kill()
	p.start()
	eventually(t, 20*time.Second, "presence after a restart", func() (string, bool) {
		out, _ := w.try("client", presence)
		return out, strings.Contains(out, "/presence 1 ")
	})
	p.waitPhase("one", "running", 30*time.Second)
}

// againAndAway runs the install line a second time, and then uninstalls.
func againAndAway(t *testing.T, p *plane, m *machine) {
	list := "cd / && find usr/local etc/remotegpu var/lib/remotegpu -type f | grep -v -e json -e cose -e lock | xargs sha256sum"
	before, pid := m.must(list), p.env("one").Pid
	p.join(m, "--name box")
	if after := m.must(list); after != before {
		t.Errorf("the second run changed files:\n%s\n--- before\n%s", after, before)
	}
	if now := p.env("one").Pid; now != pid {
		t.Errorf("the second run restarted the container: pid %d, was %d", now, pid)
	}
	m.must("sh /usr/local/lib/remotegpu/install.sh --uninstall")
	for what, line := range map[string]string{
		"programs": "ls /usr/local/bin/remotegpu-agent /usr/local/lib/remotegpu 2>/dev/null | grep .",
		"settings": "ls /etc/remotegpu 2>/dev/null | grep .",
		"bridges":  "ip -o link | grep rg-",
		"rules":    "nft list table inet remotegpu",
		"agent":    "ps ax | grep '[r]emotegpu' | grep -v defunct",
	} {
		if out, err := m.sh(line); err == nil {
			t.Errorf("uninstall leaves %s:\n%s", what, out)
		}
	}
	eventually(t, 90*time.Second, "host is seen offline", func() (string, bool) {
		out := p.w.in("client", "remotegpu host ls")
		return out, strings.Contains(out, "offline")
	})
}
