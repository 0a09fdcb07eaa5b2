package web

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"reflect"
	"strings"
	"testing"

	"github.com/remotegpu/remotegpu/control/auth"
	"github.com/remotegpu/remotegpu/control/errs"
)

type thing struct {
	Name string `json:"name" maxLength:"5"`
}

type thingInput struct{ Body thing }

type nameInput struct {
	Name string `path:"name"`
}

// encoded is as JSON would be written, in pieces that fill more than a buffer.
var encoded = Encoded[List[thing]]{[]byte(`{"items":[`), bytes.Repeat([]byte(`{"name":"a"},`), 30_000), []byte(`{"na`), []byte(`me":"b"}]}`)}

// serve offers a few routes to caller.
func serve(t *testing.T, log io.Writer, caller auth.Caller, refused error) *httptest.Server {
	t.Helper()
	api := New("test", slog.New(slog.NewTextHandler(log, nil)))
	Register(api, Route{Method: "GET", Path: "/api/v1/account", Action: auth.AccountRead, Summary: "Fails"},
		func(context.Context, auth.Caller, *struct{}) (thing, error) {
			return thing{}, fmt.Errorf("read thing: %w", errors.New("password=secret"))
		})
	Register(api, Route{Method: "GET", Path: "/api/v1/things/{name}", Action: auth.HealthRead, Summary: "Fails as told"},
		func(_ context.Context, _ auth.Caller, in *nameInput) (thing, error) {
			kind := map[string]errs.Kind{"invalid": errs.Invalid, "unauthenticated": errs.Unauthenticated, "denied": errs.Denied,
				"missing": errs.NotFound, "conflict": errs.Conflict, "away": errs.Unavailable}[in.Name]
			return thing{}, errs.E(kind, "Do this next.")
		})
	Register(api, Route{Method: "POST", Path: "/api/v1/things", Action: auth.HealthRead, Summary: "Makes", Status: http.StatusCreated},
		func(_ context.Context, _ auth.Caller, in *thingInput) (List[thing], error) {
			return Items[thing](nil), nil
		})
	Register(api, Route{Method: "DELETE", Path: "/api/v1/things", Action: auth.HealthRead, Summary: "Removes"},
		func(_ context.Context, c auth.Caller, _ *struct{}) (None, error) { return None{}, nil })
	Register(api, Route{Method: "GET", Path: "/api/v1/encoded", Action: auth.HealthRead, Summary: "Has its answer ready"},
		func(context.Context, auth.Caller, *struct{}) (Encoded[List[thing]], error) { return encoded, nil })
	api.Raw(Route{Method: "GET", Path: "/remote", Action: auth.HealthRead, Summary: "Says who asks"},
		http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, auth.From(r.Context()).Remote) }))
	srv := httptest.NewServer(api.Handler(func(*http.Request) (auth.Caller, error) { return caller, refused }, true))
	t.Cleanup(srv.Close)
	return srv
}

func ask(t *testing.T, srv *httptest.Server, method, path, body string, header ...string) (*http.Response, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, srv.URL+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	for _, h := range header {
		name, value, _ := strings.Cut(h, ": ")
		req.Header.Add(name, value)
	}
	res, err := srv.Client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	raw, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res, string(raw)
}

// TestProblems: every kind has its status, and a sentence that says what to do.
func TestProblems(t *testing.T) {
	t.Parallel()
	srv := serve(t, io.Discard, auth.Caller{}, nil)
	for name, status := range map[string]int{"invalid": 422, "unauthenticated": 401, "denied": 403, "missing": 404, "conflict": 409, "away": 503} {
		res, body := ask(t, srv, "GET", "/api/v1/things/"+name, "")
		var p struct {
			Title, Detail string
			Status        int
		}
		if err := json.Unmarshal([]byte(body), &p); err != nil {
			t.Fatal(err)
		}
		if res.StatusCode != status || p.Status != status || p.Detail != "Do this next." || p.Title != http.StatusText(status) {
			t.Errorf("%s: %d %s", name, res.StatusCode, body)
		}
		if got := res.Header.Get("Content-Type"); got != "application/problem+json" {
			t.Errorf("%s: %s", name, got)
		}
	}
}

// TestInnerErrorsStayInside: the log has the cause, the answer the request id.
func TestInnerErrorsStayInside(t *testing.T) {
	t.Parallel()
	var log strings.Builder
	srv := serve(t, &log, auth.Caller{Kind: auth.KindUser, ID: "usr_a"}, nil)
	res, body := ask(t, srv, "GET", "/api/v1/account", "")
	id := res.Header.Get("X-Request-Id")
	if res.StatusCode != 500 || strings.Contains(body, "secret") || !strings.Contains(body, id) || id == "" {
		t.Errorf("%d %s, request %s", res.StatusCode, body, id)
	}
	if !strings.Contains(log.String(), "read thing: password=secret") || !strings.Contains(log.String(), id) {
		t.Errorf("log %s", log.String())
	}
}

