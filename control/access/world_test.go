package access

import (
	"bufio"
	"context"
	"crypto/ed25519"
	"encoding/pem"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/remotegpu/remotegpu/control/auth"
	"github.com/remotegpu/remotegpu/control/environment"
	"github.com/remotegpu/remotegpu/control/errs"
	"github.com/remotegpu/remotegpu/control/pg"
	"github.com/remotegpu/remotegpu/control/pgtest"
	"github.com/remotegpu/remotegpu/control/web"
	"github.com/remotegpu/remotegpu/control/workspace"
	"github.com/remotegpu/remotegpu/protocol"
	"github.com/remotegpu/remotegpu/protocol/tunnel"
)

func TestMain(m *testing.M) { pgtest.Main(m) }

// world is a gateway with one agent, whose containers are play, and one user
// with a key.
type world struct {
	*Service
	t       *testing.T
	pool    *pg.Pool
	addr    string // of the SSH port
	url     string // of the HTTPS port, without TLS: where people are
	hostURL string // the same, where the agent dials
	user    auth.Caller
	key     ed25519.PrivateKey
	rights  atomic.Pointer[auth.Caller] // of the user from now on; nil: as in user
	online  atomic.Bool
	agent   *tunnel.Pool
	leave   func()       // ends the agent
	sent    atomic.Int64 // bytes that "flood" has written
	files   bool         // SFTP is served, by a real server; set before use
	held    holder
}

const (
	hostID  = "host_a"
	wsID    = "ws_lab"
	noToken = "none"
)

// newWorld lets change set what the gateway reads from its start on.
func newWorld(t *testing.T, change ...func(*Service)) *world {
	t.Helper()
	w := &world{t: t, pool: pgtest.New(t), key: newKey(t)}
	w.held.program = w.runProgram
	w.user = auth.Caller{Kind: auth.KindUser, ID: "usr_a", Name: "a@example.org", Roles: map[string]auth.Role{wsID: auth.Member}}
	log := slog.New(slog.DiscardHandler)
	hub := tunnel.NewHub(tunnel.HubConfig{Ask: w.ask, Online: func(string) bool { return w.online.Load() }, Log: log})
	t.Cleanup(hub.Close)
	var err error
	w.Service, err = New(w.pool, Config{HostKey: newKey(t), HostCA: newKey(t), Address: "gpu.example.org:2222", ByKey: w.byKey, Find: w.find, Workspace: w.workspace, Get: w.get, Now: w.now, Hub: hub, Log: log})
	if err != nil {
		t.Fatal(err)
	}
	for _, fn := range change {
		fn(w.Service)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	w.addr = l.Addr().String()
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(cancel)
	go w.Serve(ctx, l)
	api := web.New("test", log)
	w.Routes(api)
	srv := httptest.NewServer(api.Handler(w.bearer, false))
	t.Cleanup(srv.Close)
	w.url = "ws" + strings.TrimPrefix(srv.URL, "http")
	w.hostURL = w.url
	w.agent = tunnel.NewPool(tunnel.PoolConfig{Dial: w.dialTunnel, Serve: w.serveStream, Log: log})
	w.online.Store(true)
	agentCtx, stopAgent := context.WithCancel(ctx)
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		_ = w.agent.Run(agentCtx)
	}()
	w.leave = func() {
		w.online.Store(false)
		stopAgent()
		<-gone
		hub.Drop(hostID)
	}
	return w
}

// known puts the user and the environments into the database, where somebody
// refers to them.
func (w *world) known() {
	w.t.Helper()
	for _, sql := range []string{
		`insert into users (id, email, name, password_hash, admin) values ('usr_a', 'a@example.org', '', '', false)`,
		`insert into workspaces (id, name) values ('ws_lab', 'lab')`,
		`insert into hosts (id, name, public_key, state) values ('host_a', 'host', '\x01', 'active')`,
		`insert into environments (id, workspace_id, name, host_id, want, phase, image, owner_id, resources, restart, document_bytes)
			select 'env_' || name, 'ws_lab', name, 'host_a', 'running', 'running', 'image', 'usr_a', '{}', 'always', 1 from unnest(array['box', 'second']) name`,
	} {
		if _, err := w.pool.Exec(w.t.Context(), sql); err != nil {
			w.t.Fatal(err)
		}
	}
}

