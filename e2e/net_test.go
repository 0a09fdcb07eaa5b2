package e2e

import (
	"strings"
	"testing"
	"time"
)

// The rest of the tests mean nothing unless the host really is unreachable.
func TestNobodyReachesTheHost(t *testing.T) {
	w := newWorld(t)
	m := w.machine()
	w.start("srv", "listen.log", "python3", "-m", "http.server", "--bind", srvAddr, "8000")
	eventually(t, 10*time.Second, "host reaches server", func() (string, bool) {
		out, err := m.sh("curl -sS -m 3 -o /dev/null http://" + srvAddr + ":8000/")
		return out, err == nil
	})
	w.start("host", "hidden.log", "python3", "-m", "http.server", "8000")
	m.must("for i in $(seq 50); do curl -sS -m 1 -o /dev/null http://127.0.0.1:8000/ && exit; sleep 0.1; done; exit 1")
	for _, from := range []string{"srv", "client"} {
		w.in(from, "ip route replace 10.77.1.0/24 via 203.0.113.20; ip route replace 192.168.77.0/24 via 203.0.113.20")
		if out, err := w.try(from, "curl -sS -m 2 http://192.168.77.2:8000/"); err == nil {
			t.Errorf("%s reaches the host behind two routers: %s", from, out)
		}
	}
	if pids := m.must("ps ax"); strings.Contains(pids, "postgres") {
		t.Errorf("the host sees processes that are not its own:\n%s", pids)
	}
}
