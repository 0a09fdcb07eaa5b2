package cli

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/remotegpu/remotegpu/protocol/tunnel"
)

// profile is what login keeps, in a file that only its user may read.
type profile struct {
	URL       string `json:"url"`
	CA        string `json:"ca,omitempty"`  // PEM
	Pin       string `json:"pin,omitempty"` // sha256//… of the server's public key, when there is no CA
	Token     string `json:"token"`
	Workspace string `json:"workspace,omitempty"`
	Email     string `json:"email,omitempty"`
}

func (a *app) profilePath() (string, error) {
	if a.profile != "" {
		return a.profile, nil
	}
	file, err := usualProfile()
	if err != nil {
		return "", fmt.Errorf("find configuration folder: %w; give one with --config", err)
	}
	return file, nil
}

func usualProfile() (string, error) {
	dir, err := os.UserConfigDir()
	return filepath.Join(dir, "remotegpu", "config.json"), err
}

// profileHint is where this system keeps the profile, for people.
func profileHint() string {
	file, err := usualProfile()
	if err != nil {
		return "none: this user has no home"
	}
	if home, err := os.UserHomeDir(); err == nil {
		if rest, ok := strings.CutPrefix(file, home); ok {
			return "~" + rest
		}
	}
	return file
}

// load reads the profile; the environment goes before the file: REMOTEGPU_URL,
// REMOTEGPU_TOKEN, REMOTEGPU_CA (a file).
func (a *app) load() (profile, error) {
	var p profile
	name, err := a.profilePath()
	if err != nil {
		return p, err
	}
	b, err := os.ReadFile(name)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return p, err
	}
	if err == nil {
		if err := json.Unmarshal(b, &p); err != nil {
			return p, fmt.Errorf("%s is damaged (%w); log in again: remotegpu login URL", name, err)
		}
	}
	if v := os.Getenv("REMOTEGPU_URL"); v != "" {
		p = profile{URL: v, Workspace: p.Workspace}
	}
	if v := os.Getenv("REMOTEGPU_TOKEN"); v != "" {
		p.Token = v
	}
	if v := os.Getenv("REMOTEGPU_CA"); v != "" {
		pem, err := os.ReadFile(v)
		if err != nil {
			return p, fmt.Errorf("read REMOTEGPU_CA: %w", err)
		}
		p.CA = string(pem)
	}
	if a.workspace != "" {
		p.Workspace = a.workspace
	}
	if p.URL == "" || p.Token == "" {
		return p, errors.New("not logged in; do so first: remotegpu login https://YOUR-SERVER:8443")
	}
	return p, nil
}

func (a *app) save(p profile) (string, error) {
	name, err := a.profilePath()
	if err != nil {
		return "", err
	}
	if err := os.MkdirAll(filepath.Dir(name), 0o700); err != nil {
		return "", err
	}
	b, err := json.MarshalIndent(p, "", "  ")
	if err != nil {
		return "", err
	}
	tmp := name + ".new"
	if err := os.WriteFile(tmp, append(b, '\n'), 0o600); err != nil {
		return "", err
	}
	return name, os.Rename(tmp, name)
}

// client speaks to one server's API.
type client struct {
	profile
	http *http.Client
	tls  *tls.Config
}

// connect returns a client for the profile.
func (a *app) connect() (*client, error) {
	p, err := a.load()
	if err != nil {
		return nil, err
	}
	return newClient(p)
}

func newClient(p profile) (*client, error) {
	cfg, err := p.tlsConfig()
	if err != nil {
		return nil, err
	}
	transport := &http.Transport{Proxy: http.ProxyFromEnvironment, TLSClientConfig: cfg, ForceAttemptHTTP2: true}
	return &client{profile: p, tls: cfg, http: &http.Client{Transport: transport, Timeout: 60 * time.Second}}, nil
}

func (p profile) tlsConfig() (*tls.Config, error) {
	cfg := &tls.Config{MinVersion: tls.VersionTLS12}
	switch {
	case p.CA != "":
		cfg.RootCAs = x509.NewCertPool()
		if !cfg.RootCAs.AppendCertsFromPEM([]byte(p.CA)) {
			return nil, errors.New("the CA file holds no certificate; give the PEM file of the server's authority")
		}
	case p.Pin != "":
		cfg.InsecureSkipVerify = true // the pin is checked instead, as ssh does with host keys
		cfg.VerifyConnection = func(cs tls.ConnectionState) error {
			if got := keyPin(cs.PeerCertificates[0]); got != p.Pin {
				return otherKey{fmt.Errorf("the key of %s is %s and not %s; if that is right, log in again and pin it", p.URL, got, p.Pin)}
			}
			return nil
		}
	}
	return cfg, nil
}

// otherKey is a server that has not the key that was pinned.
type otherKey struct{ error }

func keyPin(cert *x509.Certificate) string {
	sum := sha256.Sum256(cert.RawSubjectPublicKeyInfo)
	return "sha256//" + base64.StdEncoding.EncodeToString(sum[:])
}

