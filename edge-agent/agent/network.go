package agent

import (
	"context"
	"errors"

	"github.com/remotegpu/remotegpu/edge-agent/ctr"
	"github.com/remotegpu/remotegpu/protocol"
	"github.com/remotegpu/remotegpu/protocol/tunnel"
)

var errNoNetwork = errors.New("this build of the agent makes no networks")

// network refuses until package network is here.
func (p *parts) network(context.Context) (ctr.Network, error) {
	return ctr.Network{
		Attach:     func(context.Context, string) (string, string, error) { return "", "", errNoNetwork },
		Detach:     func(context.Context, string) error { return nil },
		List:       func() ([]string, error) { return nil, nil },
		ResolvConf: func() string { return "" },
	}, nil
}

// serveStream refuses until package relay is here.
func (p *parts) serveStream(_ context.Context, c *tunnel.Conn, h protocol.StreamHeader) {
	if err := tunnel.Reply(c, protocol.ReplyUnsupported, "This build of the agent serves no streams."); err != nil {
		p.cfg.Log.Debug("stream not answered", "stream", h.ID, "err", err)
	}
}
