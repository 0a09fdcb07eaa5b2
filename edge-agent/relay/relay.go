// Package relay connects streams of the tunnel with what they are for.
//
// It owns finding the helper of a workload's container and moving bytes; what
// a session is, stands in the helper, and who may have one was decided by the
// control plane. Its invariant: a stream reaches the workload that its header
// names and nothing else on this host, whatever a container puts in its place;
// the host itself only where its owner allows shells on it.
package relay

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/remotegpu/remotegpu/protocol"
)

// Stream is a tunnel.Conn: bytes with half-close.
type Stream interface {
	net.Conn
	CloseWrite() error
	CloseWithError(err error)
	Closed() <-chan struct{} // the stream has ended in both directions
}

// Config is what a relay needs.
type Config struct {
	RunDir      string                       // its w/WORKLOAD is mounted into the container at /.remotegpu/run
	MaxSessions int                          // at a time; 0: 512
	Tenant      func(workload string) string // whose a workload is; nil: each is somebody else's
	HostKey     ed25519.PrivateKey           // of SSH that ends here; nil: it does not
	HostHelper  string                       // the helper, for shells on the host itself; empty: none may be opened
	Log         *slog.Logger
}

// Relay serves the streams of one host.
type Relay struct {
	cfg  Config
	room room

	starting sync.Mutex // held while the host's own helper is looked for or made
}

// New returns a relay.
func New(cfg Config) *Relay {
	if cfg.MaxSessions == 0 {
		cfg.MaxSessions = 512
	}
	return &Relay{cfg: cfg, room: room{max: cfg.MaxSessions, tenant: cfg.Tenant, byTenant: map[string]int{}}}
}

// startWait is how long a container that has just started may take until its
// helper listens.
const startWait = 2 * time.Second

// Serve answers the header h by reply, an empty code meaning open, and moves
// bytes until both sides have said all or one is gone.
func (r *Relay) Serve(ctx context.Context, s Stream, h protocol.StreamHeader, reply func(protocol.StreamReply) error) {
	defer s.Close()
	leave, no := r.Enter(h.Workload)
	if no != nil {
		_ = reply(*no) // the peer may be gone
		return
	}
	defer leave()
	if h.Kind == protocol.StreamSSH {
		if err := r.serveSSH(ctx, s, h, reply); err != nil {
			r.cfg.Log.Info("stream refused", "env", h.Workload, "user", h.User, "stream", h.ID, "kind", h.Kind, "err", err)
		}
		return
	}
	if h.Kind == protocol.StreamRDP {
		r.serveDesktop(ctx, s, h, reply)
		return
	}
	conn, answer, err := r.begin(ctx, h)
	if err != nil {
		r.cfg.Log.Info("stream refused", "env", h.Workload, "user", h.User, "stream", h.ID, "kind", h.Kind, "err", err)
		_ = reply(answer) // as above
		return
	}
	defer conn.Close()
	if err := reply(answer); err != nil {
		return
	}
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	r.cfg.Log.Info("stream opened", "env", h.Workload, "user", h.User, "stream", h.ID, "kind", h.Kind)
	if h.Kind == protocol.StreamSession {
		moveSession(s, conn)
	} else {
		move(s, conn)
	}
}

// Enter counts one more stream of a workload, empty for the host itself, until leave,
// which may be called again; no is what a person is told who cannot have it.
func (r *Relay) Enter(workload string) (leave func(), no *protocol.StreamReply) {
	return r.room.enter(workload)
}

// begin connects with the helper and lets it begin what the header says. With
// an error, the reply is what the person gets.
func (r *Relay) begin(ctx context.Context, h protocol.StreamHeader) (*net.UnixConn, protocol.StreamReply, error) {
	switch h.Kind {
	case protocol.StreamSession, protocol.StreamDial, protocol.StreamListen, protocol.StreamAccept:
	default:
		return nil, refusal(protocol.ReplyUnsupported), fmt.Errorf("unknown kind of stream %.80q", h.Kind)
	}
	conn, code, err := r.connect(ctx, h.Workload)
	if errors.Is(err, errNoHostShell) {
		return nil, protocol.StreamReply{Code: code, Message: "Shells on the host itself are switched off there (--no-host-shell)."}, err
	}
	if err != nil {
		return nil, refusal(code), err
	}
	if h.Kind == protocol.StreamSession {
		return conn, protocol.StreamReply{}, nil
	}
	answer, err := ask(conn, h)
	if err == nil && answer.Code != "" {
		err = errors.New(answer.Message)
	} else if err != nil {
		answer = refusal(protocol.ReplyInternal)
	}
	if err != nil {
		conn.Close()
	}
	return conn, answer, err
}

// askTimeout is longer than the helper's own for a dial.
const askTimeout = 15 * time.Second

