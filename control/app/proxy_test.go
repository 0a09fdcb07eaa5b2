package app

import (
	"bufio"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/base64"
	"fmt"
	"hash"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"github.com/remotegpu/remotegpu/control/web"
)

// TestEvents: each event arrives before the next is made.
func TestEvents(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	next := make(chan bool, 1)
	home := w.run("box", "6006", func(rw http.ResponseWriter, r *http.Request) {
		rw.Header().Set("Content-Type", "text/event-stream")
		for i := 0; <-next; i++ {
			fmt.Fprintf(rw, "data: %d\n\n", i)
			http.NewResponseController(rw).Flush()
		}
	})
	b := w.browser()
	req, err := http.NewRequestWithContext(t.Context(), "GET", home, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+w.secrets["bob"])
	next <- true // the first: the answer begins with it
	res, err := b.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	lines := bufio.NewReader(res.Body)
	for i := range 50 {
		line, err := lines.ReadString('\n')
		if want := fmt.Sprintf("data: %d\n", i); err != nil || line != want {
			t.Fatalf("%q, %v, want %q", line, err, want)
		}
		lines.ReadString('\n')
		next <- i < 49
	}
	if _, err := lines.ReadByte(); err != io.EOF {
		t.Errorf("after the last: %v", err)
	}
}

// TestSlowAnswer: what people send and programs answer may take longer than every
// time-out on the way; each that there is, is 3 s here.
func TestSlowAnswer(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	const longer = 4 * time.Second
	home := w.run("box", "8888", func(rw http.ResponseWriter, r *http.Request) {
		sent, err := io.ReadAll(r.Body)
		time.Sleep(longer) // before the header
		for i := range 15 {
			fmt.Fprint(rw, i, " ")
			http.NewResponseController(rw).Flush()
			time.Sleep(longer / 15)
		}
		time.Sleep(longer)
		fmt.Fprintf(rw, "%s %v", sent, err)
	})
	front := httptest.NewUnstartedServer(nil)
	front.Config = web.Server(w.Handler(http.NotFoundHandler()), w.log)
	in, out := front.Config, w.proxy.Transport.(*http.Transport)
	for _, limit := range []*time.Duration{
		&in.ReadHeaderTimeout, &in.ReadTimeout, &in.WriteTimeout, &in.IdleTimeout,
		&out.ResponseHeaderTimeout, &out.IdleConnTimeout, &out.ExpectContinueTimeout, &out.TLSHandshakeTimeout,
	} {
		if *limit > 0 {
			*limit = 3 * time.Second
		}
	}
	front.StartTLS()
	t.Cleanup(front.Close)
	reach := func(ctx context.Context, network, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, network, front.Listener.Addr().String())
	}
	client := &http.Client{Transport: &http.Transport{DialContext: reach, TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}}
	t.Cleanup(client.CloseIdleConnections)
	body, feed := io.Pipe()
	go func() {
		for range 3 {
			io.WriteString(feed, "slow ")
			time.Sleep(longer / 2)
		}
		feed.Close()
	}()
	req, err := http.NewRequestWithContext(t.Context(), "POST", home, body)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+w.secrets["bob"])
	began := time.Now()
	res, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	got, err := io.ReadAll(res.Body)
	if want := "0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 slow slow slow  <nil>"; err != nil || string(got) != want {
		t.Errorf("after %v %q, %v, want %q", time.Since(began), got, err, want)
	}
}

// upgrade answers with a WebSocket that echoes.
func upgrade(rw http.ResponseWriter, r *http.Request) {
	up := websocket.Upgrader{CheckOrigin: func(*http.Request) bool { return true }}
	c, err := up.Upgrade(rw, r, nil)
	if err != nil {
		return
	}
	defer c.Close()
	for {
		kind, b, err := c.ReadMessage()
		if err != nil || c.WriteMessage(kind, b) != nil {
			return
		}
	}
}

func TestWebSocket(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	home := w.run("box", "8888", upgrade)
	b := w.browser()
	b.login("bob", home)
	c, res, err := b.socket(home+"ws", origin(home))
	if err != nil {
		t.Fatalf("%v %v", err, res)
	}
	defer c.Close()
	for _, n := range []int{0, 1, 125, 70000, 1 << 20} {
		want := strings.Repeat("x", n)
		if err := c.WriteMessage(websocket.TextMessage, []byte(want)); err != nil {
			t.Fatal(err)
		}
		if _, got, err := c.ReadMessage(); err != nil || string(got) != want {
			t.Fatalf("%d bytes, %v, want %d", len(got), err, n)
		}
	}
}

