package access

import (
	"context"
	"errors"
	"io"
	"time"

	"github.com/remotegpu/remotegpu/control/auth"
	"github.com/remotegpu/remotegpu/control/environment"
	"github.com/remotegpu/remotegpu/control/errs"
	"github.com/remotegpu/remotegpu/protocol"
	"github.com/remotegpu/remotegpu/protocol/resume"
	"github.com/remotegpu/remotegpu/protocol/sshd"
	"github.com/remotegpu/remotegpu/protocol/tunnel"
)

// hostKeep is how long a client that we hold waits for a host whose line is
// cut, or whose agent starts anew.
const hostKeep = time.Minute

// lasting opens the stream of a session that goes on over another one when it
// breaks on its way to the host. The program's side is held by its helper; one
// that is older than that gets a stream of which there is one.
func (s *Service) lasting(ctx context.Context, c auth.Caller, env environment.Environment, open *protocol.SessionOpen) (sshd.Stream, error) {
	a := protocol.Attach{
		Version: protocol.Version, Session: protocol.NewID(protocol.PrefixSession), Client: protocol.NewID(protocol.PrefixClient),
		User: c.ID, Name: c.Name, Op: protocol.AttachCreate, Keep: uint32(2 * hostKeep / time.Second), Subsystem: open.Subsystem,
	}
	pipe, err := resume.Dial(ctx, resume.DialConfig{
		Config: resume.Config{Keep: hostKeep},
		Dial: func(ctx context.Context, at resume.Attempt) (io.ReadWriteCloser, error) {
			a := a
			if at.Resume {
				a.Op, a.Received = protocol.AttachResume, at.Received
				if err := s.mayStill(ctx, c, needs(env)); isNo(err) {
					return nil, resume.Final(err)
				}
			}
			return s.openAttached(ctx, c, env, a)
		},
	})
	refused, no := errors.AsType[*resume.Refused](err)
	switch {
	case errors.Is(err, resume.ErrOld):
		return s.open(ctx, c, env, protocol.StreamHeader{Kind: protocol.StreamSession})
	case no:
		return nil, errs.E(errs.Unavailable, refused.Message, err)
	case err != nil:
		return nil, sentence(env, err)
	}
	return lastingStream{pipe}, nil
}

// lastingStream says in words why the other end has closed it.
type lastingStream struct{ *resume.Client }

func (l lastingStream) Read(p []byte) (int, error) {
	n, err := l.Client.Read(p)
	if closed, ok := errors.AsType[*resume.Closed](err); ok && closed.Message != "" {
		err = &sshd.Ended{Sentence: closed.Message}
	}
	return n, err
}

// ReadsAhead says that nobody listens in between.
func (lastingStream) ReadsAhead() {}

// openAttached opens a stream and tells the helper who comes for which session.
func (s *Service) openAttached(ctx context.Context, c auth.Caller, env environment.Environment, a protocol.Attach) (*tunnel.Conn, error) {
	up, err := s.open(ctx, c, env, protocol.StreamHeader{Kind: protocol.StreamSession})
	if err != nil {
		return nil, err
	}
	s.hub.Join(up, a.User+a.Session+a.Client)
	if err := protocol.WriteDocument(up, protocol.FrameAttach, a); err != nil {
		up.Close()
		return nil, gone(env, err)
	}
	return up, nil
}

func gone(env environment.Environment, err error) error {
	return errs.E(errs.Unavailable, "The host of environment "+env.Name+" is gone again; try once more.", err)
}
