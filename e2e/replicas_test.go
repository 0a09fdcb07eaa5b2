package e2e

import (
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/remotegpu/remotegpu/control/pg"
)

// replicas are two servers on one database, each on a machine of its own,
// behind haproxy as docs/replicas.md has it.
type replicas struct {
	*plane
	database string
	flags    []string          // more of both servers
	at       map[string]string // address by name, a or b
	server   map[string]*exec.Cmd
}

// newReplicas starts them; prepare may add to them when there is a database and
// a certificate.
func (w *world) newReplicas(t *testing.T, prepare ...func(*replicas)) *replicas {
	t.Helper()
	r := &replicas{
		plane: &plane{w: w, url: "https://" + srvAddr + ":8443"}, database: w.database(filepath.Join(w.dir, "db")),
		at: map[string]string{"a": srvAddr, "b": proxyAddr}, server: map[string]*exec.Cmd{},
	}
	crt := r.certify()
	if w.external {
		r.flags = w.mosquitto(r.database, filepath.Join(w.dir, "lb"))
	}
	for _, fn := range prepare {
		fn(r)
	}
	for _, name := range []string{"a", "b"} {
		r.begin(name)
	}
	r.balance(crt)
	return r
}

// database starts a PostgreSQL that is no server's own.
func (w *world) database(dir string) (url string) {
	w.t.Helper()
	w.must("mkdir", "-p", filepath.Dir(dir)) // which its user passes through
	db, err := pg.StartPrivate(w.t.Context(), dir, slog.New(slog.DiscardHandler))
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(db.Close)
	return db.URL()
}

// certify makes the certificate that people and hosts see and returns its file,
// with its key.
func (r *replicas) certify() string {
	w := r.w
	crt, key, both := filepath.Join(w.dir, "lb.crt"), filepath.Join(w.dir, "lb.key"), filepath.Join(w.dir, "lb.pem")
	w.must("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "30",
		"-keyout", key, "-out", crt, "-subj", "/CN="+srvAddr, "-addext", "subjectAltName=DNS:"+cloudName+",IP:"+srvAddr)
	w.must("sh", "-c", "cat "+crt+" "+key+" >"+both)
	return both
}

// balance starts haproxy with the documented configuration, but that hosts and
// people land at random: the fewest connections would keep to a pattern. One
// draw, as of two haproxy takes the server with fewer connections.
func (r *replicas) balance(crt string) {
	w := r.w
	b, err := os.ReadFile("../docs/replicas.md")
	if err != nil {
		w.t.Fatal(err)
	}
	_, conf, _ := strings.Cut(string(b), "```haproxy\n")
	conf, _, ok := strings.Cut(conf, "```")
	if !ok {
		w.t.Fatal("docs/replicas.md has no configuration of haproxy")
	}
	conf = strings.NewReplacer("maxconn 20000", "maxconn 2000", "balance leastconn", "balance random(1)", "bind :443 ", "bind "+srvAddr+":8443 ", "bind :2222", "bind "+srvAddr+":2222", "/etc/haproxy/gpu.example.org.pem", crt,
		"10.0.0.1:2222", r.at["a"]+":2201", "10.0.0.2:2222", r.at["b"]+":2201", "10.0.0.1", r.at["a"], "10.0.0.2", r.at["b"]).Replace(conf)
	if err := os.WriteFile(filepath.Join(w.dir, "haproxy.cfg"), []byte(conf), 0o644); err != nil {
		w.t.Fatal(err)
	}
	w.start("srv", "haproxy.log", "haproxy", "-db", "-f", filepath.Join(w.dir, "haproxy.cfg"))
	eventually(w.t, 20*time.Second, "haproxy has servers", func() (string, bool) {
		out, err := w.try("srv", "curl -fsSk -m 2 "+r.url+"/readyz")
		return out, err == nil
	})
}

// begin starts a server and waits until it is ready.
func (r *replicas) begin(name string) {
	r.w.t.Helper()
	r.server[name] = r.launch(name)
	eventually(r.w.t, 60*time.Second, name+" is ready", func() (string, bool) {
		out, err := r.w.try("srv", r.ready(name))
		return out, err == nil
	})
}