// TestBytesAreTheUsers: what passes by the connections that all users of an app
// share is counted against who it is for, both ways.
func TestBytesAreTheUsers(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	const size = 1 << 20
	socket, page := w.run("box", "8888", upgrade), w.run("box", "8080", func(rw http.ResponseWriter, r *http.Request) {
		n, _ := io.Copy(io.Discard, r.Body)
		rw.Write(make([]byte, n))
	})
	b := w.browser()
	b.login("bob", socket)
	c, res, err := b.socket(socket+"ws", origin(socket))
	if err != nil {
		t.Fatalf("%v %v", err, res)
	}
	defer c.Close()
	if err := c.WriteMessage(websocket.BinaryMessage, make([]byte, size)); err != nil {
		t.Fatal(err)
	}
	if _, _, err := c.ReadMessage(); err != nil {
		t.Fatal(err)
	}
	req, err := http.NewRequestWithContext(t.Context(), "POST", page, strings.NewReader(strings.Repeat("x", size)))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+w.secrets["ann"])
	answer, err := b.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	if n, err := io.Copy(io.Discard, answer.Body); n != size || err != nil {
		t.Fatalf("%d bytes, %v", n, err)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, who := range []string{"ann", "bob"} {
		if n := w.paid[w.callers[who].ID]; n < 2*size || n > 2*size+size/10 {
			t.Errorf("%s paid for %d bytes, want %d", who, n, 2*size)
		}
	}
}

// TestForeignPages: what another site's page asks for with the cookie of an app
// does not reach the app, be it a sibling's or not.
func TestForeignPages(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	var hits atomic.Int32
	home := w.run("box", "8888", func(rw http.ResponseWriter, r *http.Request) {
		hits.Add(1)
		if r.Header.Get("Upgrade") != "" {
			upgrade(rw, r)
		}
	})
	sibling := origin(w.run("den", "8888", nil))
	b := w.browser()
	b.login("bob", home)
	hits.Store(0)
	for _, from := range []string{"https://evil.test", sibling, w.cfg.Places.Main, "null", strings.Replace(origin(home), "https", "http", 1), origin(home) + "0"} {
		if _, res, err := b.socket(home, from); err == nil || res == nil || res.StatusCode != http.StatusForbidden {
			t.Errorf("a WebSocket of %s: %v %v", from, res, err)
		}
		for _, method := range []string{"POST", "PUT", "DELETE", "PATCH", "GET"} {
			if p := b.ask(method, home, "", "Origin", from); p.status != http.StatusForbidden {
				t.Errorf("%s of %s: %d", method, from, p.status)
			}
		}
	}
	for _, site := range []string{"cross-site", "same-site"} {
		for _, headers := range [][]string{
			{"Sec-Fetch-Mode", "no-cors", "Sec-Fetch-Dest", "script"}, {"Sec-Fetch-Mode", "navigate", "Sec-Fetch-Dest", "iframe"},
			{"Sec-Fetch-Mode", "cors", "Sec-Fetch-Dest", "empty"}, {"Sec-Fetch-Mode", "websocket", "Sec-Fetch-Dest", "empty"}, {},
		} {
			if p := b.get(home, append(headers, "Sec-Fetch-Site", site)...); p.status != http.StatusForbidden {
				t.Errorf("%s %v: %d", site, headers, p.status)
			}
		}
		if p := b.ask("POST", home, "a=b", "Sec-Fetch-Site", site, "Sec-Fetch-Mode", "navigate", "Sec-Fetch-Dest", "document"); p.status != http.StatusForbidden {
			t.Errorf("a form of a %s page: %d", site, p.status)
		}
		if p := b.get(origin(home)+"/.remotegpu/logout", "Sec-Fetch-Site", site, "Sec-Fetch-Mode", "no-cors", "Sec-Fetch-Dest", "image"); p.status != http.StatusNotFound {
			t.Errorf("a logout by a %s page: %d", site, p.status)
		}
	}
	if n := hits.Load(); n != 0 {
		t.Errorf("%d of these reached the app", n)
	}
	if p := b.get(home, "Sec-Fetch-Site", "cross-site", "Sec-Fetch-Mode", "navigate", "Sec-Fetch-Dest", "document"); p.status != http.StatusOK {
		t.Errorf("a link from elsewhere: %d", p.status)
	}
	if p := b.ask("POST", home, "", "Origin", origin(home), "Sec-Fetch-Site", "same-origin"); p.status != http.StatusOK {
		t.Errorf("the app's own page: %d", p.status)
	}
}

