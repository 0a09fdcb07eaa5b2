package server

import (
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/remotegpu/remotegpu/control/account"
	"github.com/remotegpu/remotegpu/control/pg"
	"github.com/remotegpu/remotegpu/protocol"
	"github.com/remotegpu/remotegpu/protocol/tunnel"
)

// TestPasswordEndsConnections: whoever has a session that a new password ends
// is cut off at every replica, and nobody else is.
func TestPasswordEndsConnections(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	other, err := New(t.Context(), Config{DataDir: t.TempDir(), DatabaseURL: w.cfg.DatabaseURL, Version: "test"}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(other.closeDatabase)
	there := httptest.NewServer(other.handler)
	t.Cleanup(there.Close)
	for _, s := range []*Server{w.Server, other} {
		listens := make(chan struct{})
		go func() {
			_ = pg.Listen(t.Context(), s.pool, account.Revoked, func(id string) {
				s.cut(id)
				if id == "" {
					close(listens)
				}
			})
		}()
		<-listens
	}
	mine, stolen := w.session("member"), w.session("member")
	ended := map[string]chan error{}
	for _, url := range []string{w.url, there.URL} {
		for name, secret := range map[string]string{"stolen": stolen, "mine": mine, "token": w.secrets["member"], "another's": w.session("viewer")} {
			ended[name+" "+url] = w.shell(url, secret)
		}
	}
	status, body := w.ask(http.MethodPut, "/api/v1/account/password", `{"old":"correct horse member","new":"battery staple"}`, bearer(mine))
	if status != http.StatusNoContent {
		t.Fatalf("%d %s", status, body)
	}
	for _, url := range []string{w.url, there.URL} {
		select {
		case <-ended["stolen "+url]:
		case <-time.After(30 * time.Second):
			t.Errorf("the stolen session goes on at %s", url)
		}
	}
	for name, end := range ended {
		if strings.HasPrefix(name, "stolen") {
			continue
		}
		select {
		case err := <-end:
			t.Errorf("%s has ended too: %v", name, err)
		default:
		}
	}
}

// TestFollowedLogEndsWithItsLogin: a log that is followed is open for days.
func TestFollowedLogEndsWithItsLogin(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	there := httptest.NewServer(p.other.handler)
	t.Cleanup(there.Close)
	listens := make(chan struct{})
	go func() {
		_ = pg.Listen(t.Context(), p.other.pool, account.Revoked, func(id string) {
			p.other.cut(id)
			if id == "" {
				close(listens)
			}
		})
	}()
	<-listens
	go func() {
		d := <-p.asked
		c, err := p.dial(p.url, d.Token, p.machine)
		if err != nil {
			t.Error(err)
			return
		}
		defer c.Close()
		_, _ = c.ReadMessage(1 << 16)
		if err := tunnel.Reply(c, protocol.StreamReply{}); err != nil {
			t.Error(err)
		}
		_, _ = c.Write([]byte("a line\n"))
		_, _ = io.Copy(io.Discard, c) // until it is not followed any more
	}()
	stolen := p.session("member")
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, there.URL+"/api/v1/workspaces/lab/environments/box/logs?follow=true", nil)
	if err != nil {
		t.Fatal(err)
	}
	bearer(stolen)(req)
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	line := make([]byte, 7)
	if _, err := io.ReadFull(res.Body, line); err != nil || string(line) != "a line\n" {
		t.Fatalf("%d %q %v", res.StatusCode, line, err)
	}
	if status, body := p.ask(http.MethodPut, "/api/v1/account/password", `{"old":"correct horse member","new":"battery staple"}`, bearer(p.secrets["member"])); status != http.StatusNoContent {
		t.Fatalf("%d %s", status, body)
	}
	if _, _ = io.ReadAll(res.Body); ctx.Err() != nil {
		t.Error("it is followed on")
	}
}

// TestOldSessionsAreRemoved: the replica that leads does so, also where nobody
// logs out.
func TestOldSessionsAreRemoved(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.session("member")
	live := w.session("owner")
	if _, err := w.pool.Exec(t.Context(), "update sessions set expires_at = now() where user_id = $1", w.ids["member"]); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- w.lead(ctx) }()
	defer func() { stop(); <-ended }()
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		var n int
		if err := w.pool.QueryRow(t.Context(), "select count(*) from sessions").Scan(&n); err != nil {
			t.Fatal(err)
		}
		if n == 1 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d sessions are left", n)
		}
	}
	if status, body := w.ask(http.MethodGet, "/api/v1/account", "", bearer(live)); status != http.StatusOK {
		t.Errorf("%d %s", status, body)
	}
}

func bearer(secret string) func(*http.Request) {
	return func(r *http.Request) { r.Header.Set("Authorization", "Bearer "+secret) }
}

// session logs who in.
func (w *world) session(who string) string {
	w.t.Helper()
	status, body := w.ask(http.MethodPost, "/api/v1/login", `{"email":"`+who+`@example.org","password":"correct horse `+who+`"}`, func(*http.Request) {})
	var out struct{ Token string }
	if err := json.Unmarshal([]byte(body), &out); err != nil || status != http.StatusOK {
		w.t.Fatalf("%d %s", status, body)
	}
	return out.Token
}

// shell opens an SSH connection over HTTPS and returns what tells of its end.
func (w *world) shell(url, secret string) chan error {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(w.t.Context(), 20*time.Second)
	defer cancel()
	conn, err := tunnel.Dial(ctx, tunnel.DialConfig{URL: "ws" + strings.TrimPrefix(url, "http") + "/api/v1/ssh/connect", Header: http.Header{"Authorization": {"Bearer " + secret}}})
	if err != nil {
		w.t.Fatal(err)
	}
	sc, channels, requests, err := ssh.NewClientConn(conn, "gateway:22", &ssh.ClientConfig{User: "box", HostKeyCallback: ssh.InsecureIgnoreHostKey(), Timeout: 20 * time.Second})
	if err != nil {
		w.t.Fatal(err)
	}
	c := ssh.NewClient(sc, channels, requests)
	w.t.Cleanup(func() { c.Close() })
	if _, _, err := c.SendRequest("keepalive@openssh.com", true, nil); err != nil {
		w.t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- c.Wait() }()
	return ended
}