// launch starts a server.
func (r *replicas) launch(name string) *exec.Cmd {
	w := r.w
	w.t.Helper()
	at := r.at[name]
	return w.start(map[string]string{"a": "srv", "b": "proxy"}[name], name+".log", filepath.Join(w.bin, "remotegpu"),
		append([]string{"server", "--data-dir", filepath.Join(w.dir, "srv"), "--downloads", w.downloads(), "--database-url", r.database, "--url", r.url,
			"--behind-proxy", "--proxy-ca", filepath.Join(w.dir, "lb.crt"), "--listen", at + ":8080", "--ssh-listen", at + ":2201", "--ssh-address", srvAddr + ":2222",
			"--mqtt-listen", at + ":1883", "--replica-listen", at + ":8445"}, r.flags...)...)
}

// ready is a line that works in the network srv once a server is ready.
func (r *replicas) ready(name string) string {
	return "curl -fsS -m 2 http://" + r.at[name] + ":8080/readyz"
}

func (r *replicas) kill(name string) {
	r.server[name].Process.Signal(syscall.SIGKILL)
	r.server[name].Wait()
}

// ask returns what one value of the database is.
func (r *replicas) ask(sql string) (answer string) {
	r.w.t.Helper()
	conn, err := pgx.Connect(r.w.t.Context(), r.database)
	if err != nil {
		r.w.t.Fatal(err)
	}
	defer conn.Close(r.w.t.Context())
	if err := conn.QueryRow(r.w.t.Context(), sql).Scan(&answer); err != nil && !pg.IsNone(err) {
		r.w.t.Fatal(err)
	}
	return answer
}

// holder returns which server has the host's MQTT connection, as the database
// knows, or hears it at the external broker; empty: none.
func (r *replicas) holder() string {
	if r.w.external {
		if r.ask("select online::text from hosts where state <> 'retired'") == "false" {
			return ""
		}
		return r.leader()
	}
	at := r.ask("select r.address from hosts h join replicas r on r.id = h.replica where h.online")
	for name, address := range r.at {
		if at == address+":8445" {
			return name
		}
	}
	return ""
}

// leads reports whether a server has said, since it began, that it leads.
func (r *replicas) leads(name string) bool {
	b, _ := os.ReadFile(filepath.Join(r.w.dir, name+".log"))
	return strings.Contains(string(b), "this replica leads")
}

func other(name string) string {
	if name == "a" {
		return "b"
	}
	return "a"
}

// TestReplicas: hosts and people land anywhere, and it is as if there were one
// server, also when one of them dies.
func TestReplicas(t *testing.T) {
	w := newWorld(t)
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
	t.Run("hops", func(t *testing.T) { hopsAreUsed(t, r, key) })
	t.Run("events", func(t *testing.T) { eventsAtEach(t, r) })
	t.Run("killed", func(t *testing.T) { replicasKilled(t, r) })
	t.Run("stopped", func(t *testing.T) { replicaStopped(t, r) })
	t.Run("vanished", func(t *testing.T) { replicaVanished(t, r) })
	t.Run("hangs", func(t *testing.T) { replicaHangs(t, r) })
	t.Run("offline", func(t *testing.T) {
		m.unplug()
		eventually(t, 30*time.Second, "the host is offline", func() (string, bool) {
			now := r.holder()
			return "it is at " + now, now == ""
		})
		offlineIsSaid(t, r, key)
	})
}

func sshThroughEither(t *testing.T, r *replicas, key string) {
	for range 6 {
		for name, at := range r.at {
			began := time.Now()
			if out := r.w.in("client", strings.Replace(key, "-p 2222", "-p 2201", 1)+" one.default@"+at+" hostname"); out != "one" {
				t.Errorf("through %s, the host being at %s: %q", name, r.holder(), out)
			}
			t.Logf("through %s, the host being at %s: %v", name, r.holder(), time.Since(began).Round(time.Millisecond))
		}
	}
}

func offlineIsSaid(t *testing.T, r *replicas, key string) {
	for name, at := range r.at {
		began := time.Now()
		out, err := r.w.try("client", strings.Replace(key, "-p 2222", "-p 2201", 1)+" one.default@"+at+" hostname")
		if err == nil || !strings.Contains(out, "offline") || time.Since(began) > atOnce {
			t.Errorf("through %s after %v: %q", name, time.Since(began), out)
		}
	}
}