// TestCookieOfAnotherApp: it opens nothing and is not passed on.
func TestCookieOfAnotherApp(t *testing.T) {
	t.Parallel()
	for name, places := range map[string]Places{"own hosts": ownHosts, "shared origin": shared} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorldAt(t, places)
			one, two := w.run("box", "8888", nil), w.run("den", "8888", nil)
			b := w.browser()
			b.login("bob", one)
			a, err := w.lookUp(t.Context(), ref{workspace: "lab", env: "den", app: "8888"})
			if err != nil {
				t.Fatal(err)
			}
			cookie, _ := w.ownCookie(&a, cookieApp)
			stolen := cookie + "=" + b.cookies(one)[0]
			if p := w.browser().get(two, "Cookie", stolen, "Accept", "*/*"); p.status != http.StatusUnauthorized {
				t.Errorf("it opens another app: %d %s", p.status, p.body)
			}
			if status, body := w.api("", "GET", "/api/v1/workspaces/lab/apps", ""); status != http.StatusUnauthorized {
				t.Errorf("%d %s", status, body)
			}
			if p := w.browser().get(w.cfg.Places.Main+"/api/v1/workspaces/lab/apps", "Cookie", stolen+"; "+cookieMain+"="+b.cookies(one)[0]); p.status != http.StatusUnauthorized {
				t.Errorf("it opens the API: %d", p.status)
			}
			if p := w.browser().still().get(w.cfg.Places.Main+"/apps/login?app=lab/den/8888", "Cookie", cookieMain+"="+b.cookies(one)[0]); p.status != http.StatusOK || !strings.Contains(p.body, "password") {
				t.Errorf("it is a login: %d %s", p.status, p.header.Get("Location"))
			}
			b.get(two)
			if e := b.get(two, "Cookie", stolen+"; mine=1; "+cookieMain+"=x").echo(t); strings.Contains(fmt.Sprint(e.Header), "__") || e.Header.Get("Cookie") != "mine=1" {
				t.Errorf("the app sees %v", e.Header)
			}
		})
	}
}

// TestSecretsStay: an app never sees what proves who somebody is to us.
func TestSecretsStay(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	home := w.run("box", "8888", nil)
	token := w.secrets["bob"]
	basic := base64.StdEncoding.EncodeToString([]byte("token:" + token))
	public := w.run("den", "80", nil)
	if status, body := w.api("bob", "PUT", "/api/v1/workspaces/lab/environments/den/apps/80", `{"visibility":"public"}`); status != http.StatusOK {
		t.Fatalf("%d %s", status, body)
	}
	for _, c := range []struct{ address, header string }{{home, "Bearer " + token}, {public, "Bearer " + token}, {public, "bearer " + token}, {public, "Basic " + basic}, {public, "basic  " + basic}, {public, token}} {
		e := w.browser().get(c.address, "Authorization", c.header, "X-Remotegpu-Stream", token).echo(t)
		if all := fmt.Sprint(e.Header); e.Header["Authorization"] != nil || strings.Contains(all, token) || strings.Contains(all, basic) {
			t.Errorf("%.10s: the app sees %v", c.header, e.Header)
		}
	}
	for _, own := range []string{"token 123", "Bearer eyJhbGciOi", "Basic " + base64.StdEncoding.EncodeToString([]byte("ann:secret"))} {
		if e := w.browser().get(public, "Authorization", own).echo(t); e.Header.Get("Authorization") != own {
			t.Errorf("the app's own %q arrives as %q", own, e.Header.Get("Authorization"))
		}
	}
	if p := w.browser().get(home, "Authorization", "Bearer rgt_wrong", "Accept", "*/*"); p.status != http.StatusUnauthorized {
		t.Errorf("a wrong token: %d", p.status)
	}
}

