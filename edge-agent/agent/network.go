package agent

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"

	"github.com/remotegpu/remotegpu/edge-agent/ctr"
	"github.com/remotegpu/remotegpu/edge-agent/network"
	"github.com/remotegpu/remotegpu/edge-agent/reconcile"
)

// networks makes the host's networks when they are first needed: a host that
// cannot make any must still be able to say so.
type networks struct {
	cfg network.Config
	log *slog.Logger

	mu   sync.Mutex // guards made
	made *network.Network
}

func newNetworks(cfg Config) (*networks, error) {
	subnet, err := netip.ParsePrefix(cfg.Subnet)
	if err != nil {
		return nil, fmt.Errorf("--subnet %s is no network: it looks like 10.213.0.0/16", cfg.Subnet)
	}
	return &networks{log: cfg.Log, cfg: network.Config{
		DataDir: cfg.DataDir, RunDir: cfg.RunDir, BinDirs: cfg.CNIBin, Subnet: subnet, BridgePrefix: cfg.BridgePrefix, Log: cfg.Log,
	}}, nil
}

func (n *networks) get() (*network.Network, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.made == nil {
		made, err := network.New(n.cfg)
		if err != nil {
			return nil, reconcile.Faultf(err, "the isolation of networks cannot be put in place on this host (%v); check that its kernel has nftables", err)
		}
		n.made = made
	}
	return n.made, nil
}

// forContainers is what package ctr needs of it.
func (n *networks) forContainers() ctr.Network {
	return ctr.Network{
		Attach: func(ctx context.Context, workload string) (netns, address string, err error) {
			made, err := n.get()
			if err != nil {
				return "", "", err
			}
			e, err := made.Attach(ctx, workload)
			return e.NetNS, e.Address, err
		},
		Detach: func(ctx context.Context, workload string) error {
			made, err := n.get()
			if err != nil {
				return err
			}
			return made.Detach(ctx, workload)
		},
		List: func() ([]string, error) {
			made, err := n.get()
			if err != nil {
				n.log.Warn("networks not looked at", "err", err)
				return nil, nil // what runs goes on; Attach says what is wrong
			}
			return made.List()
		},
		ResolvConf: func() string {
			made, err := n.get()
			if err != nil {
				return ""
			}
			return made.ResolvConf()
		},
	}
}

// RemoveNetworks removes every network that the agent has made and the
// isolation around them, for an uninstall; containers are gone by then.
func RemoveNetworks(ctx context.Context, cfg Config) error {
	n, err := newNetworks(cfg)
	if err != nil {
		return err
	}
	made, err := n.get()
	if err != nil {
		return err
	}
	return made.RemoveAll(ctx)
}
