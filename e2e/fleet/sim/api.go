package sim

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"time"
)

// API is the control plane as programs of people call it.
type API struct {
	url    string
	token  string // of the API
	client *http.Client
}

// NewAPI returns a client for a server whose certificate is by ca, PEM; empty:
// the system's roots.
func NewAPI(server, token string, ca []byte) (*API, error) {
	var roots *x509.CertPool
	if len(ca) > 0 {
		roots = x509.NewCertPool()
		if !roots.AppendCertsFromPEM(ca) {
			return nil, fmt.Errorf("the file of the authority has no certificate")
		}
	}
	return &API{url: server, token: token, client: &http.Client{Timeout: time.Minute, Transport: &http.Transport{
		TLSClientConfig: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}, MaxIdleConnsPerHost: 64,
	}}}, nil
}

// Call sends in as JSON, if it is not nil, and reads the answer into out, if
// that is not nil.
func (a *API) Call(ctx context.Context, method, path string, in, out any) error {
	var body io.Reader
	if in != nil {
		text, err := json.Marshal(in)
		if err != nil {
			return err
		}
		body = bytes.NewReader(text)
	}
	req, err := http.NewRequestWithContext(ctx, method, a.url+"/api/v1/"+path, body)
	if err != nil {
		return err
	}
	if a.token != "" {
		req.Header.Set("Authorization", "Bearer "+a.token)
	}
	req.Header.Set("Content-Type", "application/json")
	res, err := a.client.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if out == nil && res.StatusCode/100 == 2 {
		_, err := io.Copy(io.Discard, res.Body) // the connection serves again
		return err
	}
	text, err := io.ReadAll(res.Body)
	switch {
	case err != nil:
		return err
	case res.StatusCode/100 != 2:
		return fmt.Errorf("%s %s: %s: %.300s", method, path, res.Status, text)
	}
	return json.Unmarshal(text, out)
}

// Login makes all further calls those of a user.
func (a *API) Login(ctx context.Context, email, password string) error {
	in := map[string]string{"email": email, "password": password}
	var out struct{ Token string }
	if err := a.Call(ctx, http.MethodPost, "login", in, &out); err != nil {
		return err
	}
	a.token = out.Token
	return nil
}

// JoinToken returns a token with which so many hosts may join in the next day.
func (a *API) JoinToken(ctx context.Context, uses int) (string, error) {
	var out struct{ Token string }
	err := a.Call(ctx, http.MethodPost, "join-tokens", map[string]any{"uses": uses}, &out)
	return out.Token, err
}
