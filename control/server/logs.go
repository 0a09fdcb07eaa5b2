package server

import (
	"context"
	"errors"
	"io"
	"time"

	"github.com/remotegpu/remotegpu/control/access"
	"github.com/remotegpu/remotegpu/control/auth"
	"github.com/remotegpu/remotegpu/control/errs"
	"github.com/remotegpu/remotegpu/protocol"
	"github.com/remotegpu/remotegpu/protocol/tunnel"
)

// hostLogs reads what a workload's command has written on its host.
func (s *Server) hostLogs(ctx context.Context, host, workload string, tail int, follow bool) (io.ReadCloser, error) {
	opening, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	conn, err := s.hub.Open(opening, host, protocol.StreamHeader{
		Version: protocol.Version, ID: protocol.NewID(protocol.PrefixStream), Kind: protocol.StreamLogs, Workload: workload,
		User: auth.From(ctx).ID, Logs: &protocol.LogsRequest{Tail: uint32(tail), Follow: follow},
	})
	var refused *tunnel.Refused
	switch {
	case errors.Is(err, tunnel.ErrOffline):
		return nil, errs.E(errs.Unavailable, "The host is offline, and logs lie on the host; try again when it is back (remotegpu host ls).", err)
	case errors.Is(err, tunnel.ErrLimit):
		return nil, access.TooMuch(err)
	case errors.As(err, &refused) && refused.Code == protocol.ReplyNotFound:
		return nil, errs.E(errs.NotFound, refused.Message, err)
	case errors.As(err, &refused):
		return nil, errs.E(errs.Unavailable, "The host says: "+refused.Message, err)
	case err != nil:
		return nil, errs.E(errs.Unavailable, "The host did not answer in time; try again.", err)
	}
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	remove := s.access.Watch(auth.From(ctx), func(c auth.Caller) error {
		_, err := s.envs.Find(ctx, c, workload)
		return err
	}, func(error) { conn.Close() })
	return logStream{conn, func() { stop(); remove() }}, nil
}

// logStream ends with the request that reads it, and with the right to read.
type logStream struct {
	*tunnel.Conn
	stop func()
}

func (l logStream) Close() error {
	l.stop()
	return l.Conn.Close()
}
