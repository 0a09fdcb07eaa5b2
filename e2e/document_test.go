package e2e

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/remotegpu/remotegpu/protocol"
)

// TestLargeDocument gives a host more to run than fits in a message: the agent
// fetches its document over HTTPS, and obeys it.
func TestLargeDocument(t *testing.T) { eachBroker(t, largeDocument) }

func largeDocument(t *testing.T, w *world) {
	p, m := w.newPlane(), w.machine()
	t.Cleanup(func() { m.dump(t) })
	p.login()
	p.pushBusybox()
	p.join(m, "")
	const n = 20 // of 15 KiB each
	text := strings.Repeat("x", 15<<10)
	for i := range n {
		w.in("client", fmt.Sprintf("remotegpu env create big%d --wait=false --memory 32M --env TEXT=%s --image %s", i, text, busyboxImage))
	}
	eventually(t, 90*time.Second, "all run", func() (string, bool) {
		var list struct{ Items []struct{ Phase string } }
		if err := json.Unmarshal([]byte(w.in("client", "remotegpu env ls -o json")), &list); err != nil {
			return err.Error(), false
		}
		running := 0
		for _, e := range list.Items {
			if e.Phase == "running" {
				running++
			}
		}
		return fmt.Sprintf("%d of %d", running, n), running == n
	})
	if size, err := strconv.Atoi(strings.TrimSpace(m.must("stat -c %s /var/lib/remotegpu/desired.cose"))); err != nil || size <= protocol.MaxDesired {
		t.Errorf("the host's document has %d bytes: it came in a message (%v)", size, err)
	}
	if out := w.in("client", "remotegpu ssh big19 -- 'echo ${#TEXT}'"); out != fmt.Sprint(len(text)) {
		t.Errorf("the last environment has %q bytes of text", out)
	}
	for i := range n {
		w.in("client", fmt.Sprintf("remotegpu env rm big%d", i)) // until a message holds it again
	}
	eventually(t, 60*time.Second, "none is left", func() (string, bool) {
		diff := m.differs(nil)
		return diff, diff == ""
	})
}
