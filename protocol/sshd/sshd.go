// Package sshd is the server's end of SSH: what a client asks for becomes
// streams.
//
// It owns the channels and requests of a connection that has authenticated:
// sessions, forwards both ways, agent forwarding. Who may have a stream and
// where it leads is Config.Open's business. Its invariant: a connection reaches
// nothing but what Open gives it, and no channel holds up another.
//
//	session ─────────────────────► StreamSession, frames both ways
//	direct-tcpip, -streamlocal ──► StreamDial, bytes
//	tcpip-forward, agent, … ─────► StreamListen; who comes there: StreamAccept, and a channel to the client
package sshd

import (
	"context"
	"io"
	"log/slog"

	"golang.org/x/crypto/ssh"
	"golang.org/x/sys/cpu"

	"github.com/remotegpu/remotegpu/protocol"
)

// Stream is bytes with half-close: a tunnel.Conn or a socket of the helper.
type Stream interface {
	io.ReadWriteCloser
	CloseWrite() error
}

// Ahead is a stream that may carry package ahead's SFTP: nobody on the way has
// to see each message.
type Ahead interface{ ReadsAhead() }

// Ended is the error of a stream that was ended on purpose.
type Ended struct{ Sentence string } // why, for the person

func (e *Ended) Error() string { return e.Sentence }

// Request is a stream that a client wants.
type Request struct {
	Kind    string // one of protocol's kinds of stream
	Target  *protocol.Target
	Session *protocol.SessionOpen // with StreamSession: what is going to run
	Say     func(line string)     // tells the person what takes so long; never nil
}

// Config is what differs between the places where SSH ends.
type Config struct {
	// Open opens a stream, or says why not. listens is where a StreamListen
	// listens.
	Open     func(ctx context.Context, r Request) (s Stream, listens string, err error)
	Text     func(err error) string // err as one sentence for the person
	Greeting string                 // one line for a person at a terminal; empty: none
	Log      *slog.Logger
}

// Conn is a connection that has authenticated.
type Conn struct {
	*ssh.ServerConn
	Channels <-chan ssh.NewChannel
	Requests <-chan *ssh.Request
}

// MaxChannels is how many channels a client may have open at a time: sessions
// and connections through forwards.
const MaxChannels = 128

// ServerConfig returns what every SSH server of ours has in common.
func ServerConfig() *ssh.ServerConfig {
	cfg := &ssh.ServerConfig{ServerVersion: version, MaxAuthTries: 8}
	safe := ssh.SupportedAlgorithms() // the library's defaults still have SHA-1, for old clients
	cfg.KeyExchanges, cfg.MACs = safe.KeyExchanges, safe.MACs
	if cpu.X86.HasAES && cpu.X86.HasPCLMULQDQ || cpu.ARM64.HasAES && cpu.ARM64.HasPMULL {
		// The client's order counts, and OpenSSH's begins with ChaCha20, which is
		// several times slower than AES by such a CPU.
		cfg.Ciphers = []string{ssh.CipherAES128GCM, ssh.CipherAES256GCM, ssh.CipherAES128CTR, ssh.CipherAES192CTR, ssh.CipherAES256CTR}
	}
	return cfg
}

// server is one connection.
type server struct {
	Config
	*listeners
	conn Conn
	busy chan struct{} // one per channel
}

// Serve serves c until it ends.
func Serve(ctx context.Context, c Conn, cfg Config) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	s := &server{Config: cfg, conn: c, busy: make(chan struct{}, MaxChannels), listeners: newListeners()}
	go s.keepAlive(ctx)
	go s.serveRequests(ctx, c.Requests)
	for nc := range c.Channels {
		select {
		case s.busy <- struct{}{}:
		default:
			_ = nc.Reject(ssh.ResourceShortage, tooMany) // the client may be gone
			continue
		}
		go func() {
			defer func() { <-s.busy }()
			s.serveChannel(ctx, nc)
		}()
	}
}

func (s *server) serveChannel(ctx context.Context, nc ssh.NewChannel) {
	switch nc.ChannelType() {
	case "session":
		s.serveSession(ctx, nc)
	case "direct-tcpip":
		t, ok := parseDirectTCP(nc.ExtraData())
		s.serveDial(ctx, nc, t, ok)
	case "direct-streamlocal@openssh.com":
		t, ok := parseDirectUnix(nc.ExtraData())
		s.serveDial(ctx, nc, t, ok)
	default:
		_ = nc.Reject(ssh.UnknownChannelType, "channels of type "+nc.ChannelType()+" are not served here") // as above
	}
}
