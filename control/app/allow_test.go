package app

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/gorilla/websocket"
)

// TestVisibility: who may use an app, for every visibility and everybody; what
// is not for somebody is not there for them.
func TestVisibility(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	path := "/api/v1/workspaces/lab/environments/box/apps/8888"
	home := w.run("box", "8888", nil)
	for _, c := range []struct {
		body    string
		allowed string
	}{
		{"", "ann bob"}, // as every port
		{`{"visibility":"workspace"}`, "ann bob"},
		{`{"visibility":"private"}`, "bob"}, // who exposed it first
		{`{"visibility":"users","users":["VERA@example.org","eve@example.org"]}`, "bob vera eve"},
		{`{"visibility":"public"}`, "ann bob vera eve nobody"},
		{"delete", "ann bob"},
	} {
		switch c.body {
		case "":
		case "delete":
			if status, body := w.api("ann", http.MethodDelete, path, ""); status != http.StatusNoContent {
				t.Fatalf("%d %s", status, body)
			}
		default:
			if status, body := w.api("bob", http.MethodPut, path, c.body); status != http.StatusOK || !strings.Contains(body, home) {
				t.Fatalf("%d %s", status, body)
			}
		}
		for _, who := range []string{"ann", "bob", "vera", "eve", "nobody"} {
			var headers []string
			want, refused := http.StatusOK, http.StatusNotFound
			if who == "nobody" {
				refused = http.StatusUnauthorized
			} else {
				headers = []string{"Authorization", "Bearer " + w.secrets[who]}
			}
			if !strings.Contains(" "+c.allowed+" ", " "+who+" ") {
				want = refused
			}
			if p := w.browser().get(home, append(headers, "Accept", "*/*")...); p.status != want {
				t.Errorf("%s as %s: %d, want %d", c.body, who, p.status, want)
			}
			if who == "nobody" || want != http.StatusOK && c.body == "" {
				continue
			}
			if status, body := w.api(who, http.MethodPost, "/api/v1/apps/open", `{"app":"lab/box/8888"}`); (status == http.StatusOK) != (want == http.StatusOK) {
				t.Errorf("%s, a ticket for %s: %d %s", c.body, who, status, body)
			}
		}
	}
}

func TestPut(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	path := "/api/v1/workspaces/lab/environments/box/apps/"
	for _, c := range []struct {
		who, name, body string
		status          int
		text            string
	}{
		{"bob", "web", `{"port":8080}`, 200, `"url":"https://box--web--`},
		{"bob", "8080", `{}`, 409, "has this port already"},
		{"bob", "board", `{}`, 422, "Say which port board is"},
		{"bob", "8081", `{"port":8082}`, 422, "choose a word"},
		{"bob", "0", `{}`, 422, "no name"},
		{"bob", "65536", `{}`, 422, "no name"},
		{"bob", "080", `{}`, 422, "no name"},
		{"bob", "My-App", `{"port":1}`, 422, "no name"},
		{"bob", "a--b", `{"port":1}`, 422, "no name"},
		{"bob", "82", `{"visibility":"users"}`, 422, "Say which users"},
		{"bob", "82", `{"visibility":"users","users":["x@example.org"]}`, 422, "no user with the address x@example.org"},
		{"bob", "82", `{"visibility":"private","users":["ann@example.org"]}`, 422, "with visibility users alone"},
		{"bob", "82", `{"visibility":"world"}`, 422, ""},
		{"bob", "jupyter", `{"port":8888}`, 404, "remotegpu jupyter box"},
		{"vera", "82", `{}`, 403, "Your role"},
		{"eve", "82", `{}`, 404, "no such workspace"},
	} {
		if status, body := w.api(c.who, http.MethodPut, path+c.name, c.body); status != c.status || !strings.Contains(body, c.text) {
			t.Errorf("%s puts %s %s: %d %s, want %d %s", c.who, c.name, c.body, status, body, c.status, c.text)
		}
	}
	// A port that has a name has that alone.
	if p := w.browser().get(strings.Replace(w.address("lab", "box", "web"), "--web--", "--8080--", 1), "Authorization", "Bearer "+w.secrets["bob"]); p.status != http.StatusNotFound {
		t.Errorf("by its port: %d", p.status)
	}
	if status, body := w.api("vera", http.MethodGet, "/api/v1/workspaces/lab/apps", ""); status != 200 || strings.Count(body, `"name"`) != 1 {
		t.Errorf("%d %s", status, body)
	}
	var n int
	if err := w.pool.QueryRow(t.Context(), "select count(*) from audit_entries where action = 'app.write' and actor = $1", w.callers["bob"].ID).Scan(&n); err != nil || n != 1 {
		t.Errorf("%d entries, %v", n, err)
	}
}

