package app

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"net/http/cookiejar"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"

	"github.com/gorilla/websocket"
)

// browser keeps cookies and finds every host at the world's servers, as DNS
// would have it.
type browser struct {
	*http.Client
	w   *world
	jar http.CookieJar
}

func (w *world) browser() *browser {
	jar, err := cookiejar.New(nil)
	if err != nil {
		w.t.Fatal(err)
	}
	transport := &http.Transport{DialContext: w.reach, TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}
	w.t.Cleanup(transport.CloseIdleConnections)
	return &browser{&http.Client{Transport: transport, Jar: jar}, w, jar}
}

func (w *world) reach(ctx context.Context, network, addr string) (net.Conn, error) {
	to := w.server
	if strings.HasSuffix(addr, ":8444") {
		to = w.paths
	}
	return new(net.Dialer).DialContext(ctx, network, to.Listener.Addr().String())
}

// got is what a browser got.
type got struct {
	status int
	at     *url.URL
	body   string
	header http.Header
}

// get opens a page, following redirects.
func (b *browser) get(address string, headers ...string) got {
	b.w.t.Helper()
	return b.ask(http.MethodGet, address, "", headers...)
}

// ask sends a request; headers are names and values. A page's Accept is added.
func (b *browser) ask(method, address, body string, headers ...string) got {
	b.w.t.Helper()
	req, err := http.NewRequestWithContext(b.w.t.Context(), method, address, strings.NewReader(body))
	if err != nil {
		b.w.t.Fatal(err)
	}
	req.Header.Set("Accept", "text/html")
	for i := 0; i < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	res, err := b.Do(req)
	if err != nil {
		b.w.t.Fatal(err)
	}
	defer res.Body.Close()
	raw, err := io.ReadAll(res.Body)
	if err != nil {
		b.w.t.Fatal(err)
	}
	return got{res.StatusCode, res.Request.URL, string(raw), res.Header}
}

// still is b without following redirects.
func (b *browser) still() *browser {
	c := *b.Client
	c.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	return &browser{&c, b.w, b.jar}
}

// submit does what the login page does, with what is in its address.
func (b *browser) submit(who string, at *url.URL, headers ...string) got {
	b.w.t.Helper()
	q := at.Query()
	form, err := json.Marshal(map[string]string{"email": who + "@example.org", "password": password, "app": q.Get("app"), "state": q.Get("state"), "return": q.Get("return")})
	if err != nil {
		b.w.t.Fatal(err)
	}
	headers = append([]string{"Content-Type", "application/json", "Origin", b.w.cfg.Places.Main, "Accept", "*/*"}, headers...)
	for try := 1; ; try++ { // all tests of this process check passwords in turns
		p := b.ask(http.MethodPost, b.w.cfg.Places.Main+"/apps/login", string(form), headers...)
		if p.status != http.StatusServiceUnavailable || try == 5 {
			return p
		}
	}
}

// login opens an app and logs in by the page that comes.
func (b *browser) login(who, address string) got {
	b.w.t.Helper()
	p := b.get(address)
	if p.status != http.StatusOK || p.at.Path != "/apps/login" || !strings.Contains(p.body, `type="password"`) {
		b.w.t.Fatalf("%s leads to %d %s, want the login page", address, p.status, p.at)
	}
	p = b.submit(who, p.at)
	var out openOutput
	if err := json.Unmarshal([]byte(p.body), &out); err != nil || p.status != http.StatusOK {
		b.w.t.Fatalf("login: %d %s", p.status, p.body)
	}
	return b.get(out.URL)
}

// cookies returns the values of our cookies at an address.
func (b *browser) cookies(address string) (values []string) {
	b.w.t.Helper()
	u, err := url.Parse(address)
	if err != nil {
		b.w.t.Fatal(err)
	}
	for _, c := range b.jar.Cookies(u) {
		if ours(c.Name) {
			values = append(values, c.Value)
		}
	}
	return values
}

// echo is what an app answers.
type echo struct {
	Method, Host, Path, Query, Body string
	Length                          int64
	Encoding                        []string
	Header                          http.Header
}

// run lets an app listen on a port of an environment; handle nil: it echoes.
func (w *world) run(env, port string, handle http.HandlerFunc) string {
	w.t.Helper()
	if handle == nil {
		handle = func(rw http.ResponseWriter, r *http.Request) {
			body, _ := io.ReadAll(r.Body)
			json.NewEncoder(rw).Encode(echo{r.Method, r.Host, r.URL.EscapedPath(), r.URL.RawQuery, string(body), r.ContentLength, r.TransferEncoding, r.Header})
		}
	}
	srv := httptest.NewServer(handle)
	w.t.Cleanup(srv.Close)
	w.put(env, "127.0.0.1:"+port, strings.TrimPrefix(srv.URL, "http://"))
	return w.address("lab", env, port)
}

// address is where people find an app.
func (w *world) address(workspace, env, name string) string {
	w.t.Helper()
	a, err := w.lookUp(w.t.Context(), ref{workspace: workspace, env: env, app: name})
	if err != nil {
		w.t.Fatal(err)
	}
	return w.cfg.Places.url(&a)
}

func (p got) echo(t *testing.T) (e echo) {
	t.Helper()
	if err := json.Unmarshal([]byte(p.body), &e); err != nil || p.status != http.StatusOK {
		t.Fatalf("%d %s %.300s", p.status, p.at, p.body)
	}
	return e
}

// socket opens a WebSocket to an app as a page at origin does.
func (b *browser) socket(address, origin string, headers ...string) (*websocket.Conn, *http.Response, error) {
	h := http.Header{}
	if origin != "" {
		h.Set("Origin", origin)
	}
	for i := 0; i < len(headers); i += 2 {
		h.Set(headers[i], headers[i+1])
	}
	u, err := url.Parse(address)
	if err != nil {
		b.w.t.Fatal(err)
	}
	var cookies []string // gorilla's own use of a jar asks it by the wss address
	for _, c := range b.jar.Cookies(u) {
		cookies = append(cookies, c.Name+"="+c.Value)
	}
	if len(cookies) > 0 {
		h.Set("Cookie", strings.Join(cookies, "; "))
	}
	d := websocket.Dialer{NetDialContext: b.w.reach, TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}
	return d.DialContext(b.w.t.Context(), "wss"+strings.TrimPrefix(address, "https"), h)
}

// origin returns the origin of an address.
func origin(address string) string {
	u, _ := url.Parse(address)
	return u.Scheme + "://" + u.Host
}
