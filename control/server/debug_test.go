package server

import (
	"context"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"
)

func TestProfilesAreForThisMachine(t *testing.T) {
	s := &Server{log: slog.New(slog.DiscardHandler)}
	for _, address := range []string{":6060", "0.0.0.0:6060", "192.0.2.1:6060", "localhost:6060", "[::]:6060", "6060"} {
		s.cfg.DebugListen = address
		if err := s.serveDebug(t.Context()); err == nil || !strings.Contains(err.Error(), "this machine alone") {
			t.Errorf("%s: %v", address, err)
		}
	}
	s.cfg.DebugListen = freeAddress(t)
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- s.serveDebug(ctx) }()
	var text []byte
	for range 200 {
		if res, err := http.Get("http://" + s.cfg.DebugListen + "/debug/pprof/goroutine?debug=1"); err == nil {
			text, _ = io.ReadAll(res.Body)
			res.Body.Close()
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	if !strings.Contains(string(text), "serveDebug") {
		t.Errorf("the profile says %.200q", text)
	}
	stop()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

func freeAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}