// TestForwardedHeaders: who asks, and for what, is what we saw and not what the
// browser says.
func TestForwardedHeaders(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	home := w.run("box", "8888", nil)
	e := w.browser().get(home, "Authorization", "Bearer "+w.secrets["bob"], "X-Forwarded-For", "6.6.6.6", "X-Forwarded-Host", "evil.test", "X-Forwarded-Proto", "http",
		"Forwarded", "for=6.6.6.6", "X-Forwarded-Prefix", "/evil", "X-Hop", "1", "Connection", "X-Hop, X-Forwarded-For, Cookie", "Te", "trailers", "Proxy-Authorization", "x", "Keep-Alive", "5",
		"X_Forwarded_For", "6.6.6.6", "X-Forwarded_User", "eve", "X_Real_IP", "6.6.6.6", "X_Remotegpu_User", "eve").echo(t)
	want := map[string]string{"X-Forwarded-For": "127.0.0.1", "X-Forwarded-Host": strings.TrimPrefix(origin(home), "https://"), "X-Forwarded-Proto": "https",
		"Forwarded": "", "X-Forwarded-Prefix": "", "X-Hop": "", "Connection": "", "Proxy-Authorization": "", "Keep-Alive": "",
		"X_Forwarded_For": "", "X-Forwarded_User": "", "X_Real_IP": "", "X_Remotegpu_User": ""}
	for name, value := range want {
		if got := strings.Join(e.Header.Values(name), ","); got != value {
			t.Errorf("%s: %q, want %q", name, got, value)
		}
	}
	if e.Host != want["X-Forwarded-Host"] {
		t.Errorf("Host: %q", e.Host)
	}
}

// TestSmuggling: however a request is framed, the app gets the one request that
// we have judged, or none.
func TestSmuggling(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	var paths atomic.Value
	paths.Store("")
	home := w.run("box", "8888", func(rw http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		paths.Store(paths.Load().(string) + " " + r.URL.Path)
	})
	host := strings.TrimPrefix(origin(home), "https://")
	hidden := "GET /hidden HTTP/1.1\r\nHost: " + host + "\r\n\r\n"
	for name, framing := range map[string]string{
		"both":               fmt.Sprintf("Content-Length: %d\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n%s", 5+len(hidden), hidden),
		"two lengths":        fmt.Sprintf("Content-Length: 0\r\nContent-Length: %d\r\n\r\n%s", len(hidden), hidden),
		"a list of lengths":  fmt.Sprintf("Content-Length: 0, %d\r\n\r\n%s", len(hidden), hidden),
		"signed length":      fmt.Sprintf("Content-Length: +%d\r\n\r\n%s", len(hidden), hidden),
		"unknown encoding":   "Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n" + hidden,
		"encoding twice":     "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n" + hidden,
		"tab":                "Transfer-Encoding:\tchunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n" + hidden,
		"space in name":      "Transfer-Encoding : chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n" + hidden,
		"folded":             "X-A: b\r\n Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n" + hidden,
		"bare line feed":     "X-A: b\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n" + hidden,
		"second host":        "Host: evil.test\r\nContent-Length: 0\r\n\r\n" + hidden,
		"chunk with garbage": "Transfer-Encoding: chunked\r\n\r\n0;a\rb\r\n\r\n" + hidden,
	} {
		paths.Store("")
		conn, err := tls.Dial("tcp", w.server.Listener.Addr().String(), &tls.Config{InsecureSkipVerify: true})
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(conn, "POST /seen HTTP/1.1\r\nHost: %s\r\nAuthorization: Bearer %s\r\n%s", host, w.secrets["bob"], framing)
		conn.SetReadDeadline(time.Now().Add(2 * time.Second))
		answers := bufio.NewReader(conn)
		for { // the hidden one has no token: 401 or nothing, if it is a request at all
			res, err := http.ReadResponse(answers, nil)
			if err != nil {
				break
			}
			io.Copy(io.Discard, res.Body)
			res.Body.Close()
			if res.StatusCode >= 400 && strings.Contains(res.Header.Get("Connection"), "close") {
				break
			}
			if res.StatusCode == http.StatusUnauthorized {
				break
			}
		}
		conn.Close()
		if got := paths.Load().(string); strings.Trim(got, " /sen") != "" {
			t.Errorf("%s: the app was asked for%s", name, got)
		}
	}
}

