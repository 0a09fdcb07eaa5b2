package relay

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"time"

	"github.com/remotegpu/remotegpu/edge-agent/rdp"
	"github.com/remotegpu/remotegpu/protocol"
)

// serveDesktop serves a StreamRDP.
func (r *Relay) serveDesktop(ctx context.Context, s Stream, h protocol.StreamHeader, reply func(protocol.StreamReply) error) {
	log := r.cfg.Log.With("env", h.Workload, "user", h.User, "stream", h.ID, "kind", h.Kind)
	conn, answer, err := r.dialDesktop(ctx, h)
	if err != nil {
		log.Info("stream refused", "err", err)
		_ = reply(answer) // the peer may be gone
		return
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	if h.RDP == nil {
		if reply(answer) == nil {
			log.Info("stream opened")
			move(s, conn)
		}
		return
	}
	session, said, err := rdp.Open(conn, *h.RDP)
	if err != nil {
		log.Info("stream refused", "err", err)
		_ = reply(protocol.StreamReply{Code: protocol.ReplyRefused, Message: protocol.Cut("The RDP server at " + h.Target.Address + " does not go on: " + err.Error() + ".")}) // as above
		return
	}
	answer.RDP = &said
	if session != nil && h.Workload != "" {
		login, err := r.desktopLogin(ctx, h.Workload)
		if err != nil {
			log.Info("stream refused", "err", err)
			_ = reply(protocol.StreamReply{Code: protocol.ReplyRefused, Message: "The " + err.Error() + "."}) // as above
			return
		}
		session.LogIn(login)
	}
	if reply(answer) != nil || session == nil {
		return
	}
	log.Info("stream opened")
	err = session.Serve(s)
	log.Info("stream ended", "err", err)
}

// dialDesktop connects with the RDP server of a workload or, without one, of
// this host itself, where nothing but the loopback may be reached.
func (r *Relay) dialDesktop(ctx context.Context, h protocol.StreamHeader) (halfCloser, protocol.StreamReply, error) {
	if h.Target == nil || h.Target.Network != protocol.NetworkTCP {
		return nil, refusal(protocol.ReplyUnsupported), errors.New("no address of an RDP server")
	}
	if h.Workload == "" {
		return dialHost(ctx, h.Target.Address)
	}
	h.Kind = protocol.StreamDial
	conn, answer, err := r.begin(ctx, h)
	if err != nil && answer.Code == protocol.ReplyRefused {
		answer.Message = fmt.Sprintf("Nothing listens on %s in this environment: its image has no RDP server, or it is not up yet. Use the desktop image, or start one there.", h.Target.Address)
	}
	return conn, answer, err
}

func dialHost(ctx context.Context, address string) (halfCloser, protocol.StreamReply, error) {
	at, err := netip.ParseAddrPort(address)
	if err != nil || !at.Addr().IsLoopback() {
		return nil, protocol.StreamReply{Code: protocol.ReplyRefused, Message: "Only the host's own RDP server can be reached."}, fmt.Errorf("address %.80q is not on the loopback", address)
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", address)
	if err != nil {
		why := err.Error()
		if errors.Is(err, syscall.ECONNREFUSED) {
			why = "nothing listens there; turn on Remote Desktop on Windows, or install xrdp on Linux"
		}
		return nil, protocol.StreamReply{Code: protocol.ReplyRefused, Message: protocol.Cut("The host's RDP server at " + address + " cannot be reached: " + why + ".")}, err
	}
	return conn.(*net.TCPConn), protocol.StreamReply{}, nil
}

const loginTimeout = 3 * time.Second

// desktopLogin reads whom the workload's RDP server logs in; an image of
// another make has none, and the client's own count.
func (r *Relay) desktopLogin(ctx context.Context, workload string) (login rdp.Login, err error) {
	conn, _, err := r.connect(ctx, workload)
	if err != nil {
		return login, nil // as below: the client may know who logs in
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(loginTimeout)) // fails only on a closed socket
	open := protocol.SessionOpen{Version: protocol.Version, Args: []string{"cat", protocol.DesktopCredentials}}
	if protocol.WriteDocument(conn, protocol.FrameOpen, open) != nil || protocol.WriteFrame(conn, protocol.FrameEOF, nil) != nil {
		return login, nil
	}
	var text strings.Builder
	for frames := protocol.NewFrameReader(bufio.NewReader(conn)); text.Len() <= protocol.MaxDesktopCredentials; {
		kind, payload, err := frames.Next()
		if err != nil || kind == protocol.FrameExit {
			break
		}
		if kind == protocol.FrameStdout {
			text.Write(payload)
		}
	}
	login.User, login.Password, err = protocol.ParseDesktopLogin(text.String())
	return login, err
}
