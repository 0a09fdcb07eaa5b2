// Package network gives every workload a network of its own.
//
// It owns one bridge, one /30 and one network namespace per workload, made by
// the standard CNI plugins, and our nftables table that isolates them. Its
// invariant: from a workload nothing reaches the host itself, another workload
// or a cloud's metadata address, and nothing reaches a workload but answers.
//
//	container eth0 ── rg-N (bridge, .1 of the /30) ── masquerade ── the world
//
// The bridge plugin turns net.ipv4.ip_forward on. The firewall plugin accepts
// our traffic in iptables' FORWARD chain, which Docker sets to DROP.
package network

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"

	"github.com/containerd/go-cni"
	"github.com/vishvananda/netlink"
)

// Config is what a Network needs; all but Log is required.
type Config struct {
	DataDir      string       // network.json: who has which slot; outlives a reboot
	RunDir       string       // namespaces and leases; ends with a reboot
	BinDirs      []string     // of CNI plugins; those that exist are used
	Subnet       netip.Prefix // IPv4; cut into /30
	BridgePrefix string       // at most 8 bytes
	Log          *slog.Logger
}

// Endpoint is where a workload is.
type Endpoint struct {
	NetNS   string // path of its network namespace
	Address string // its IPv4 address
}

// Network makes and removes networks. It is safe for concurrent use.
type Network struct {
	cfg Config

	mu    sync.Mutex     // guards slots; held over a whole Attach or Detach
	slots map[string]int // by workload; kept in network.json
}

// New returns a network and puts the isolation in place.
func New(cfg Config) (*Network, error) {
	if len(cfg.BridgePrefix) == 0 || len(cfg.BridgePrefix) > 8 || !cfg.Subnet.Addr().Is4() || cfg.Subnet.Bits() > 30 {
		return nil, fmt.Errorf("network needs an IPv4 subnet of at most /30 and a bridge prefix of 1 to 8 bytes, not %s and %q", cfg.Subnet, cfg.BridgePrefix)
	}
	n := &Network{cfg: cfg, slots: map[string]int{}}
	for _, dir := range []string{cfg.DataDir, n.nsDir()} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, fmt.Errorf("make network folder: %w", err)
		}
	}
	b, err := os.ReadFile(n.slotFile())
	if err == nil {
		err = json.Unmarshal(b, &n.slots)
	}
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		// Addresses may change, nothing else is lost: bridges are found by Detach.
		n.log().Warn("network slots were damaged and are given out anew", "err", err)
		n.slots = map[string]int{}
	}
	return n, n.Ensure()
}

func (n *Network) log() *slog.Logger {
	if n.cfg.Log == nil {
		return slog.New(slog.DiscardHandler)
	}
	return n.cfg.Log
}

func (n *Network) slotFile() string              { return filepath.Join(n.cfg.DataDir, "network.json") }
func (n *Network) nsDir() string                 { return filepath.Join(n.cfg.RunDir, "netns") }
func (n *Network) nsPath(workload string) string { return filepath.Join(n.nsDir(), workload) }
func (n *Network) bridge(slot int) string        { return fmt.Sprintf("%s%d", n.cfg.BridgePrefix, slot) }

// Attach returns a workload's network, making what is missing of it.
func (n *Network) Attach(ctx context.Context, workload string) (Endpoint, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if err := n.Ensure(); err != nil {
		return Endpoint{}, err
	}
	slot, err := n.slot(workload)
	if err != nil {
		return Endpoint{}, err
	}
	path := n.nsPath(workload)
	if address, err := os.ReadFile(path + ".address"); err == nil && isNamespace(path) {
		return Endpoint{path, string(address)}, nil
	}
	plugins, err := n.plugins(slot)
	if err != nil {
		return Endpoint{}, err
	}
	if err := n.clear(ctx, plugins, workload); err != nil { // what an earlier try left
		return Endpoint{}, err
	}
	if err := makeNamespace(path); err != nil {
		return Endpoint{}, err
	}
	result, err := plugins.Setup(ctx, workload, path)
	if err != nil {
		return Endpoint{}, fmt.Errorf("set up network of %s: %w", workload, err)
	}
	eth := result.Interfaces["eth0"]
	if eth == nil || len(eth.IPConfigs) == 0 {
		return Endpoint{}, fmt.Errorf("set up network of %s: the plugins gave no address", workload)
	}
	e := Endpoint{path, eth.IPConfigs[0].IP.String()}
	// Written last: it says that all of the above has happened.
	if err := os.WriteFile(path+".address", []byte(e.Address), 0o600); err != nil {
		return Endpoint{}, fmt.Errorf("note address of %s: %w", workload, err)
	}
	return e, nil
}

