package enroll

import (
	"context"
	"crypto/ed25519"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/remotegpu/remotegpu/edge-agent/reach"
	"github.com/remotegpu/remotegpu/edge-agent/state"
	"github.com/remotegpu/remotegpu/protocol"
)

const testHost = protocol.PrefixHost + "00000000000000000000"

// server answers as the control plane does; it takes the token "good" alone.
func server(t *testing.T, keys ...ed25519.PublicKey) *httptest.Server {
	t.Helper()
	mux := http.NewServeMux()
	mux.HandleFunc("/healthz", func(http.ResponseWriter, *http.Request) {})
	mux.HandleFunc("POST "+path, func(w http.ResponseWriter, r *http.Request) {
		var e protocol.Enroll
		if err := json.NewDecoder(r.Body).Decode(&e); err != nil {
			t.Error(err)
		}
		if !ed25519.Verify(e.PublicKey, protocol.EnrollProof(e.Token, e.PublicKey), e.Proof) {
			t.Error("the proof is wrong")
		}
		if e.Token != "good" {
			w.Header().Set("Content-Type", "application/problem+json")
			w.WriteHeader(http.StatusForbidden)
			io.WriteString(w, `{"title":"Denied","status":403,"detail":"The join token has expired: make a new one under Hosts."}`)
			return
		}
		answer := protocol.Enrolled{Host: testHost, Name: e.Inventory.Hostname, Approved: true, Registry: "registry.example:443"}
		for _, k := range keys {
			answer.Keys = append(answer.Keys, k)
		}
		json.NewEncoder(w).Encode(answer)
	})
	s := httptest.NewTLSServer(mux)
	t.Cleanup(s.Close)
	return s
}

func caOf(cert *x509.Certificate) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw})
}

func reachTo(t *testing.T, cfg reach.Config) *reach.Server {
	t.Helper()
	s, err := reach.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func open(t *testing.T) *state.Store {
	t.Helper()
	s, err := state.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func TestEnroll(t *testing.T) {
	public, _, _ := ed25519.GenerateKey(nil)
	srv := server(t, public)
	ca := caOf(srv.Certificate())
	store := open(t)
	r := Request{
		Server: reachTo(t, reach.Config{URL: srv.URL, CA: ca}), CA: string(ca), Token: "good", Agent: "1",
		Inventory: protocol.Inventory{Hostname: "gpu-1"},
	}
	got, err := Enroll(t.Context(), store, r)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(Result{Host: testHost, Name: "gpu-1", Approved: true}, got); diff != "" {
		t.Error(diff)
	}
	before := store.Identity()
	want := &state.Identity{
		Server: srv.URL, CA: string(ca), Host: testHost, Name: "gpu-1", PrivateKey: before.PrivateKey,
		Keys: []ed25519.PublicKey{public}, Registry: "registry.example:443",
	}
	if diff := cmp.Diff(want, before); diff != "" {
		t.Error(diff)
	}
	srv.Close() // the second time asks nobody
	r.Token = "other"
	again, err := Enroll(t.Context(), store, r)
	if err != nil || !again.Already || again.Host != testHost {
		t.Errorf("second time: %+v, %v", again, err)
	}
	if diff := cmp.Diff(before, store.Identity()); diff != "" {
		t.Errorf("the second time changed:\n%s", diff)
	}
	r.Server = reachTo(t, reach.Config{URL: "https://other.example"})
	if _, err := Enroll(t.Context(), store, r); err == nil || !strings.Contains(err.Error(), "already host gpu-1 of "+srv.URL) {
		t.Errorf("with another server: %v", err)
	}
}

func TestHourOff(t *testing.T) {
	public, _, _ := ed25519.GenerateKey(nil)
	srv := server(t, public)
	cfg := reach.Config{URL: srv.URL, CA: caOf(srv.Certificate()), Now: func() time.Time { return time.Now().Add(-time.Hour) }}
	if _, err := Enroll(t.Context(), open(t), Request{Server: reachTo(t, cfg), Token: "good"}); err != nil {
		t.Error(err)
	}
}

func TestFailuresSayWhatToDo(t *testing.T) {
	public, _, _ := ed25519.GenerateKey(nil)
	srv := server(t, public)
	plain := httptest.NewServer(http.NotFoundHandler())
	t.Cleanup(plain.Close)
	elsewhere := httptest.NewTLSServer(http.NotFoundHandler())
	t.Cleanup(elsewhere.Close)
	refusing := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusForbidden) }))
	t.Cleanup(refusing.Close)
	gone, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	gone.Close()
	wrong, err := os.ReadFile(filepath.Join("testdata", "other-ca.pem"))
	if err != nil {
		t.Fatal(err)
	}
	right := caOf(srv.Certificate())
	proxy, _ := url.Parse(refusing.URL)
	cases := []struct {
		name  string
		cfg   reach.Config
		token string
		want  string
	}{
		{"expired token", reach.Config{URL: srv.URL, CA: right}, "old", "The join token has expired"},
		{"no token", reach.Config{URL: srv.URL, CA: right}, "", "--token"},
		{"wrong CA", reach.Config{URL: srv.URL, CA: wrong}, "good", "not signed by the CA"},
		{"no CA", reach.Config{URL: srv.URL}, "good", "--ca"},
		{"nobody there", reach.Config{URL: "https://" + gone.Addr().String(), CA: right}, "good", "Nothing accepts connections"},
		{"no TLS", reach.Config{URL: strings.Replace(plain.URL, "http:", "https:", 1), CA: right}, "good", "does not speak TLS"},
		{"no such server", reach.Config{URL: elsewhere.URL, CA: caOf(elsewhere.Certificate())}, "good", "is no RemoteGPU server"},
		{"unknown name", reach.Config{URL: "https://no-such-host.invalid", CA: right}, "good", "cannot be resolved"},
		{"proxy refuses", reach.Config{URL: srv.URL, CA: right, Proxy: http.ProxyURL(proxy)}, "good", "does not allow connections"},
		{"clock days off", reach.Config{URL: srv.URL, CA: right, Now: func() time.Time { return time.Now().AddDate(0, 0, 9) }}, "good", "set it"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			store := open(t)
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			_, err := Enroll(ctx, store, Request{Server: reachTo(t, c.cfg), Token: c.token})
			if err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "\n") {
				t.Errorf("got %v, want a sentence with %q", err, c.want)
			}
			if store.Identity() != nil {
				t.Error("an identity was stored")
			}
			t.Log(err)
		})
	}
}

func FuzzDecode(f *testing.F) {
	f.Add([]byte(`{"host":"` + testHost + `","keys":["AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="]}`))
	f.Add([]byte(`{"keys":[]}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		a, err := decode(&url.URL{Host: "x"}, raw)
		if err == nil && (!protocol.ValidID(protocol.PrefixHost, a.Host) || len(a.Keys) == 0) {
			t.Errorf("accepted %s", raw)
		}
	})
}
