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
	case <-time.After(10 * time.Second):
		t.Fatal("the session goes on")
	}
	for deadline := time.Now().Add(10 * time.Second); held.Attached(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the terminal goes on")
		}
	}
}

// TestAccessEndsWithItsToken: the connection that a revoked token opened.
func TestAccessEndsWithItsToken(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	done := make(chan struct{})
	one := &use{caller: auth.Caller{Kind: auth.KindUser, ID: "usr_a", Token: "tok_1"}, end: func(error) { close(done) }}
	defer w.uses.add(one)()
	w.Recheck("tok_2")
	select {
	case <-done:
		t.Fatal("another token's end ends it")
	default:
	}
	w.Recheck("tok_1")
	select {
	case <-done:
	default:
		t.Error("it goes on")
	}
}
