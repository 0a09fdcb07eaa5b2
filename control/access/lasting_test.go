package access

import (
	"fmt"
	"testing"
)

// TestPlainSSHOutlivesTheHostsLine: whoever uses plain ssh does not notice that
// the host's connections are cut.
func TestPlainSSHOutlivesTheHostsLine(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	s, in, out := run(t, w.mustClient("box"), "cat")
	wantLine(t, out, "ready")
	for i := range 20 {
		fmt.Fprintf(in, "before %d\n", i)
		w.hub.Drop(hostID) // what is on its way is lost with the connections
		fmt.Fprintf(in, "after %d\n", i)
		wantLine(t, out, fmt.Sprintf("before %d", i))
		wantLine(t, out, fmt.Sprintf("after %d", i))
	}
	in.Close()
	if err := s.Wait(); err != nil {
		t.Error(err)
	}
}