// dial opens the WebSocket at a path of the API.
func (c *client) dial(ctx context.Context, path string) (*tunnel.Conn, error) {
	conn, err := tunnel.Dial(ctx, tunnel.DialConfig{
		URL: "wss" + strings.TrimPrefix(c.URL, "https") + path, Header: http.Header{"Authorization": {"Bearer " + c.Token}},
		TLS: c.tls, Proxy: http.ProxyFromEnvironment,
	})
	if rejected, ok := errors.AsType[*tunnel.Rejected](err); ok {
		return nil, c.refusal(rejected.Status, []byte(rejected.Body))
	} else if err != nil {
		return nil, unreachable(c.URL, err)
	}
	return conn, nil
}

// refusal reads what the server says when it does not do what it was asked.
func (c *client) refusal(status int, body []byte) *problem {
	p := &problem{Status: status}
	if json.Unmarshal(body, p) != nil || p.Detail == "" {
		p.strange = true
		p.Detail = fmt.Sprintf("%s answered %d %s; is this a RemoteGPU server?", c.URL, status, http.StatusText(status))
	}
	return p
}

// problem is what the API says when it refuses.
type problem struct {
	strange bool // it was something on the way that refused, or another server

	Status int    `json:"status"`
	Detail string `json:"detail"`
	Errors []struct {
		Message  string `json:"message"`
		Location string `json:"location"`
	} `json:"errors"`
}

func (p *problem) Error() string {
	text := p.Detail
	if len(p.Errors) > 0 && text == "validation failed" {
		text = "That cannot be asked for"
	}
	for _, e := range p.Errors {
		text += fmt.Sprintf(" (%s: %s)", strings.TrimPrefix(e.Location, "body."), e.Message)
	}
	return text
}

// call sends in as JSON, when not nil, and reads the answer into out.
func (c *client) call(ctx context.Context, method, path string, in, out any) error {
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return err
		}
		body = bytes.NewReader(b)
	}
	answer, err := c.send(ctx, c.http, method, path, body)
	if err != nil {
		return err
	}
	defer answer.Close()
	b, err := io.ReadAll(io.LimitReader(answer, 64<<20))
	if err != nil {
		return unreachable(c.URL, err)
	}
	if out == nil || len(b) == 0 {
		return nil
	}
	if err := json.Unmarshal(b, out); err != nil {
		return fmt.Errorf("read answer of %s: %w", path, err)
	}
	return nil
}

// download returns the body of a GET, which may take as long as it takes.
func (c *client) download(ctx context.Context, path string) (io.ReadCloser, error) {
	return c.send(ctx, &http.Client{Transport: c.http.Transport}, http.MethodGet, path, nil)
}

// send returns the body of a good answer; of another, what it says as error.
// Body is JSON, or nil.
func (c *client) send(ctx context.Context, with *http.Client, method, path string, body io.Reader) (io.ReadCloser, error) {
	req, err := http.NewRequestWithContext(ctx, method, c.URL+path, body)
	if err != nil {
		return nil, err
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	if c.Token != "" {
		req.Header.Set("Authorization", "Bearer "+c.Token)
	}
	resp, err := with.Do(req)
	if err != nil {
		return nil, unreachable(c.URL, err)
	}
	if resp.StatusCode < 300 {
		return resp.Body, nil
	}
	defer resp.Body.Close()
	b, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<20)) // what came is enough
	return nil, c.refusal(resp.StatusCode, b)
}

func unreachable(server string, err error) error {
	var unknown x509.UnknownAuthorityError
	var name x509.HostnameError
	var other otherKey
	switch {
	case errors.As(err, &other):
		return other
	case errors.As(err, &unknown):
		return fmt.Errorf("the certificate of %s is of an unknown authority; log in with --ca FILE or --pin (see remotegpu login --help)", server)
	case errors.As(err, &name):
		return fmt.Errorf("the certificate of %s is for another name: %w", server, name)
	}
	var u *url.Error
	if errors.As(err, &u) {
		err = u.Err
	}
	return fmt.Errorf("cannot reach %s: %w; check the address, your network and proxy settings", server, err)
}

// in returns the path of something in the profile's workspace.
func (c *client) in(parts ...string) string { return inWorkspace(c.Workspace, parts) }

func inWorkspace(ws string, parts []string) string {
	path := "/api/v1/workspaces/" + url.PathEscape(ws)
	for _, p := range parts {
		path += "/" + url.PathEscape(p)
	}
	return path
}

// environment returns the path of an environment, NAME, NAME.WORKSPACE or an
// id, or of something of it.
func (c *client) environment(env string, parts ...string) string {
	name, ws := c.whose(env)
	return inWorkspace(ws, append([]string{"environments", name}, parts...))
}

// whose splits what a person calls an environment.
func (c *client) whose(env string) (name, ws string) {
	if name, ws, ok := strings.Cut(env, "."); ok {
		return name, ws
	}
	return env, c.Workspace
}

// qualified adds the workspace to a bare name, for the gateway.
func (c *client) qualified(env string) string {
	name, ws := c.whose(env)
	if strings.HasPrefix(name, "env_") || ws == "" {
		return name
	}
	return name + "." + ws
}
