package access

import (
	"context"
	"math"
	"time"

	"github.com/remotegpu/remotegpu/control/audit"
	"github.com/remotegpu/remotegpu/control/auth"
	"github.com/remotegpu/remotegpu/control/environment"
	"github.com/remotegpu/remotegpu/protocol"
	"github.com/remotegpu/remotegpu/protocol/tunnel"
)

// noteEnd waits for the end of a stream and writes how long it was and how much
// it carried.
func (s *Service) noteEnd(c auth.Caller, env environment.Environment, h protocol.StreamHeader, conn *tunnel.Conn) {
	began := time.Now()
	<-conn.Closed()
	e := audit.Ended{Stream: h.ID, Kind: h.Kind, Seconds: math.Round(time.Since(began).Seconds()*1000) / 1000}
	e.Out, e.In = conn.Moved()
	if h.Target != nil && h.Kind != protocol.StreamAccept { // whose address is a secret until it is taken
		e.Target = h.Target.Network + ":" + h.Target.Address
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	action := auth.EnvironmentAccess
	if h.Workload == "" {
		action = auth.HostAccess
	}
	if err := audit.Record(ctx, s.pool, c, action, env.ID, env.Workspace, e); err != nil {
		s.log.Warn("end of a stream is not in the audit log", "stream", h.ID, "env", env.ID, "user", c.ID, "err", err)
	}
}
