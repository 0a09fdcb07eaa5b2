package server

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strings"
	"sync/atomic"
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
	for end := time.Now().Add(30 * time.Second); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if res, err := http.Get("http://" + s.cfg.DebugListen + "/debug/pprof/goroutine?debug=1"); err == nil {
			text, _ = io.ReadAll(res.Body)
			res.Body.Close()
			break
		}
	}
	if !strings.Contains(string(text), "serveDebug") {
		t.Errorf("the profile says %.200q", text)
	}
	stop()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

var addresses atomic.Int32

// freeAddress is one where nobody listens, nor will: no other process of tests, and
// nothing that wants any port, has this address.
func freeAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", fmt.Sprintf("127.%d.%d.%d:0", 1+os.Getpid()>>8&127, os.Getpid()&255, 1+addresses.Add(1)%250))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}
