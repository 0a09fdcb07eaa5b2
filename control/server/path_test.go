package server

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// raw sends a request line as it stands and returns status and body; 0 when the
// server ended the connection instead.
func (w *world) raw(line, headers string) (int, string) {
	w.t.Helper()
	c, err := net.Dial("tcp", strings.TrimPrefix(w.url, "http://"))
	if err != nil {
		w.t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(20 * time.Second))
	fmt.Fprintf(c, "%s HTTP/1.1\r\nHost: x\r\nConnection: close\r\n%s\r\n", line, headers)
	method, _, _ := strings.Cut(line, " ")
	res, err := http.ReadResponse(bufio.NewReader(c), &http.Request{Method: method})
	if errors.Is(err, syscall.ECONNRESET) {
		return 0, "" // it was cut while it still spoke
	}
	if err != nil {
		w.t.Fatalf("%s: %v", line, err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil && !errors.Is(err, syscall.ECONNRESET) {
		w.t.Fatal(err)
	}
	return res.StatusCode, string(body)
}

// TestPathTricks: no way to write a path reaches what stands beside what a route
// serves, or around who may use it.
func TestPathTricks(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	const secret = "what nobody may see"
	if err := os.MkdirAll(filepath.Join(w.cfg.Downloads, "sub"), 0o755); err != nil {
		t.Fatal(err)
	}
	for file, text := range map[string]string{
		"release.pub": "public", "release.key": secret, ".hidden": secret, "sub/release.key": secret, "../beside": secret, "../registry/beside": secret,
	} {
		file = filepath.Join(w.cfg.Downloads, file)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	stranger := "Authorization: Bearer " + w.secrets["stranger"] + "\r\n"
	for path, want := range map[string]int{"/dl/release.pub": 200, "/dl/sub/../release.pub": 307, "/api/v1/account": 200} {
		if got, body := w.raw("GET "+path, stranger); got != want {
			t.Errorf("%s: status %d, so the tries say nothing: %.100s", path, got, body)
		}
	}
	tricks := []string{
		"/../beside", "/..%2fbeside", "/%2e%2e/beside", "/%2e%2e%2fbeside", "//..//beside", `/..\beside`, "/..%5cbeside", "/sub/../../beside",
		"/sub/%2e%2e/%2e%2e/beside", "/.%00./beside", "/..;/beside", "/%c0%ae%c0%ae/beside", "/%252e%252e/beside", "/../registry/beside",
		"/release.key", "/release.key/", "/release.key/.", "/sub/..%2frelease.key", "/release.key%00", "/release.key%00.pub", "/sub/release.key", "//release.key",
		"/release.key?x=.pub", "/release.key;.pub", "/.hidden", "/sub/../.hidden", "/%2ehidden", "/./.hidden",
	}
	for _, root := range []string{"/dl", "/v2", "/v2/lab/x", "/apps", "/install.sh", ""} {
		for _, trick := range tricks {
			for _, method := range []string{"GET", "HEAD", "POST"} {
				got, body := w.raw(method+" "+root+trick, "")
				if strings.Contains(body, secret) || got >= 500 {
					t.Errorf("%s %s%s: %d %.100s", method, root, trick, got, body)
				}
			}
		}
	}
	// Around the table of who may do what: from a route that is public to one that is not.
	for _, from := range []string{"/dl", "/v2", "/healthz", "/apps", "/api/v1/agent/enroll", "/mqtt", "/ca.pem"} {
		for _, to := range []string{"/../api/v1/users", "/..%2fapi/v1/users", "/%2e%2e/api/v1/users", "/%2e%2e%2fapi%2fv1%2fusers", "//api/v1/users", "/..;/api/v1/users", "/../v2/_catalog", "/%2e%2e/v2/_catalog"} {
			got, body := w.raw("GET "+from+to, stranger)
			if strings.Contains(body, "@example.org") || strings.Contains(body, "repositories") || got >= 500 {
				t.Errorf("%s%s: %d %.100s", from, to, got, body)
			}
		}
	}
	for _, line := range []string{"GET http://other.example/api/v1/users", "GET //other.example/api/v1/users", "CONNECT 127.0.0.1:22", "OPTIONS *", "GET *"} {
		if got, body := w.raw(line, stranger); strings.Contains(body, "@example.org") || got >= 500 {
			t.Errorf("%s: %d %.100s", line, got, body)
		}
	}
}

// TestSmuggledRequests: what two programs could read in two ways is refused, or
// read as one request that ends the connection.
func TestSmuggledRequests(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	hidden := "GET /api/v1/account HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer " + w.secrets["owner"] + "\r\n\r\n"
	for name, framing := range map[string]string{
		"two lengths":          fmt.Sprintf("Content-Length: 0\r\nContent-Length: %d\r\n\r\n", len(hidden)),
		"a list of lengths":    fmt.Sprintf("Content-Length: 0, %d\r\n\r\n", len(hidden)),
		"signed length":        fmt.Sprintf("Content-Length: +%d\r\n\r\n", len(hidden)),
		"unknown coding":       "Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
		"coding twice":         "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n",
		"space before a colon": "Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
		"a bare return":        "X-A: b\rTransfer-Encoding: chunked\r\n\r\n",
		"a host twice":         "Host: y\r\n\r\n",
		"no name":              ": x\r\n\r\n",
		"a zero byte":          "X-A: \x00\r\n\r\n",
	} {
		c, err := net.Dial("tcp", strings.TrimPrefix(w.url, "http://"))
		if err != nil {
			t.Fatal(err)
		}
		c.SetDeadline(time.Now().Add(20 * time.Second))
		fmt.Fprintf(c, "POST /api/v1/login HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n%s%s", framing, hidden)
		got, err := io.ReadAll(c) // it ends: each of these closes the connection
		if err != nil {
			t.Errorf("%s: the connection goes on: %v", name, err)
		}
		if strings.Contains(string(got), "owner@example.org") {
			t.Errorf("%s: the hidden request is answered: %.300s", name, got)
		}
		c.Close()
	}
}

// TestTooMuchOfARequest: headers and bodies over their limits get a sentence or
// an end, and so does a body that claims to be compressed.
func TestTooMuchOfARequest(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	enroll := func(body, headers string) (int, string) {
		return w.raw("POST /api/v1/agent/enroll", fmt.Sprintf("Content-Type: application/json\r\nContent-Length: %d\r\n%s\r\n%s", len(body), headers, body)+"\r\n\r\n")
	}
	for name, got := range map[string]func() (int, string){
		"a label of 1 MB": func() (int, string) {
			return enroll(`{"token":"x","labels":{"a":"`+strings.Repeat("x", 1<<20)+`"}}`, "")
		},
		"a name of 100 KB": func() (int, string) { return enroll(`{"token":"x","name":"`+strings.Repeat("x", 100<<10)+`"}`, "") },
		"100,000 GPUs": func() (int, string) {
			return enroll(`{"token":"x","inventory":{"gpus":[`+strings.Repeat("{},", 100_000)+`{}]}}`, "")
		},
		"deep JSON":     func() (int, string) { return enroll(strings.Repeat("[", 100_000), "") },
		"invalid UTF-8": func() (int, string) { return enroll("{\"token\":\"\xff\xfe\"}", "") },
		"gzip": func() (int, string) {
			return enroll("\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xff", "Content-Encoding: gzip\r\n")
		},
	} {
		status, body := got()
		if status != 0 && (status < 400 || status >= 500) {
			t.Errorf("%s: %d %.200s", name, status, body)
		}
		if len(body) > 20_000 {
			t.Errorf("%s: is answered by %d bytes", name, len(body))
		}
	}
}
