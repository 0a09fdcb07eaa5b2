package server

import (
	"context"
	"errors"
	"time"
)

// errStopping is why what may last ends.
var errStopping = errors.New("the server is stopping")

// drained returns a context that ends some time after ctx: when nobody uses
// what would end with this server, or Config.Drain is over. Sessions that
// survive are not waited for.
func (s *Server) drained(ctx context.Context) (context.Context, context.CancelFunc) {
	serving, stop := context.WithCancelCause(context.WithoutCancel(ctx))
	context.AfterFunc(ctx, func() {
		defer stop(errStopping)
		s.draining.Store(true) // load balancers send nobody here any more
		if busy := s.busy(); busy > 0 && s.cfg.Drain > 0 {
			s.log.Info("stopping; waiting for what is under way", "streams", busy, "at_most", s.cfg.Drain.String())
		}
		end := time.Now().Add(s.cfg.Drain)
		for s.busy() > 0 && time.Now().Before(end) && serving.Err() == nil {
			time.Sleep(50 * time.Millisecond)
		}
	})
	return serving, func() { stop(errStopping) }
}

// busy is how many streams would end with this server; what passes through to
// other replicas may survive it, but that is not seen here.
func (s *Server) busy() int { return s.hub.Busy() + int(s.hops.open.Load()) }