// TestUpload: a large upload flows, and a slow app holds it up; nothing of it
// gathers in memory.
func TestUpload(t *testing.T) { // alone: what others hold would be counted
	w := newWorld(t)
	const size = 64 << 20
	goOn := make(chan struct{})
	home := w.run("box", "8888", func(rw http.ResponseWriter, r *http.Request) {
		sum := sha256.New()
		io.CopyN(sum, r.Body, 1<<20)
		<-goOn
		n, err := io.Copy(sum, r.Body)
		fmt.Fprintf(rw, "%v %d %v %x", r.TransferEncoding, n+1<<20, err, sum.Sum(nil))
	})
	up := &upload{left: size, random: rand.NewChaCha8([32]byte{}), sum: sha256.New()}
	req, err := http.NewRequestWithContext(t.Context(), "POST", home, up)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+w.secrets["bob"])
	done := make(chan *http.Response, 1)
	go func() {
		res, err := w.browser().Do(req)
		if err != nil {
			t.Error(err)
		}
		done <- res
	}()
	last := int64(-1)
	for up.sent.Load() != last || last <= 0 {
		last = up.sent.Load()
		time.Sleep(300 * time.Millisecond) // nothing tells that nothing moves
	}
	if last > 32<<20 {
		t.Errorf("%d bytes are under way to an app that does not read", last)
	}
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	close(goOn)
	res := <-done
	if res == nil {
		return
	}
	defer res.Body.Close()
	runtime.GC()
	runtime.ReadMemStats(&after)
	got, err := io.ReadAll(res.Body)
	if want := fmt.Sprintf("[chunked] %d <nil> %x", size, up.sum.Sum(nil)); err != nil || string(got) != want {
		t.Errorf("%s, %v, want %s", got, err, want)
	}
	if grown := int64(after.HeapAlloc) - int64(before.HeapAlloc); grown > 16<<20 {
		t.Errorf("%d bytes stay in memory", grown)
	}
}

// upload is a body of unknown length.
type upload struct {
	left   int64
	random *rand.ChaCha8
	sum    hash.Hash
	sent   atomic.Int64
}

func (u *upload) Read(p []byte) (int, error) {
	if u.left == 0 {
		return 0, io.EOF
	}
	p = p[:min(int64(len(p)), u.left)]
	u.random.Read(p)
	u.sum.Write(p)
	u.left -= int64(len(p))
	u.sent.Add(int64(len(p)))
	return len(p), nil
}

// TestSharedOrigin: an app is told of its own paths alone, and what it answers
// stays below them.
func TestSharedOrigin(t *testing.T) {
	t.Parallel()
	w := newWorldAt(t, shared)
	answer := func(rw http.ResponseWriter, r *http.Request) {
		q := r.URL.Query()
		for _, c := range q["cookie"] {
			rw.Header().Add("Set-Cookie", c)
		}
		if to := q.Get("to"); to != "" {
			rw.Header().Set("Location", to)
			rw.WriteHeader(http.StatusFound)
		}
		rw.Header().Set("Clear-Site-Data", "*")
		rw.Header().Set("Service-Worker-Allowed", "/")
		fmt.Fprint(rw, r.URL.EscapedPath(), " ", r.Header.Get("X-Forwarded-Prefix"))
	}
	home := w.run("box", "8888", answer)
	aware := w.run("den", "80", answer)
	if status, body := w.api("bob", "PUT", "/api/v1/workspaces/lab/environments/den/apps/80", `{"base_path":true}`); status != http.StatusOK {
		t.Fatalf("%d %s", status, body)
	}
	if home != "https://gpu.test:8444/apps/lab/box/8888/" || aware != "https://gpu.test:8444/apps/lab/den/80/" {
		t.Fatal(home, aware)
	}
	b := w.browser()
	auth := []string{"Authorization", "Bearer " + w.secrets["bob"]}
	for address, want := range map[string]string{
		home: "/ /apps/lab/box/8888", home + "a%2Fb/..%2f/c": "/a%2Fb/..%2f/c /apps/lab/box/8888", home + "../../den/80/": "/../../den/80/ /apps/lab/box/8888",
		aware + "tree": "/apps/lab/den/80/tree ",
	} {
		p := b.ask("GET", address, "", auth...)
		if p.body != want || p.header.Get("Clear-Site-Data") != "" || p.header.Get("Service-Worker-Allowed") != "" {
			t.Errorf("%s: %d %q %v, want %q", address, p.status, p.body, p.header, want)
		}
	}
	for to, want := range map[string]string{
		"/tree": "/apps/lab/box/8888/tree", "tree": "tree", "?a=b": "?a=b", "https://other.test/x": "https://other.test/x",
		"http://gpu.test:8444/x": "https://gpu.test:8444/apps/lab/box/8888/x", "/apps/lab/box/8888/x": "/apps/lab/box/8888/x",
	} {
		if p := b.still().ask("GET", home+"?to="+url.QueryEscape(to), "", auth...); p.header.Get("Location") != want {
			t.Errorf("Location %q arrives as %q, want %q", to, p.header.Get("Location"), want)
		}
	}
	if p := b.still().get("https://gpu.test:8444/apps/lab/box/8888", auth...); p.status != http.StatusPermanentRedirect || p.header.Get("Location") != "/apps/lab/box/8888/" {
		t.Errorf("without a slash: %d %v", p.status, p.header)
	}
	for _, path := range []string{"/", "/apps/", "/apps/lab", "/apps/lab/box", "/apps/LAB/box/80/", "/apps/lab/box/0/", "/apps/lab/box/99999/", "/api/v1/account", "/apps/l%61b/box/80/", "/apps/lab/box/8888/.remotegpu/x"} {
		if p := b.get("https://gpu.test:8444"+path, auth...); p.status != http.StatusNotFound {
			t.Errorf("%s: %d %.100s", path, p.status, p.body)
		}
	}
}

