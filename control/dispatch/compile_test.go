package dispatch

import (
	"testing"
	"time"
)

// TestAChangeThatWasMissed: a broker beside the server is away and comes back, and
// the host, which was connected to it all the time, says no hello.
func TestAChangeThatWasMissed(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.hello()
	w.settle()
	w.connected.Store(false)
	w.touch()
	w.missed()
	w.connected.Store(true)
	w.settle()
}

// TestADocumentThatWasMissed: as above, but the host still counts as connected when
// the change comes, and what is published gets nowhere.
func TestADocumentThatWasMissed(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.hello()
	w.settle()
	w.loss.Store(true)
	w.touch()
	for end := time.Now().Add(30 * time.Second); w.row().Dirty; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("no document is made of the change")
		}
	}
	w.connected.Store(false)
	w.missed()
	w.loss.Store(false)
	w.connected.Store(true)
	w.settle()
}

// missed waits until the host is to get its document when it is heard again.
func (w *world) missed() {
	w.t.Helper()
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(time.Millisecond) {
		w.svc.lanes.mu.Lock()
		missed := w.svc.lanes.all[w.host].missed
		w.svc.lanes.mu.Unlock()
		if missed {
			return
		}
		if time.Now().After(end) {
			w.t.Fatal("nobody has noted the change")
		}
	}
}

// TestALostCommit: the database has died before a document that was published was
// on its disk.
func TestALostCommit(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.hello()
	w.settle()
	w.loss.Store(true) // the host may have got it, or not
	w.touch()
	for end := time.Now().Add(30 * time.Second); w.row().Dirty; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("no document is made")
		}
	}
	w.idle()
	lost := w.row().Generation
	w.exec("update desired_documents set generation = generation - 1, dirty = true")
	w.loss.Store(false)
	w.touch()
	w.settle()
	if now := w.row().Generation; now <= lost {
		t.Errorf("generation %d again, after %d", now, lost)
	}
}

// TestNext: a generation that a host may have, or that the database may have lost,
// is never made again.
func TestNext(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		of   compilation
		want uint64
	}{
		"the first":            {compilation{}, 1},
		"the next":             {compilation{record: record{generation: 5}, seen: 5}, 6},
		"lost by the database": {compilation{record: record{generation: 5}, seen: 6}, 7},
		"a restored backup":    {compilation{record: record{generation: 5}, has: held{generation: 40}}, 41},
		"of whom nobody knows": {compilation{record: record{generation: 5}}, 1005},
	} {
		if got := c.of.next(); got != c.want {
			t.Errorf("%s: %d, want %d", name, got, c.want)
		}
	}
}
