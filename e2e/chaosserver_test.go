package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/remotegpu/remotegpu/e2e/chaos"
)

// server is a process of the control plane.
type server struct {
	name  string
	log   string
	ready string // a line that works in the network srv once it is
	start func() *exec.Cmd

	mu  sync.Mutex // guards cmd
	cmd *exec.Cmd
}

// runs reports whether it has not ended; one that has by itself nobody has waited for.
func (s *server) runs() bool {
	if s.cmd.ProcessState != nil {
		return false
	}
	stat, err := os.ReadFile("/proc/" + strconv.Itoa(s.cmd.Process.Pid) + "/stat")
	return err == nil && !bytes.Contains(stat, []byte(") Z "))
}

// newControl starts the control plane: one server with its own database, or two
// behind haproxy, and an MQTT broker beside them if there shall be one.
func (y *yard) newControl(servers, brokers int) {
	y.t.Helper()
	w, url := y.w, []string{"--url", "https://" + cloudName + ":8443"}
	if servers == 1 {
		y.disk, y.data = filepath.Join(w.dir, "srv"), filepath.Join(w.dir, "srv/postgres/data")
		y.database = "host=" + filepath.Join(w.dir, "srv/postgres") + " port=5432 user=remotegpu dbname=remotegpu"
		w.small(y.disk)
		y.p = w.newPlane(url...)
		y.servers = []*server{{name: "the server", log: "server.log", ready: "curl -fsSk -m 2 " + y.p.url + "/readyz", cmd: y.p.cmd,
			start: func() *exec.Cmd { return w.start("srv", "server.log", filepath.Join(w.bin, "remotegpu"), y.p.args...) }}}
		return
	}
	y.disk, y.data = filepath.Join(w.dir, "db"), filepath.Join(w.dir, "db/data")
	w.small(y.disk)
	w.external = brokers > 0
	r := w.newReplicas(w.t, func(r *replicas) { r.flags = append(r.flags, url...) })
	w.must("cp", filepath.Join(w.dir, "lb.crt"), filepath.Join(w.dir, "ca.pem"))
	y.p, y.database = r.plane, r.database
	for _, name := range []string{"a", "b"} {
		y.servers = append(y.servers, &server{name: "server " + name, log: name + ".log", ready: r.ready(name), cmd: r.server[name],
			start: func() *exec.Cmd { return r.launch(name) }})
	}
}

// begin starts a server, if none is there, and waits until it is ready. Two faults
// may end it in the same moment.
func (y *yard) begin(ctx context.Context, s *server) error {
	s.mu.Lock()
	if !s.runs() {
		y.w.end(s.cmd, syscall.SIGKILL)
		s.cmd = s.start()
	}
	s.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for {
		out, err := y.w.try("srv", s.ready)
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return errors.New(s.name + " is not ready: " + out)
		case <-time.After(200 * time.Millisecond):
		}
	}
}

func (y *yard) endServer(sig syscall.Signal) act {
	return func(_ context.Context, h chaos.Hit) error {
		s := y.servers[h.Part]
		s.mu.Lock()
		defer s.mu.Unlock()
		y.w.end(s.cmd, sig)
		return nil
	}
}

func (y *yard) serverBack(ctx context.Context, h chaos.Hit) error {
	return y.begin(ctx, y.servers[h.Part])
}

// broker is mosquitto, if there is one.
func (y *yard) broker(chaos.Hit) []int {
	b, _ := os.ReadFile(filepath.Join(y.w.dir, "mosquitto/pid"))
	if pid, err := strconv.Atoi(strings.TrimSpace(string(b))); err == nil {
		return []int{pid}
	}
	return nil
}

func (y *yard) brokerBack(context.Context, chaos.Hit) error {
	y.w.startMosquitto()
	return nil
}

// postmaster is PostgreSQL's first process.
func (y *yard) postmaster(chaos.Hit) []int {
	b, _ := os.ReadFile(filepath.Join(y.data, "postmaster.pid"))
	line, _, _ := strings.Cut(string(b), "\n")
	if pid, err := strconv.Atoi(line); err == nil {
		return []int{pid}
	}
	return nil // it is just being started
}

// processes is every one of PostgreSQL's: they work in its data folder.
func (y *yard) processes(chaos.Hit) (all []int) {
	links, _ := filepath.Glob("/proc/[0-9]*/cwd")
	for _, link := range links {
		if cwd, err := os.Readlink(link); err == nil && cwd == y.data {
			var pid int
			fmt.Sscanf(link, "/proc/%d/cwd", &pid)
			all = append(all, pid)
		}
	}
	return all
}