// Detach removes a workload's network; one that is not there is no error.
func (n *Network) Detach(ctx context.Context, workload string) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	slot, ok := n.slots[workload]
	if !ok {
		return nil
	}
	plugins, err := n.plugins(slot)
	if err != nil {
		return err
	}
	if err := n.clear(ctx, plugins, workload); err != nil {
		return err
	}
	if link, err := netlink.LinkByName(n.bridge(slot)); err == nil {
		if err := netlink.LinkDel(link); err != nil {
			return fmt.Errorf("remove bridge %s: %w", n.bridge(slot), err)
		}
	}
	delete(n.slots, workload)
	return n.keep()
}

// clear undoes an Attach, wherever it stopped.
func (n *Network) clear(ctx context.Context, plugins cni.CNI, workload string) error {
	path := n.nsPath(workload)
	_ = os.Remove(path + ".address") // mostly not there
	target := path
	if !isNamespace(path) {
		target = "" // as after a reboot: the plugins free what they know by name
	}
	if err := plugins.Remove(ctx, workload, target); err != nil && target != "" {
		return fmt.Errorf("take down network of %s: %w", workload, err)
	}
	return removeNamespace(path)
}

// List returns the workloads that have a network.
func (n *Network) List() ([]string, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	all := make([]string, 0, len(n.slots))
	for workload := range n.slots {
		all = append(all, workload)
	}
	slices.Sort(all)
	return all, nil
}

// slot returns a workload's slot, giving it the lowest free one when it has
// none. It needs mu.
func (n *Network) slot(workload string) (int, error) {
	if s, ok := n.slots[workload]; ok {
		return s, nil
	}
	taken := map[int]bool{}
	for _, s := range n.slots {
		taken[s] = true
	}
	for s := range 1 << (30 - n.cfg.Subnet.Bits()) {
		if !taken[s] {
			n.slots[workload] = s
			return s, n.keep()
		}
	}
	return 0, fmt.Errorf("all networks of %s are taken; give the agent a larger --subnet", n.cfg.Subnet)
}

// keep writes the slots down. It needs mu.
func (n *Network) keep() error {
	b, err := json.Marshal(n.slots)
	if err != nil {
		return err
	}
	tmp := n.slotFile() + ".new"
	if err := os.WriteFile(tmp, b, 0o600); err != nil {
		return fmt.Errorf("keep network slots: %w", err)
	}
	return os.Rename(tmp, n.slotFile())
}

// subnet returns the /30 of a slot.
func (n *Network) subnet(slot int) netip.Prefix {
	a := n.cfg.Subnet.Masked().Addr().As4()
	v := uint32(a[0])<<24 | uint32(a[1])<<16 | uint32(a[2])<<8 | uint32(a[3])
	v += uint32(slot) * 4
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{byte(v >> 24), byte(v >> 16), byte(v >> 8), byte(v)}), 30)
}

// plugins returns the CNI chain of a slot.
func (n *Network) plugins(slot int) (cni.CNI, error) {
	type m = map[string]any
	chain := []m{{
		"type": "bridge", "bridge": n.bridge(slot), "isGateway": true, "ipMasq": false,
		"ipam": m{
			"type": "host-local", "dataDir": filepath.Join(n.cfg.RunDir, "ipam"),
			"ranges": [][]m{{{"subnet": n.subnet(slot).String()}}}, "routes": []m{{"dst": "0.0.0.0/0"}},
		},
	}}
	if _, err := exec.LookPath("iptables"); err == nil {
		chain = append(chain, m{"type": "firewall", "backend": "iptables"})
	}
	conf, err := json.Marshal(m{"cniVersion": "0.4.0", "name": n.bridge(slot), "plugins": chain})
	if err != nil {
		return nil, err
	}
	plugins, err := cni.New(cni.WithPluginDir(n.cfg.BinDirs), cni.WithInterfacePrefix("eth"), cni.WithMinNetworkCount(1), cni.WithConfListBytes(conf))
	if err != nil {
		return nil, fmt.Errorf("load CNI plugins: %w", err)
	}
	return plugins, nil
}

// RemoveAll removes every network and the isolation, as an uninstall does.
func (n *Network) RemoveAll(ctx context.Context) error {
	all, err := n.List()
	if err != nil {
		return err
	}
	var failed []error
	for _, workload := range all {
		failed = append(failed, n.Detach(ctx, workload))
	}
	return errors.Join(append(failed, n.removeTable())...)
}
