package access

import (
	"bufio"
	"context"
	"fmt"

	"github.com/remotegpu/remotegpu/control/auth"
	"github.com/remotegpu/remotegpu/control/environment"
	"github.com/remotegpu/remotegpu/control/errs"
	"github.com/remotegpu/remotegpu/protocol"
)

// maxExecOutput is what Exec keeps of an output, in bytes.
const maxExecOutput = 64 << 10

// Exec runs a line of ours by the shell of a running environment, for a caller
// who may have a shell there, and returns what it wrote to standard output and
// its exit status.
func (s *Service) Exec(ctx context.Context, c auth.Caller, env environment.Environment, line string) (out string, code int, err error) {
	if err := c.Require(auth.EnvironmentAccess, env.Workspace); err != nil {
		return "", 0, err
	}
	if env.Phase != protocol.PhaseRunning {
		return "", 0, errs.Ef(errs.Conflict, "Environment %s is %s. %s", env.Name, env.Phase, env.Advice())
	}
	conn, err := s.open(ctx, c, env, protocol.StreamHeader{Kind: protocol.StreamSession})
	if err != nil {
		return "", 0, err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	open := protocol.SessionOpen{Version: protocol.Version, Command: line}
	if err := protocol.WriteDocument(conn, protocol.FrameOpen, open); err != nil {
		return "", 0, fmt.Errorf("start a line in the environment: %w", err)
	}
	if err := protocol.WriteFrame(conn, protocol.FrameEOF, nil); err != nil {
		return "", 0, fmt.Errorf("start a line in the environment: %w", err)
	}
	return readExec(protocol.NewFrameReader(bufio.NewReader(conn)))
}

func readExec(frames *protocol.FrameReader) (string, int, error) {
	var out []byte
	for {
		kind, payload, err := frames.Next()
		if err != nil {
			return "", 0, errs.E(errs.Unavailable, "The connection to the environment was lost; try again.", err)
		}
		switch kind {
		case protocol.FrameStdout:
			out = append(out, payload[:min(len(payload), maxExecOutput-len(out))]...)
		case protocol.FrameExit:
			var exit protocol.SessionExit
			if err := protocol.Unmarshal(payload, &exit); err != nil {
				return "", 0, fmt.Errorf("read the end of a line: %w", err)
			}
			if exit.Message != "" {
				return "", exit.Code, errs.E(errs.Conflict, exit.Message)
			}
			return string(out), exit.Code, nil
		}
	}
}