func TestWrongCredentialsEndTheRequest(t *testing.T) {
	t.Parallel()
	srv := serve(t, io.Discard, auth.Caller{}, errs.E(errs.Unauthenticated, "Your session has ended."))
	for _, path := range []string{"/remote", "/api/v1/account", "/api/v1/things/away"} {
		if res, body := ask(t, srv, "GET", path, ""); res.StatusCode != 401 || !strings.Contains(body, "session has ended") {
			t.Errorf("%s: %d %s", path, res.StatusCode, body)
		}
	}
}

func TestBodies(t *testing.T) {
	t.Parallel()
	srv := serve(t, io.Discard, auth.Caller{}, nil)
	for _, c := range []struct {
		method, body string
		status       int
		text         string
	}{
		{"POST", `{"name":"a"}`, 201, `{"items":[]}`},
		{"POST", `{"name":"too long"}`, 422, "body.name"},
		{"POST", `{"name":"a","colour":"red"}`, 422, "colour"},
		{"POST", `{`, 400, ""},
		{"POST", ``, 400, ""},
		{"POST", `{"name":"` + strings.Repeat("x", 1<<20) + `"}`, 413, ""},
		{"DELETE", ``, 204, ""},
		{"PUT", ``, 405, ""},
	} {
		res, body := ask(t, srv, c.method, "/api/v1/things", c.body, "Content-Type: application/json")
		if res.StatusCode != c.status || !strings.Contains(body, c.text) {
			t.Errorf("%s %.30s: %d %s, want %d with %q", c.method, c.body, res.StatusCode, body, c.status, c.text)
		}
		if res.Header.Get("X-Content-Type-Options") != "nosniff" || res.Header.Get("X-Frame-Options") != "DENY" {
			t.Errorf("%s %.30s: headers %v", c.method, c.body, res.Header)
		}
	}
}

// TestRemote: the last address is the one that our own proxy has seen; those
// before it are what anybody may have claimed.
func TestRemote(t *testing.T) {
	t.Parallel()
	srv := serve(t, io.Discard, auth.Caller{}, nil)
	for _, c := range []struct {
		header []string
		want   string
	}{
		{nil, "127.0.0.1"},
		{[]string{"X-Forwarded-For: 192.0.2.1"}, "192.0.2.1"},
		{[]string{"X-Forwarded-For: 10.0.0.1, 192.0.2.1"}, "192.0.2.1"},
		{[]string{"X-Forwarded-For: 10.0.0.1", "X-Forwarded-For: 192.0.2.1"}, "192.0.2.1"},
	} {
		if _, got := ask(t, srv, "GET", "/remote", "", c.header...); got != c.want {
			t.Errorf("%v: %s, want %s", c.header, got, c.want)
		}
	}
}

func TestUnknownActionsAreNoRoutes(t *testing.T) {
	t.Parallel()
	defer func() {
		if recover() == nil {
			t.Error("a route with an action that is not in auth.Rules was added")
		}
	}()
	New("test", slog.New(slog.DiscardHandler)).Raw(Route{Path: "/x", Action: "x.y"}, http.NotFoundHandler())
}

// TestEncoded: what is JSON already is answered as it is, time and again, and
// described as what it stands for.
func TestEncoded(t *testing.T) {
	t.Parallel()
	srv := serve(t, io.Discard, auth.Caller{}, nil)
	want := string(bytes.Join(encoded, nil))
	for range 3 {
		res, got := ask(t, srv, "GET", "/api/v1/encoded", "")
		if kind := res.Header.Get("Content-Type"); got != want || kind != "application/json" {
			t.Errorf("%d bytes of %s, want %d of application/json", len(got), kind, len(want))
		}
	}
	_, text := ask(t, srv, "GET", "/api/openapi.json", "")
	var doc struct {
		Paths map[string]map[string]struct {
			Responses map[string]struct{ Content map[string]any }
		}
	}
	if err := json.Unmarshal([]byte(text), &doc); err != nil {
		t.Fatal(err)
	}
	ready, made := doc.Paths["/api/v1/encoded"]["get"].Responses["200"].Content, doc.Paths["/api/v1/things"]["post"].Responses["201"].Content
	if len(made) == 0 || !reflect.DeepEqual(ready, made) {
		t.Errorf("described as %v, want %v", ready, made)
	}
}