// TestSocketsEndWithTheRight: a WebSocket is cut when the login, the role or
// the app's visibility goes, and others stay.
func TestSocketsEndWithTheRight(t *testing.T) {
	t.Parallel()
	for name, end := range map[string]func(w *world) error{
		"visibility": func(w *world) error {
			status, body := w.api("ann", http.MethodPut, "/api/v1/workspaces/lab/environments/box/apps/8888", `{"visibility":"private"}`)
			if status != http.StatusOK {
				return fmt.Errorf("%d %s", status, body)
			}
			return nil
		},
		"member": func(w *world) error {
			return w.spaces.RemoveMember(t.Context(), w.callers["ann"], "lab", w.callers["bob"].ID)
		},
		"logout": func(w *world) error {
			c := w.callers["bob"]
			if err := w.pool.QueryRow(t.Context(), "select hash from sessions where user_id = $1", c.ID).Scan(&c.Login); err != nil {
				return err
			}
			return w.accounts.Logout(t.Context(), c)
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			home := w.run("box", "8888", upgrade)
			var sockets []*websocket.Conn
			for _, who := range []string{"bob", "ann"} {
				b := w.browser()
				b.login(who, home)
				c, res, err := b.socket(home, origin(home))
				if err != nil {
					t.Fatal(err, res)
				}
				defer c.Close()
				c.SetReadDeadline(time.Now().Add(time.Minute))
				sockets = append(sockets, c)
			}
			if err := end(w); err != nil {
				t.Fatal(err)
			}
			if _, _, err := sockets[0].ReadMessage(); err == nil || strings.Contains(err.Error(), "timeout") {
				t.Errorf("bob's goes on: %v", err)
			}
			if err := sockets[1].WriteMessage(websocket.TextMessage, []byte("x")); err != nil {
				t.Fatal(err)
			}
			if _, got, err := sockets[1].ReadMessage(); err != nil || string(got) != "x" {
				t.Errorf("ann's: %q, %v", got, err)
			}
		})
	}
}

func TestAppsInTheAuditLog(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.visits.idle = 200 * time.Millisecond
	home := w.run("box", "8888", nil)
	b := w.browser()
	b.login("bob", home)
	b.ask(http.MethodPost, home, "12345").echo(t)
	var began, ended, down, up int
	for end := time.Now().Add(30 * time.Second); up == 0 && time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		err := w.pool.QueryRow(t.Context(), `select count(*) filter (where detail->'ended_after_s' is null), count(*) filter (where detail->'ended_after_s' is not null),
			coalesce(sum((detail->>'bytes_out')::int), 0), coalesce(sum((detail->>'bytes_in')::int), 0)
			from audit_entries where action = 'environment.access' and actor = $1 and detail->>'via' = 'app' and detail->>'target' = '8888' and remote = '127.0.0.1'`,
			w.callers["bob"].ID).Scan(&began, &ended, &down, &up)
		if err != nil {
			t.Fatal(err)
		}
	}
	if began == 0 || ended == 0 || down < 100 || up != 5 {
		t.Errorf("%d began, %d ended, %d bytes down, %d up", began, ended, down, up)
	}
}
