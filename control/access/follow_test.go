package access

import (
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/remotegpu/remotegpu/control/web"
	"github.com/remotegpu/remotegpu/protocol"
)

// TestHeldRecordingsFollowTheirClient: the client of a recorded session comes to
// one server, and to the other, while the first still thinks that it has it.
func TestHeldRecordingsFollowTheirClient(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	s := recordAll(w, t.TempDir())
	other, err := New(w.pool, w.cfg)
	if err != nil {
		t.Fatal(err)
	}
	other.hub = w.hub // the host is at both
	var turn atomic.Int32
	handlers := []http.Handler{}
	for _, one := range []*Service{w.Service, other} {
		api := web.New("test", slog.New(slog.DiscardHandler))
		one.Routes(api)
		handlers = append(handlers, api.Handler(w.bearer, false))
	}
	front := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		handlers[turn.Load()].ServeHTTP(rw, r)
	}))
	t.Cleanup(front.Close)
	w.url = "ws" + strings.TrimPrefix(front.URL, "http")

	c, cut, err := w.roam(newQuery(protocol.AttachCreate))
	if err != nil {
		t.Fatal(err)
	}
	open := protocol.SessionOpen{Version: 1, Command: "cat", Term: "xterm", Size: protocol.WindowSize{Cols: 80, Rows: 24}}
	if err := protocol.WriteDocument(c, protocol.FrameOpen, open); err != nil {
		t.Fatal(err)
	}
	defer time.AfterFunc(time.Minute, func() { c.Detach() }).Stop()
	frames, got := protocol.NewFrameReader(c), ""
	for i := range 6 {
		line := fmt.Sprintf("line %d %s\n", i, strings.Repeat("世界", 5_000))
		if err := protocol.WriteFrame(c, protocol.FrameStdin, []byte(line)); err != nil {
			t.Fatal(err)
		}
		turn.Store(int32(i+1) % 2)
		cut() // while bytes are under way
		for !strings.HasSuffix(got, line) {
			kind, payload, err := frames.Next()
			if err != nil || kind != protocol.FrameStdout {
				t.Fatalf("frame %d in turn %d: %v", kind, i, err)
			}
			got += string(payload)
		}
	}
	if err := protocol.WriteFrame(c, protocol.FrameEOF, nil); err != nil {
		t.Fatal(err)
	}
	if kind, _, err := frames.Next(); err != nil || kind != protocol.FrameExit {
		t.Fatalf("frame %d, %v", kind, err)
	}
	c.Close()
	w.closeHeld()
	other.closeHeld()
	if shown := castOutput(t, recordings(w, s, 1)[0]); shown != got {
		t.Errorf("recorded %d bytes, shown were %d", len(shown), len(got))
	}
}
