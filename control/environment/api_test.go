package environment

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/remotegpu/remotegpu/control/auth"
	"github.com/remotegpu/remotegpu/control/errs"
	"github.com/remotegpu/remotegpu/control/web"
	"github.com/remotegpu/remotegpu/protocol"
)

// call asks a real HTTP server as the world's user.
func (w *world) call(url, method, path, body string) (status int, answer map[string]any) {
	w.t.Helper()
	req, err := http.NewRequestWithContext(w.t.Context(), method, url+"/api/v1/workspaces/lab/environments"+path, strings.NewReader(body))
	if err != nil {
		w.t.Fatal(err)
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		w.t.Fatal(err)
	}
	defer res.Body.Close()
	raw, err := io.ReadAll(res.Body)
	if err != nil {
		w.t.Fatal(err)
	}
	if json.Unmarshal(raw, &answer) != nil {
		answer = map[string]any{"text": string(raw)}
	}
	return res.StatusCode, answer
}

func TestRoutes(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	h := w.host("gpu-1", 2)
	api := web.New("test", slog.New(slog.DiscardHandler))
	w.Routes(api)
	srv := httptest.NewServer(api.Handler(func(*http.Request) (auth.Caller, error) { return w.user, nil }, false))
	defer srv.Close()
	logs := "line 1\nline 2\n"
	steps := []struct {
		method, path, body string
		status             int
		text               string // part of the answer
	}{
		{"POST", "", `{"name":"box","resources":{"gpus":1,"memory":1073741824},"env":{"A":"b"}}`, 201, `"phase":"pending"`},
		{"POST", "", `{"name":"box"}`, 409, "choose another name"},
		{"POST", "", `{"name":"big","resources":{"gpus":9}}`, 422, "ask for at most 2"},
		{"POST", "", `{"name":"x","image":"{control}/other/x"}`, 403, "no right to pull"},
		{"POST", "", `{"name":"x","colour":"red"}`, 422, "colour"},
		{"GET", "", "", 200, `"items":[{`},
		{"GET", "/box", "", 200, `"host_name":"gpu-1"`},
		{"GET", "/none", "", 404, "There is no environment none here"},
		{"GET", "/box/events", "", 200, `"reason":"Scheduled"`},
		{"GET", "/box/events?after=1000000&wait=1", "", 200, `"items":[]`},
		{"GET", "/box/placements", "", 200, `"outcome":"placed"`},
		{"GET", "/box/logs", "", 503, "cannot read logs"},
		{"POST", "/box/stop", "", 200, `"phase":"stopping"`},
		{"POST", "/box/restart", "", 409, "remotegpu env start box"},
		{"POST", "/box/start", "", 200, `"phase":"pending"`},
		{"DELETE", "/box", "", 204, ""},
		{"POST", "/box/start", "", 409, "being deleted"},
		{"DELETE", "/box", "", 204, ""},
	}
	for _, s := range steps {
		status, answer := w.call(srv.URL, s.method, s.path, s.body)
		var b bytes.Buffer
		enc := json.NewEncoder(&b)
		enc.SetEscapeHTML(false)
		if err := enc.Encode(answer); err != nil {
			t.Fatal(err)
		}
		if status != s.status || !strings.Contains(b.String(), s.text) {
			t.Errorf("%s %s: %d %s, want %d with %q", s.method, s.path, status, b.String(), s.status, s.text)
		}
	}
	w.obey(h)
	w.create(Spec{Name: "next"})
	w.SetLogs(func(_ context.Context, host, workload string, tail int, follow bool) (io.ReadCloser, error) {
		if host != h || !strings.HasPrefix(workload, "env_") || tail != 2 || !follow {
			t.Errorf("logs of %s on %s: %d lines, follow %v", workload, host, tail, follow)
		}
		return io.NopCloser(strings.NewReader(logs)), nil
	})
	if status, answer := w.call(srv.URL, "GET", "/next/logs?tail=2&follow=true", ""); status != 200 || answer["text"] != logs {
		t.Errorf("logs: %d %v", status, answer)
	}
	var entries int
	if err := w.pool.QueryRow(t.Context(), "select count(*) from audit_entries where action = 'environment.write'").Scan(&entries); err != nil || entries != 5 {
		t.Errorf("%d audit entries of 5 changes, %v", entries, err)
	}
}

