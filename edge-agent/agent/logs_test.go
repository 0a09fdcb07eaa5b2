package agent

import (
	"context"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/remotegpu/remotegpu/edge-agent/ctr/logs"
	"github.com/remotegpu/remotegpu/edge-agent/relay"
	"github.com/remotegpu/remotegpu/edge-agent/state"
	"github.com/remotegpu/remotegpu/protocol"
	"github.com/remotegpu/remotegpu/protocol/tunnel"
)

// readLog asks an agent whose document has env_1 for the log of workload.
func readLog(t *testing.T, workload string) (string, error) {
	t.Helper()
	store, err := state.Open(enrolled(t).DataDir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { store.Close() })
	p := &parts{store: store, relay: relay.New(relay.Config{}), cfg: Config{Log: slog.New(slog.DiscardHandler)}}
	p.logs = func(_ context.Context, of string, tail int, follow bool, each func(logs.Line) error) error {
		if of != "env_1" || tail != 7 || follow {
			t.Errorf("reads %d lines of %q, follow %v", tail, of, follow)
		}
		for _, l := range []logs.Line{{Text: []byte("a long ")}, {Text: []byte("line")}, {Text: []byte("end")}} {
			l.Part = string(l.Text) == "a long "
			if err := each(l); err != nil {
				return err
			}
		}
		return nil
	}
	var hub *tunnel.Hub
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { hub.Accept(testHost, w, r) }))
	t.Cleanup(srv.Close)
	dial := func(ctx context.Context, token string) (*tunnel.Conn, error) {
		return tunnel.Dial(ctx, tunnel.DialConfig{URL: "ws" + strings.TrimPrefix(srv.URL, "http") + protocol.TunnelPath, Header: http.Header{protocol.StreamTokenHeader: {token}}})
	}
	pool := tunnel.NewPool(tunnel.PoolConfig{Dial: dial, Serve: p.serveStream, Log: p.cfg.Log})
	hub = tunnel.NewHub(tunnel.HubConfig{Ask: func(_ context.Context, _ string, d protocol.Dial) error { pool.Request(d); return nil },
		Online: func(string) bool { return true }, Log: p.cfg.Log})
	t.Cleanup(hub.Close)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	go pool.Run(ctx)
	c, err := hub.Open(ctx, testHost, protocol.StreamHeader{Version: protocol.Version, ID: "str_1", Kind: protocol.StreamLogs,
		Workload: workload, User: "usr_1", Logs: &protocol.LogsRequest{Tail: 7}})
	if err != nil {
		return "", err
	}
	defer c.Close()
	b, err := io.ReadAll(c)
	return string(b), err
}

func TestLogs(t *testing.T) {
	if text, err := readLog(t, "env_1"); err != nil || text != "a long line\nend\n" {
		t.Errorf("%q, %v", text, err)
	}
	for _, other := range []string{"env_2", "", "../../host.key", "env_1/../env_2"} {
		if text, err := readLog(t, other); err == nil || !strings.Contains(err.Error(), "no such environment") {
			t.Errorf("log of %q: %q, %v", other, text, err)
		}
	}
}
