package web

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/remotegpu/remotegpu/control/auth"
)

// TestStop: when the server stops, what may last ends and says so, and a request
// that is answered soon is answered; when the client goes, nobody works on.
func TestStop(t *testing.T) {
	t.Parallel()
	base, stop := context.WithCancelCause(t.Context())
	begun, ended := make(chan struct{}, 2), make(chan error, 1)
	goOn := make(chan struct{})
	wait := func(ctx context.Context) error {
		begun <- struct{}{}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-goOn:
			return nil
		}
	}
	api := New("test", slog.New(slog.DiscardHandler))
	Register(api, Route{Method: "GET", Path: "/api/v1/soon", Action: auth.HealthRead, Summary: "Finishes"},
		func(ctx context.Context, _ auth.Caller, _ *struct{}) (thing, error) {
			err := wait(ctx)
			if err != nil {
				ended <- err
			}
			return thing{"done"}, err
		})
	api.Raw(Route{Method: "GET", Path: "/lasts", Action: auth.HealthRead, Summary: "Ends"},
		http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { api.Fail(w, r, wait(r.Context())) }))
	srv := httptest.NewUnstartedServer(api.Handler(func(*http.Request) (auth.Caller, error) { return auth.Caller{}, nil }, false))
	srv.Config.BaseContext = func(net.Listener) context.Context { return base }
	srv.Start()
	defer srv.Close()
	type answer struct {
		status int
		body   string
	}
	get := func(ctx context.Context, path string) chan answer {
		got := make(chan answer, 1)
		go func() {
			req, _ := http.NewRequestWithContext(ctx, http.MethodGet, srv.URL+path, http.NoBody)
			res, err := srv.Client().Do(req)
			if err != nil {
				got <- answer{}
				return
			}
			defer res.Body.Close()
			b, _ := io.ReadAll(res.Body)
			got <- answer{res.StatusCode, string(b)}
		}()
		<-begun
		return got
	}
	gone, leave := context.WithCancel(t.Context())
	get(gone, "/api/v1/soon")
	leave()
	select {
	case <-ended:
	case <-time.After(10 * time.Second):
		t.Fatal("a request whose client has gone goes on")
	}
	soon, lasts := get(t.Context(), "/api/v1/soon"), get(t.Context(), "/lasts")
	stop(errors.New("stopping"))
	if got := <-lasts; got.status != http.StatusServiceUnavailable || got.body == "" {
		t.Errorf("what lasts got %+v", got)
	}
	close(goOn)
	if got := <-soon; got.status != http.StatusOK || got.body != "{\"name\":\"done\"}\n" {
		t.Errorf("a request under way got %+v", got)
	}
}
