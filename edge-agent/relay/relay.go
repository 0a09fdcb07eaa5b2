// Package relay connects streams of the tunnel with what they are for.
//
// It owns finding the helper of a workload's container and moving bytes; what
// a session is, stands in the helper, and who may have one was decided by the
// control plane. Its invariant: a stream reaches the workload that its header
// names and nothing else on this host, whatever a container puts in its place.
package relay

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/remotegpu/remotegpu/protocol"
)

// Stream is a tunnel.Conn: bytes with half-close.
type Stream interface {
	io.ReadWriteCloser
	CloseWrite() error
	CloseWithError(err error)
}

// Config is what a relay needs.
type Config struct {
	RunDir      string // its w/WORKLOAD is mounted into the container at /.remotegpu/run
	MaxSessions int    // at a time; 0: 512
	Log         *slog.Logger
}

// Relay serves the streams of one host.
type Relay struct {
	cfg  Config
	open atomic.Int32
}

// New returns a relay.
func New(cfg Config) *Relay {
	if cfg.MaxSessions == 0 {
		cfg.MaxSessions = 512
	}
	return &Relay{cfg: cfg}
}

// startWait is how long a container that has just started may take until its
// helper listens.
const startWait = 2 * time.Second

// Serve answers the header h by reply, an empty code meaning open, and moves
// bytes until both sides have said all or one is gone.
func (r *Relay) Serve(ctx context.Context, s Stream, h protocol.StreamHeader, reply func(code, message string) error) {
	defer s.Close()
	if h.Kind != protocol.StreamSession {
		_ = reply(protocol.ReplyUnsupported, "This host's agent cannot do that yet; upgrade it.") // the peer may be gone
		return
	}
	if r.open.Add(1) > int32(r.cfg.MaxSessions) {
		r.open.Add(-1)
		_ = reply(protocol.ReplyLimit, fmt.Sprintf("This host has %d sessions already; close some.", r.cfg.MaxSessions))
		return
	}
	defer r.open.Add(-1)
	conn, code, err := r.connect(ctx, h.Workload)
	if err != nil {
		r.cfg.Log.Info("stream refused", "env", h.Workload, "user", h.User, "stream", h.ID, "err", err)
		_ = reply(code, messages[code])
		return
	}
	defer conn.Close()
	if err := reply("", ""); err != nil {
		return
	}
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	r.cfg.Log.Info("session opened", "env", h.Workload, "user", h.User, "stream", h.ID)
	move(s, conn)
}

var messages = map[string]string{
	protocol.ReplyNotFound:   "This environment is not on this host.",
	protocol.ReplyNotRunning: "The environment's container is not running right now; look at its events.",
	protocol.ReplyInternal:   "The agent could not reach the container; its log tells more.",
}

// connect dials the helper of a workload.
func (r *Relay) connect(ctx context.Context, workload string) (*net.UnixConn, string, error) {
	if workload == "" || filepath.Base(workload) != workload || workload[0] == '.' {
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

// move copies both ways. When the helper has said all, the session is over;
// when the client has, or is gone, the helper hangs up.
func move(s Stream, conn *net.UnixConn) {
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