// hopsAreUsed has streams open through both servers and looks for those that
// cross: most do not, as they find a warm connection where the person is.
func hopsAreUsed(t *testing.T, r *replicas, key string) {
	crossing := 0
	for round := 0; crossing == 0 && round < 5; round++ {
		crossing = r.crossing(key)
		t.Logf("%d of 16 streams cross", crossing)
	}
	if crossing == 0 || crossing > 16 {
		t.Errorf("%d of 16 streams cross", crossing)
	}
}

// crossing opens 16 streams and returns how many of them cross.
func (r *replicas) crossing(key string) (crossing int) {
	w := r.w
	w.t.Helper()
	log := filepath.Join(w.dir, "hop.log")
	os.Remove(log)
	var open []*exec.Cmd
	for i := range 16 {
		at := r.at[[]string{"a", "b"}[i%2]]
		open = append(open, w.start("client", "hop.log", "sh", "-c", "exec "+strings.Replace(key, "-p 2222", "-p 2201", 1)+" one.default@"+at+" 'echo open; sleep 60'"))
	}
	eventually(w.t, 20*time.Second, "all are open", func() (string, bool) {
		n := strings.Count(tail(log), "open")
		return fmt.Sprint(n), n == 16
	})
	for _, role := range []string{"srv", "proxy"} {
		n := 0
		fmt.Sscan(w.in(role, "ss -Htn state established '( sport = :8445 )' | wc -l"), &n)
		crossing += n
	}
	for _, ssh := range open {
		w.end(ssh, syscall.SIGTERM)
	}
	return crossing
}

// eventsAtEach subscribes at both servers: each event comes once.
func eventsAtEach(t *testing.T, r *replicas) {
	w := r.w
	token := w.in("client", "remotegpu token create mqtt")
	subs := map[string]*listener{}
	for name, at := range r.at {
		subs[name] = w.listen("events-"+name+".log", "-V 5 -h "+at+" -p 1883 -u token -P "+token+" -F '%t %p' -t 'rg/v1/workspaces/+/events/#'")
		presence := "mosquitto_sub -V 5 -h " + at + " -p 1883 -u token -P " + token + " -W 30 -C 1 -F '%t %r' -t rg/v1/hosts/+/presence"
		if out := w.in("client", presence); !strings.HasSuffix(out, "/presence 1") {
			t.Errorf("presence is not retained at %s: %q", name, out)
		}
	}
	w.in("client", "remotegpu env create two --image "+busyboxImage+" && remotegpu env restart two && remotegpu env rm two")
	var seen []string
	for _, name := range []string{"a", "b"} {
		text := subs[name].until(t, "/events/environment/deleted ")
		seen = append(seen, text)
		once := map[string]bool{}
		for line := range strings.Lines(text) {
			if strings.Contains(line, "/events/") && once[line] {
				t.Errorf("twice at %s: %s", name, line)
			}
			once[line] = true
		}
		for _, phase := range []string{"pending", "running", "deleting", "deleted"} {
			if !strings.Contains(text, "/events/environment/"+phase+" ") {
				t.Errorf("no event of %s at %s:\n%s", phase, name, text)
			}
		}
	}
	if seen[0] != seen[1] {
		t.Errorf("at a:\n%s\nat b:\n%s", seen[0], seen[1])
	}
}

// replicasKilled kills the server that has the host, some times in turn, while
// a person works in a session, which is recorded.
func replicasKilled(t *testing.T, r *replicas) {
	r.w.in("client", "remotegpu recording policy all")
	defer r.w.in("client", "remotegpu recording policy off")
	work := r.w.newWork(t, "one", uint64(time.Now().UnixNano()), hurried)
	work.until(1, 30*time.Second)
	for range 4 {
		dies := r.holder()
		if dies == "" {
			t.Fatal("the host is nowhere")
		}
		began := time.Now()
		lines, _ := work.lines()
		r.kill(dies)
		eventually(t, 15*time.Second, "the host is back elsewhere", func() (string, bool) {
			now := r.holder()
			return "it is at " + now, now == other(dies)
		})
		back := time.Since(began)
		work.until(lines+2, 20*time.Second)
		t.Logf("%s killed: host back after %v, session goes on after %v", dies, back.Round(time.Millisecond), time.Since(began).Round(time.Millisecond))
		r.obeyed()
		t.Logf("an environment was made and removed after %v", time.Since(began).Round(time.Millisecond))
		if out := r.w.in("client", "remotegpu host ls"); strings.Contains(out, "offline") {
			t.Errorf("a host that is back: %s", out)
		}
		eventually(t, 15*time.Second, "the other one leads", func() (string, bool) {
			return "it does not", r.leads(other(dies))
		})
		os.Remove(filepath.Join(r.w.dir, dies+".log"))
		r.begin(dies)
	}
	work.finish()
}