// ask hands the header to the helper and returns its reply.
func ask(conn *net.UnixConn, h protocol.StreamHeader) (r protocol.StreamReply, err error) {
	_ = conn.SetDeadline(time.Now().Add(askTimeout)) // fails only on a closed socket
	defer conn.SetDeadline(time.Time{})
	if err := protocol.WriteDocument(conn, protocol.FrameStream, h); err != nil {
		return r, fmt.Errorf("ask the helper: %w", err)
	}
	kind, payload, err := protocol.NewFrameReader(conn).Next()
	if err == nil && kind != protocol.FrameReply {
		err = fmt.Errorf("frame of type %d", kind)
	}
	if err == nil {
		err = protocol.Unmarshal(payload, &r)
	}
	if err != nil {
		return r, fmt.Errorf("read the helper's reply: %w", err)
	}
	return r, nil
}

func refusal(code string) protocol.StreamReply {
	return protocol.StreamReply{Code: code, Message: messages[code]}
}

var messages = map[string]string{
	protocol.ReplyUnsupported: "This host's agent cannot do that yet; upgrade it.",
	protocol.ReplyNotFound:    "This environment has no container on this host now, as while the host starts; look at its events.",
	protocol.ReplyNotRunning:  "The environment's container is not running right now; look at its events.",
	protocol.ReplyInternal:    "The agent could not reach the container; its log tells more.",
}

// connect dials the helper of a workload; without one, of the host itself.
func (r *Relay) connect(ctx context.Context, workload string) (*net.UnixConn, string, error) {
	if workload == "" {
		return r.connectHost(ctx)
	}
	if filepath.Base(workload) != workload || workload[0] == '.' {
		return nil, protocol.ReplyNotFound, fmt.Errorf("workload %.80q is no name", workload)
	}
	dir := filepath.Join(r.cfg.RunDir, "w", workload)
	deadline := time.Now().Add(startWait)
	for {
		if _, err := os.Lstat(dir); err != nil {
			return nil, protocol.ReplyNotFound, err
		}
		conn, err := dial(filepath.Join(dir, "session.sock"))
		if err == nil {
			return conn, "", nil
		}
		starting := errors.Is(err, os.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED)
		if !starting {
			return nil, protocol.ReplyInternal, err
		}
		if time.Now().After(deadline) {
			return nil, protocol.ReplyNotRunning, err
		}
		select {
		case <-ctx.Done():
			return nil, protocol.ReplyNotRunning, ctx.Err()
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// dial connects to the socket at path and to nothing that path may point at:
// the container can write to the folder, and a link there could lead to any
// socket of this host.
func dial(path string) (*net.UnixConn, error) {
	fd, err := unix.Open(path, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, fmt.Errorf("look at %s: %w", path, err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFSOCK {
		return nil, fmt.Errorf("%s is no socket: the container put something else there", path)
	}
	return net.DialUnix("unix", nil, &net.UnixAddr{Name: fmt.Sprintf("/proc/self/fd/%d", fd), Net: "unix"})
}

// lingerFor is how long the client may take to close after the last byte: a
// connection closed with input unread is reset, and that byte could be lost.
const lingerFor = 5 * time.Second

// moveSession copies both ways. When the helper has said all, the session is
// over; when the client has, or is gone, the helper hangs up.
func moveSession(s Stream, conn *net.UnixConn) {
	in := make(chan struct{})
	go func() {
		defer close(in)
		_, _ = io.Copy(conn, s) // however it ended, the helper is told
		_ = conn.CloseWrite()
	}()
	if _, err := io.Copy(s, conn); err != nil {
		s.CloseWithError(errors.New("the container ended the session abruptly"))
		return
	}
	_ = s.CloseWrite() // the client may be gone
	select {
	case <-in:
	case <-time.After(lingerFor):
	}
}

// halfCloser is a TCP or unix connection.
type halfCloser interface {
	net.Conn
	CloseWrite() error
}

// move copies both ways until both have said all, or one is gone.
func move(s Stream, conn halfCloser) {
	in, done := make(chan struct{}), make(chan struct{})
	defer close(done)
	go func() { // a service that says nothing would never notice that nobody listens
		select {
		case <-s.Closed():
			time.AfterFunc(lingerFor, func() { conn.Close() })
		case <-done:
		}
	}()
	go func() {
		defer close(in)
		if _, err := io.Copy(conn, s); err != nil {
			conn.Close() // the client is gone, or the service: both must know
			return
		}
		_ = conn.CloseWrite() // the service may be gone
	}()
	if _, err := io.Copy(s, conn); err != nil {
		s.CloseWithError(errors.New("the service ended the connection abruptly"))
		conn.Close()
	} else {
		_ = s.CloseWrite() // the client may be gone
	}
	<-in
}
