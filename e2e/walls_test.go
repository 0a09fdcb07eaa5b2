package e2e

import (
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"
)

// wall is an address that a forward from an environment must not reach, though
// it answers: whoever owns it reaches it.
type wall struct {
	name, address string
	owner         func(address string) (string, error) // reaches it
	answers       string
	refused       string // what ssh says that the environment says
}

// walls: what a forward from an environment must not reach.
func (s *tools) walls(m *machine) {
	w, f := s.p.w, " -F "+s.config+" "
	host := func(address string) (string, error) { return m.sh("busybox nc -w 5 " + address + " </dev/null") }
	tenant := func(address string) (string, error) {
		return w.try("client", "timeout 20 ssh"+f+"-W "+address+" tools.rg </dev/null")
	}
	w.start("host", "listener.log", "busybox", "nc", "-ll", "-p", "9998", "-e", "echo", "HOST")
	// A cloud answers at the address of metadata beyond the host.
	w.in("nat2", "ip addr add 169.254.169.254/32 dev lo")
	w.start("nat2", "metadata.log", "busybox", "nc", "-ll", "-p", "80", "-e", "echo", "CREDENTIALS")
	w.start("srv", "world.log", "busybox", "nc", "-ll", "-p", "8080", "-e", "echo", "WORLD")
	w.in("client", "ssh"+f+"tools.rg 'nc -ll -p 9997 -e echo TENANT >/dev/null 2>&1 </dev/null &'")
	other := strings.Fields(w.in("client", "ssh"+f+"tools.rg ip -4 -o addr show eth0"))[3]
	other, _, _ = strings.Cut(other, "/")
	bridge := strings.Fields(w.in("client", "ssh"+f+"busy.rg ip route"))[2]
	all := []wall{
		{"the host's loopback", "127.0.0.1:9998", host, "HOST", "Nothing listens on 127.0.0.1:9998"},
		{"the host's network", "192.168.77.2:9998", host, "HOST", "The environment cannot reach 192.168.77.2:9998"},
		{"the host's bridge", bridge + ":9998", host, "HOST", "The environment cannot reach " + bridge + ":9998"},
		{"the metadata address", "169.254.169.254:80", host, "CREDENTIALS", "The environment cannot reach 169.254.169.254:80"},
		{"another environment", other + ":9997", tenant, "TENANT", "The environment cannot reach " + other + ":9997"},
	}
	for _, c := range all {
		address := c.address
		if c.answers != "TENANT" {
			address = strings.Replace(address, ":", " ", 1) // as nc wants it
		}
		eventually(s.T, 10*time.Second, c.name+" is reached by its owner", func() (string, bool) {
			out, err := c.owner(address)
			return fmt.Sprint(err, out), err == nil && out == c.answers
		})
	}
	for _, way := range []string{"end to end", "gateway"} {
		out := make([]string, len(all))
		var tries sync.WaitGroup
		for i, c := range all { // what is dropped takes its time
			tries.Go(func() {
				out[i], _ = w.try("client", "timeout 30 ssh"+f+"-o LogLevel=VERBOSE -W "+c.address+" "+at("busy", way)+" </dev/null 2>&1")
			})
		}
		tries.Wait()
		for i, c := range all {
			s.step("forward to "+c.name+" is refused", "busybox only", way, func(t *testing.T) {
				if strings.Contains(out[i], c.answers) || !strings.Contains(out[i], c.refused) {
					t.Errorf("%q lacks %q", out[i], c.refused)
				}
			})
		}
		s.cell("forward to the world", "busybox only", way, "timeout 20 ssh"+f+"-o LogLevel=VERBOSE -W "+srvAddr+":8080 "+at("busy", way)+" </dev/null", "WORLD")
	}
}