func TestStrangersSeeNothing(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.host("gpu-1", 1)
	w.create(Spec{Name: "box"})
	stranger := auth.Caller{Kind: auth.KindUser, ID: "usr_x"}
	ctx := t.Context()
	_, err := w.Get(ctx, stranger, "lab", "box")
	wantError(t, err, errs.NotFound, "no such workspace")
	_, err = w.Find(ctx, stranger, "box")
	wantError(t, err, errs.NotFound, "")
	_, err = w.Create(ctx, stranger, "lab", Spec{Name: "x"})
	wantError(t, err, errs.NotFound, "")
	_, err = w.Events(ctx, stranger, "lab", "box", 0, 0)
	wantError(t, err, errs.NotFound, "")
	wantError(t, w.Delete(ctx, stranger, "lab", "box"), errs.NotFound, "")
}

// TestChangesArePublished: integrations of the workspace hear every new phase.
func TestChangesArePublished(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	heard := make(chan string, 20)
	w.cfg.Publish = func(_, kind string, payload []byte) {
		var ch Change
		if err := json.Unmarshal(payload, &ch); err != nil || ch.Name != "box" {
			t.Errorf("payload %s, %v", payload, err)
		}
		heard <- kind
	}
	go w.Run(t.Context())
	next := func(want string) {
		t.Helper()
		if got := <-heard; got != "environment/"+want {
			t.Errorf("heard %s, want %s", got, want)
		}
	}
	h := w.host("gpu-1", 1)
	w.listening()
	e := w.create(Spec{Name: "box"})
	next("pending")
	generation, _ := w.compile(h)
	w.report(h, generation, []protocol.WorkloadStatus{{ID: e.ID, Phase: protocol.PhasePulling, Done: 1}})
	next("pulling")
	w.report(h, generation, []protocol.WorkloadStatus{{ID: e.ID, Phase: protocol.PhasePulling, Done: 2}})
	if got := w.get("box"); got.Pulled != 2 {
		t.Errorf("pulled %d", got.Pulled)
	}
	w.obey(h)
	next("running")
	if err := w.Delete(t.Context(), w.user, "lab", "box"); err != nil {
		t.Fatal(err)
	}
	next("deleting")
	w.obey(h)
	next("deleted")
}

// listening waits until Run hears notifications: one of a stranger wakes.
func (w *world) listening() {
	changed, stop := w.watch.on("probe")
	defer stop()
	for range 1000 {
		w.exec("select pg_notify($1, $2)", Changed, `{"id":"probe"}`)
		select {
		case <-changed:
			return
		case <-w.t.Context().Done():
		default:
		}
	}
	<-changed
}

// TestDocumentsStaySmall: many large environments never make a host's document
// larger than it may be, for then it would hear nothing new.
func TestDocumentsStaySmall(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	h := w.host("gpu-1", 0)
	waiting := 0
	for i := range 310 {
		e := w.create(Spec{Name: fmt.Sprint("box-", i), Command: []string{strings.Repeat("x", maxSpecBytes)}})
		if e.Host == "" {
			if waiting++; !strings.Contains(e.Message, "too many workloads already") {
				t.Errorf("%s waits: %s", e.Name, e.Message)
			}
		}
	}
	if waiting == 0 {
		t.Error("all were placed on one host")
	}
	lists, err := w.Workloads(t.Context(), w.pool, []string{h})
	if err != nil {
		t.Fatal(err)
	}
	if b, err := protocol.Marshal(lists[h]); err != nil || len(b) > protocol.MaxDocument*9/10 || len(lists[h]) < 250 {
		t.Errorf("%d workloads in a document of %d bytes, %v", len(lists[h]), len(b), err)
	}
	if e := w.must(w.Create(t.Context(), w.other, "other", Spec{Name: "box", Command: []string{strings.Repeat("x", maxSpecBytes)}})); e.Host != h {
		t.Errorf("one workspace has filled the host for another: %s", e.Message)
	}
}