// obeyed has the host run something.
func (r *replicas) obeyed() {
	r.w.t.Helper()
	r.w.in("client", "timeout 90 remotegpu env create two --image "+busyboxImage+" && timeout 90 remotegpu env rm two")
}

// replicaStopped stops the server that has the host in the orderly way.
func replicaStopped(t *testing.T, r *replicas) {
	work := r.w.newWork(t, "one", uint64(time.Now().UnixNano()), hurried)
	work.until(1, 30*time.Second)
	stops, began := r.holder(), time.Now()
	r.server[stops].Process.Signal(syscall.SIGTERM)
	eventually(t, 15*time.Second, "the host is elsewhere", func() (string, bool) {
		now := r.holder()
		return "it is at " + now, now == other(stops)
	})
	lines, _ := work.lines()
	work.until(lines+2, 20*time.Second)
	t.Logf("%s stopped: host elsewhere after %v", stops, time.Since(began).Round(time.Millisecond))
	if err := r.server[stops].Wait(); err != nil {
		t.Errorf("%s: %v", stops, err)
	}
	r.begin(stops)
	work.finish()
}

// replicaVanished cuts the machine of a server off, without a word to anybody:
// its hosts are at the other one when haproxy has let go of it.
func replicaVanished(t *testing.T, r *replicas) {
	eventually(t, 3*time.Minute, "the host is at b", func() (string, bool) {
		if r.holder() == "b" {
			return "", true
		}
		r.w.reset("host") // it comes back to either
		time.Sleep(2 * time.Second)
		return "it is at " + r.holder(), false
	})
	work := r.w.newWork(t, "one", uint64(time.Now().UnixNano()), hurried)
	work.until(1, 30*time.Second)
	began := time.Now()
	r.w.in("proxy", "ip link set wan down")
	eventually(t, 30*time.Second, "the host is at a", func() (string, bool) {
		now := r.holder()
		return "it is at " + now, now == "a"
	})
	back := time.Since(began)
	lines, _ := work.lines()
	work.until(lines+2, 30*time.Second)
	t.Logf("b vanished: host at a after %v, session goes on after %v", back.Round(time.Millisecond), time.Since(began).Round(time.Millisecond))
	r.w.in("proxy", "ip link set wan up")
	work.finish()
}

// replicaHangs stops the process of the server that leads, as a debugger does:
// another one leads, and this one does not when it goes on.
func replicaHangs(t *testing.T, r *replicas) {
	hung := r.leader()
	began := time.Now()
	r.server[hung].Process.Signal(syscall.SIGSTOP)
	eventually(t, 30*time.Second, "the other one leads", func() (string, bool) {
		now := r.leader()
		return now, now == other(hung)
	})
	t.Logf("%s hangs: %s leads after %v", hung, other(hung), time.Since(began).Round(time.Millisecond))
	eventually(t, 60*time.Second, "the host is at the other one", func() (string, bool) {
		now := r.holder()
		return "it is at " + now, now == other(hung)
	})
	t.Logf("%s hangs: the host is at %s after %v", hung, other(hung), time.Since(began).Round(time.Millisecond))
	r.obeyed()
	t.Logf("an environment was made and removed after %v", time.Since(began).Round(time.Millisecond))
	r.server[hung].Process.Signal(syscall.SIGCONT)
	time.Sleep(3 * time.Second) // it notices, and waits for its turn
	if now := r.leader(); now == hung {
		t.Errorf("%s leads again, though the other one does", now)
	}
	r.obeyed()
}

// leader returns the server that was the last to say that it leads.
func (r *replicas) leader() (name string) {
	latest := ""
	for _, one := range []string{"a", "b"} {
		b, _ := os.ReadFile(filepath.Join(r.w.dir, one+".log"))
		for line := range strings.Lines(string(b)) {
			if at, ok := strings.CutPrefix(line, `{"time":"`); ok && strings.Contains(line, "this replica leads") && at > latest {
				latest, name = at, one
			}
		}
	}
	return name
}