// TestErrors: a person reads what happened and what to do; a program gets a
// problem document; whether an app is there is not for strangers.
func TestErrors(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.put("box", "127.0.0.1:99", service(t, func(c *net.TCPConn) { c.Close() }))
	w.put("box", "127.0.0.1:98", service(t, func(c *net.TCPConn) { fmt.Fprint(c, "SSH-2.0-x\r\n"); io.Copy(io.Discard, c) }))
	for _, c := range []struct {
		who, env, port string
		status         int
		text           string
	}{
		{"bob", "off", "80", 409, "remotegpu env start off"},
		{"bob", "box", "81", 503, "Nothing listens on 127.0.0.1:81"},
		{"bob", "box", "99", 502, "or does not speak HTTP"},
		{"bob", "box", "98", 502, "or does not speak HTTP"},
		{"eve", "box", "81", 404, "no such app, or you may not use it"},
		{"vera", "box", "81", 404, "no such app, or you may not use it"},
		{"", "box", "81", 401, "Log in first"},
	} {
		address := w.address("lab", c.env, c.port)
		headers := []string{}
		if c.who != "" {
			headers = append(headers, "Authorization", "Bearer "+w.secrets[c.who])
		}
		p := w.browser().get(address, append(headers, "Accept", "application/json")...)
		if p.status != c.status || !strings.Contains(detail(p.body), c.text) {
			t.Errorf("%s at %s: %d %s, want %d %s", c.who, address, p.status, p.body, c.status, c.text)
		}
		if p = w.browser().get(address, append(headers, "Sec-Fetch-Mode", "no-cors")...); p.status != c.status || !strings.Contains(p.body, "<p>"+strings.Split(c.text, ",")[0]) && !strings.Contains(p.body, c.text) {
			t.Errorf("%s at %s: %d %s", c.who, address, p.status, p.body)
		}
	}
	there, not := w.address("lab2", "box", "80"), "https://none--80--0123456789.apps.test:8443/"
	for _, headers := range [][]string{{"Authorization", "Bearer " + w.secrets["bob"]}, {"Accept", "*/*"}} {
		one, two := w.browser().get(there, headers...), w.browser().get(not, headers...)
		if one.status != two.status || one.body != two.body {
			t.Errorf("one that is not theirs: %d %s; one that is not there: %d %s", one.status, one.body, two.status, two.body)
		}
	}
	one, two := w.browser().still().get(there), w.browser().still().get(not)
	if one.status != two.status || len(one.header["Set-Cookie"]) != len(two.header["Set-Cookie"]) || len(one.header) != len(two.header) {
		t.Errorf("nobody gets %v and %v", one.header, two.header)
	}
	w.stop()
	began := time.Now()
	p := w.browser().get(w.address("lab", "box", "82"), "Authorization", "Bearer "+w.secrets["bob"])
	if p.status != http.StatusServiceUnavailable || !strings.Contains(p.body, "is offline") || time.Since(began) > 10*time.Second {
		t.Errorf("host offline: %d %s after %v", p.status, p.body, time.Since(began))
	}
}

// TestIPv6: a program that listens on localhost's other address is found.
func TestIPv6(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	srv := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) { fmt.Fprint(rw, "six") }))
	t.Cleanup(srv.Close)
	w.put("box", "[::1]:5173", strings.TrimPrefix(srv.URL, "http://"))
	if p := w.browser().get(w.address("lab", "box", "5173"), "Authorization", "Bearer "+w.secrets["bob"]); p.body != "six" {
		t.Errorf("%d %s", p.status, p.body)
	}
}
