// Package forward listens on this machine for what listens in an environment.
//
// It owns the local listeners and the words that say what is forwarded; how a
// stream to an environment is made is passed in. Its invariant: it listens on
// the loopback address alone, and an end of bytes on one side arrives as an end
// of bytes on the other, never as more than that.
package forward

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"github.com/remotegpu/remotegpu/protocol"
)

// Stream is a connection with half-close: a tunnel.Conn.
type Stream interface {
	net.Conn
	CloseWrite() error
}

// Config is what differs between the uses of a forward.
type Config struct {
	Dial func(ctx context.Context, t protocol.Target) (Stream, error)
	Say  func(line string) // tells the person what went wrong
	Lost func(err error)   // a stream ended that neither end had ended; may be nil
	Idle time.Duration     // a UDP flow that is silent for so long ends; 0: 2 min
}

// Listener is one forward whose local end is open.
type Listener struct {
	Spec
	tcp net.Listener
	udp *net.UDPConn
}

// Listen opens the local ends of all specs, or none.
func Listen(specs []Spec) (all []*Listener, err error) {
	for _, s := range specs {
		l, err := s.listen()
		if err != nil {
			for _, other := range all {
				other.Close()
			}
			return nil, err
		}
		all = append(all, l)
	}
	return all, nil
}

func (s Spec) listen() (*Listener, error) {
	l := &Listener{Spec: s}
	var err error
	if s.Target.Network == protocol.NetworkUDP {
		l.udp, err = net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1), Port: int(s.Local)})
	} else {
		l.tcp, err = net.Listen("tcp4", fmt.Sprintf("127.0.0.1:%d", s.Local))
	}
	if err != nil {
		return nil, fmt.Errorf("port %d of this machine cannot be listened on (%w); choose another, like: %s", s.Local, errors.Unwrap(err), s.elsewhere())
	}
	return l, nil
}

// Local returns the address that programs of this machine connect to.
func (l *Listener) Local() string {
	if l.udp != nil {
		return l.udp.LocalAddr().String()
	}
	return l.tcp.Addr().String()
}

// Close ends listening; connections under way go on.
func (l *Listener) Close() error {
	if l.udp != nil {
		return l.udp.Close()
	}
	return l.tcp.Close()
}

// Serve forwards whoever comes until ctx ends.
func (l *Listener) Serve(ctx context.Context, cfg Config) error {
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()
	var err error
	if l.udp != nil {
		err = l.serveUDP(ctx, cfg)
	} else {
		err = l.serveTCP(ctx, cfg)
	}
	if ctx.Err() != nil {
		return nil
	}
	return err
}

func (l *Listener) serveTCP(ctx context.Context, cfg Config) error {
	for {
		c, err := l.tcp.Accept()
		if err != nil {
			return fmt.Errorf("accept a connection at %s: %w", l.Local(), err)
		}
		go l.connect(ctx, cfg, c.(*net.TCPConn))
	}
}

// connect carries one connection. One that cannot be made is reset, so that
// its program does not take it for an answer without bytes.
func (l *Listener) connect(ctx context.Context, cfg Config, c *net.TCPConn) {
	defer c.Close()
	to, err := cfg.Dial(ctx, l.Target)
	if err != nil {
		if ctx.Err() == nil {
			cfg.Say(fmt.Sprintf("%s: %v", l.Local(), err))
		}
		reset(c) // after the reason, which whoever sees the reset looks for
		return
	}
	defer to.Close()
	stop := context.AfterFunc(ctx, func() { c.Close(); to.Close() })
	defer stop()
	if err := Join(c, to); err != nil && ctx.Err() == nil && cfg.Lost != nil {
		cfg.Lost(err)
	}
}

// Join copies both ways until both ends have said all, or one is gone. It
// returns how far's side broke, and near's is reset then; that near's program
// left is no error.
func Join(near, far Stream) error {
	up, down := &noting{Reader: near}, &noting{Reader: far}
	sent := make(chan error, 1)
	go func() {
		_, err := io.Copy(far, up)
		switch {
		case err == nil:
			_ = far.CloseWrite() // it may be gone
		case up.err != nil: // near is gone: what far still says is for nobody
			far.Close()
			err = nil
		default:
			reset(near)
		}
		sent <- err
	}()
	_, err := io.CopyBuffer(onlyWriter{near}, down, make([]byte, 64<<10))
	switch {
	case err == nil:
		_ = near.CloseWrite() // as above
	case down.err != nil:
		reset(near)
		far.Close()
		err = down.err
	default:
		near.Close()
		far.Close()
		err = nil
	}
	if broke := <-sent; broke != nil {
		return broke
	}
	if errors.Is(err, net.ErrClosed) { // by ourselves
		return nil
	}
	return err
}

// reset ends a connection so that its program does not take it for a clean end.
func reset(c Stream) {
	if tcp, ok := c.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0) // fails only on a closed socket
	}
	c.Close()
}

// noting notes an error of reading, to tell it from one of writing.
type noting struct {
	io.Reader
	err error
}

func (n *noting) Read(p []byte) (int, error) {
	read, err := n.Reader.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		n.err = err
	}
	return read, err
}

// onlyWriter keeps io.Copy from asking near to read: errors of the two sides
// would not be told apart.
type onlyWriter struct{ io.Writer }