func newKey(t *testing.T) ed25519.PrivateKey {
	t.Helper()
	_, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func (w *world) ask(_ context.Context, _ string, d protocol.Dial) error {
	w.agent.Request(d)
	return nil
}

func (w *world) bearer(r *http.Request) (auth.Caller, error) {
	switch r.Header.Get("Authorization") {
	case "Bearer " + hostID:
		return auth.Caller{Kind: auth.KindHost, ID: hostID}, nil
	case "Bearer user":
		return w.now(r.Context(), w.user)
	}
	return auth.Caller{}, nil
}

func (w *world) dialTunnel(ctx context.Context, token string) (*tunnel.Conn, error) {
	h := http.Header{"Authorization": {"Bearer " + hostID}}
	if token != "" {
		h.Set(protocol.StreamTokenHeader, token)
	}
	return tunnel.Dial(ctx, tunnel.DialConfig{URL: w.hostURL + protocol.TunnelPath, Header: h})
}

func (w *world) byKey(_ context.Context, key ssh.PublicKey) (auth.Caller, error) {
	own, err := ssh.NewPublicKey(w.key.Public())
	if err != nil || string(own.Marshal()) != string(key.Marshal()) {
		return auth.Caller{}, errs.E(errs.Unauthenticated, "This SSH key is not registered; add it with: remotegpu key add FILE.pub")
	}
	return w.user, nil
}

func (w *world) workspace(_ context.Context, _ auth.Caller, id string) (workspace.Workspace, error) {
	return workspace.Workspace{ID: id, Name: strings.TrimPrefix(id, "ws_")}, nil
}

// find knows environments named after their phase.
func (w *world) find(_ context.Context, _ auth.Caller, name string) (environment.Environment, error) {
	name = strings.TrimSuffix(name, ".lab")
	e := environment.Environment{ID: "env_" + name, Name: name, Workspace: wsID, Host: hostID, Phase: name}
	switch name {
	case "box":
		e.Phase = protocol.PhaseRunning
	case "foreign":
		e.Phase, e.Workspace = protocol.PhaseRunning, "ws_other"
	case protocol.PhaseStopped, protocol.PhaseFailed:
	default:
		return e, errs.E(errs.NotFound, "There is no environment "+name+" that you may use; see: remotegpu env ls")
	}
	return e, nil
}

// serveStream plays the helper in the container.
func (w *world) serveStream(_ context.Context, c *tunnel.Conn, h protocol.StreamHeader) {
	if h.Kind == protocol.StreamSSH {
		w.serveEnd(c, h)
		return
	}
	if h.Kind == protocol.StreamDial {
		answerDial(c, h.Target.Address)
		return
	}
	if tunnel.Reply(c, protocol.StreamReply{}) != nil {
		return
	}
	in := bufio.NewReader(c)
	if first, err := in.Peek(1); err == nil && protocol.FrameType(first[0]) == protocol.FrameOpen {
		w.runProgram(c, protocol.NewFrameReader(in))
		return
	}
	if kind, payload, err := protocol.NewFrameReader(in).Next(); err == nil {
		w.held.serve(c, kind, payload)
	}
}

type programStream interface {
	io.ReadWriter
	CloseWrite() error
}

// runProgram is a session, from its first frame on.
func (w *world) runProgram(c programStream, frames *protocol.FrameReader) {
	kind, payload, err := frames.Next()
	var open protocol.SessionOpen
	if err != nil || kind != protocol.FrameOpen || protocol.Unmarshal(payload, &open) != nil {
		return
	}
	exit := w.program(c, frames, open)
	exit.Version = protocol.Version
	if protocol.WriteDocument(c, protocol.FrameExit, exit) == nil {
		_ = c.CloseWrite()
		_, _ = io.Copy(io.Discard, c) // until the gateway has seen it
	}
}

// answerDial says at most addresses what it is told.
func answerDial(c *tunnel.Conn, address string) {
	if strings.HasSuffix(address, ":1") {
		_ = tunnel.Reply(c, protocol.StreamReply{Code: protocol.ReplyRefused, Message: "Nothing listens on " + address + " in the environment."})
		return
	}
	if tunnel.Reply(c, protocol.StreamReply{}) == nil {
		b, _ := io.ReadAll(c)
		fmt.Fprintf(c, "%s: %s", address, b)
		_ = c.CloseWrite()
	}
}

// program runs one of the few commands that there are.
func (w *world) program(c io.Writer, frames *protocol.FrameReader, open protocol.SessionOpen) (exit protocol.SessionExit) {
	say := func(format string, args ...any) {
		_ = protocol.WriteFrame(c, protocol.FrameStdout, fmt.Appendf(nil, format, args...))
	}
	if w.files && open.Subsystem != "" {
		serveFiles(c, frames)
		return exit
	}
	if open.Subsystem != "" {
		say("serving %s\n", open.Subsystem)
		return exit
	}
	word, rest, _ := strings.Cut(open.Command, " ")
	switch word {
	case "env":
		for _, name := range slices.Sorted(maps.Keys(open.Env)) {
			say("%s=%s\n", name, open.Env[name])
		}
		say("term=%s size=%dx%d\n", open.Term, open.Size.Cols, open.Size.Rows)
	case "exit":
		exit.Code, _ = strconv.Atoi(rest)
	case "err":
		_ = protocol.WriteFrame(c, protocol.FrameStderr, []byte(rest))
	case "flood":
		block := make([]byte, protocol.MaxFrame)
		for protocol.WriteFrame(c, protocol.FrameStdout, block) == nil {
			w.sent.Add(int64(len(block)))
		}
	default: // what comes in goes out, and what happens is said
		return echo(c, frames, say)
	}
	return exit
}

func echo(c io.Writer, frames *protocol.FrameReader, say func(string, ...any)) (exit protocol.SessionExit) {
	say("ready\n")
	for {
		kind, payload, err := frames.Next()
		if err != nil {
			return exit
		}
		switch kind {
		case protocol.FrameStdin:
			_ = protocol.WriteFrame(c, protocol.FrameStdout, payload)
		case protocol.FrameResize:
			var size protocol.WindowSize
			if protocol.Unmarshal(payload, &size) == nil {
				say("resized %dx%d\n", size.Cols, size.Rows)
			}
		case protocol.FrameSignal:
			return protocol.SessionExit{Code: 130, Signal: string(payload)}
		case protocol.FrameEOF:
			return exit
		}
	}
}

// client connects with the user's key.
func (w *world) client(user string, keys ...ed25519.PrivateKey) (*ssh.Client, string, error) {
	w.t.Helper()
	if len(keys) == 0 {
		keys = append(keys, w.key)
	}
	var signers []ssh.Signer
	for _, key := range keys {
		s, err := ssh.NewSignerFromKey(key)
		if err != nil {
			w.t.Fatal(err)
		}
		signers = append(signers, s)
	}
	var banner strings.Builder
	c, err := ssh.Dial("tcp", w.addr, &ssh.ClientConfig{
		User: user, Auth: []ssh.AuthMethod{ssh.PublicKeys(signers...)}, HostKeyCallback: ssh.FixedHostKey(w.hosts.PublicKey()), HostKeyAlgorithms: []string{ssh.KeyAlgoED25519},
		BannerCallback: func(text string) error { banner.WriteString(text); return nil }, Timeout: 20 * time.Second,
	})
	if err == nil {
		w.t.Cleanup(func() { c.Close() })
	}
	return c, banner.String(), err
}

func (w *world) mustClient(user string) *ssh.Client {
	w.t.Helper()
	c, _, err := w.client(user)
	if err != nil {
		w.t.Fatal(err)
	}
	return c
}

// keyFile writes a key as OpenSSH wants it.
func keyFile(t *testing.T, key ed25519.PrivateKey) string {
	t.Helper()
	block, err := ssh.MarshalPrivateKey(key, "")
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "id")
	if err := os.WriteFile(file, pem.EncodeToMemory(block), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}
