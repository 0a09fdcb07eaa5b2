package access

import (
	"fmt"
	"testing"
	"time"

	"github.com/remotegpu/remotegpu/control/auth"
	"github.com/remotegpu/remotegpu/protocol"
)

// TestAccessEndsWithItsRights: a session, a terminal and the connection itself;
// nobody else's.
func TestAccessEndsWithItsRights(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	c := w.mustClient("box")
	s, in, out := run(t, c, "cat")
	wantLine(t, out, "ready")
	held, _, err := w.roam(newQuery(protocol.AttachCreate))
	if err != nil {
		t.Fatal(err)
	}
	w.Recheck("usr_b")
	w.Recheck("usr_a") // nothing has changed
	fmt.Fprintln(in, "still here")
	wantLine(t, out, "still here")

	none := w.user
	none.Roles = map[string]auth.Role{wsID: auth.Viewer}
	w.rights.Store(&none)
	if _, err := c.NewSession(); err != nil {
		t.Fatal(err)
	} else if s, err := c.NewSession(); err == nil { // the connection is there, the right is not
		if err := s.Run("env"); err == nil {
			t.Error("a new session with rights that have ended")
		}
	}
	w.Recheck("usr_a")
	ended := make(chan error, 1)
	go func() { ended <- s.Wait() }()
	select {
	case err := <-ended:
		if err == nil {
			t.Error("the session ends as if it were done")
		}
	case <-time.After(30 * time.Second):
		t.Fatal("the session goes on")
	}
	for deadline := time.Now().Add(30 * time.Second); held.Attached(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the terminal goes on")
		}
	}
}

// TestAccessEndsWithItsToken: the connection that a revoked token, or a key that
// was removed, opened.
func TestAccessEndsWithItsToken(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for id, c := range map[string]auth.Caller{
		"tok_1": {Kind: auth.KindUser, ID: "usr_a", Token: "tok_1"},
		"key_1": {Kind: auth.KindUser, ID: "usr_a", Key: "key_1"},
	} {
		done := make(chan struct{})
		remove := w.uses.add(&use{caller: c, end: func(error) { close(done) }})
		w.Recheck(id + "2")
		select {
		case <-done:
			t.Fatalf("%s: another one's end ends it", id)
		default:
		}
		w.Recheck(id)
		select {
		case <-done:
		default:
			t.Errorf("%s: it goes on", id)
		}
		remove()
	}
}
