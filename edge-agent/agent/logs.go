package agent

import (
	"bufio"
	"context"
	"io"
	"math"
	"slices"

	"github.com/remotegpu/remotegpu/edge-agent/ctr/logs"
	"github.com/remotegpu/remotegpu/protocol"
	"github.com/remotegpu/remotegpu/protocol/tunnel"
)

// logReader is ctr.Runtime.ReadLog.
type logReader func(ctx context.Context, workload string, tail int, follow bool, each func(logs.Line) error) error

// serveLogs sends what a workload's command has written. Only the workloads of
// the document have a log: the header's id becomes a path.
func (p *parts) serveLogs(ctx context.Context, c *tunnel.Conn, h protocol.StreamHeader) {
	reply := protocol.StreamReply{Version: protocol.Version}
	d, _ := p.store.Desired()
	if d == nil || !slices.ContainsFunc(d.Workloads, func(w protocol.Workload) bool { return w.ID == h.Workload }) {
		reply.Code, reply.Message = protocol.ReplyNotFound, "There is no such environment on this host any more, so its log is gone."
	} else if leave, no := p.relay.Enter(h.Workload); no != nil {
		reply.Code, reply.Message = no.Code, no.Message
	} else {
		defer leave()
	}
	if err := tunnel.Reply(c, reply); err != nil || reply.Code != "" {
		c.Close()
		return
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() { // nothing comes; the end of reading is the reader's end
		defer cancel()
		_, _ = io.Copy(io.Discard, c)
	}()
	tail, follow := math.MaxInt32, false
	if h.Logs != nil {
		tail, follow = int(min(h.Logs.Tail, math.MaxInt32)), h.Logs.Follow
	}
	if err := p.writeLog(ctx, c, h.Workload, tail, follow); err != nil {
		p.cfg.Log.Info("log not sent", "env", h.Workload, "err", err)
		c.CloseWithError(err)
		return
	}
	c.Close()
}

// tenant is the workspace of a workload.
func (p *parts) tenant(workload string) string {
	d, _ := p.store.Desired()
	if d != nil {
		for i := range d.Workloads {
			if d.Workloads[i].ID == workload {
				return d.Workloads[i].Workspace
			}
		}
	}
	return workload
}

func (p *parts) writeLog(ctx context.Context, w io.Writer, workload string, tail int, follow bool) error {
	out := bufio.NewWriterSize(w, 32<<10)
	err := p.logs(ctx, workload, tail, follow, func(l logs.Line) error {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		out.Write(l.Text) // Flush returns its error
		if !l.Part {
			out.WriteByte('\n')
		}
		if follow {
			return out.Flush()
		}
		return nil
	})
	if err != nil {
		return err
	}
	return out.Flush()
}
