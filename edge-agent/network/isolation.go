package network

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"syscall"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

const tableName = "remotegpu"

// metadata is where clouds hand out the host's credentials: most of them, and Alibaba.
var metadata = []netip.Prefix{netip.MustParsePrefix("169.254.0.0/16"), netip.MustParsePrefix("100.100.100.200/32")}

// metadata6 is Amazon's beside them; environments have no IPv6.
var metadata6 = netip.MustParseAddr("fd00:ec2::254")

// IsMetadata reports whether a cloud hands out the host's credentials at ip.
func IsMetadata(ip netip.Addr) bool {
	return ip == metadata6 || slices.ContainsFunc(metadata, func(p netip.Prefix) bool { return p.Contains(ip) })
}

// Ensure puts the isolation in place when it is not there, as after somebody's
// "nft flush ruleset". It is one transaction: there is no moment with half of
// it.
func (n *Network) Ensure() error {
	conn, err := nftables.New()
	if err != nil {
		return fmt.Errorf("open nftables: %w", err)
	}
	there, err := n.complete(conn)
	if err != nil || there {
		return err
	}
	t := table{conn, conn.AddTable(&nftables.Table{Family: nftables.TableFamilyINet, Name: tableName})}
	conn.DelTable(t.Table)
	conn.AddTable(t.Table)
	drop := &expr.Verdict{Kind: expr.VerdictDrop}
	accept := &expr.Verdict{Kind: expr.VerdictAccept}
	fromUs, toUs := n.interfaces(expr.MetaKeyIIFNAME, expr.CmpOpEq), n.interfaces(expr.MetaKeyOIFNAME, expr.CmpOpEq)

	input := t.chain("input", nftables.ChainTypeFilter, nftables.ChainHookInput, -10)
	t.rule(input, fromUs, established(), []expr.Any{accept}) // answers to what the host began
	t.rule(input, fromUs, []expr.Any{drop})

	forward := t.chain("forward", nftables.ChainTypeFilter, nftables.ChainHookForward, -10)
	t.rule(forward, fromUs, toUs, []expr.Any{drop})
	for _, m := range metadata {
		t.rule(forward, fromUs, v4(), address(16, m), []expr.Any{drop})
	}
	t.rule(forward, fromUs, v4(), not(address(12, n.cfg.Subnet)), []expr.Any{drop}) // forged sources
	t.rule(forward, fromUs, v6(), []expr.Any{drop})
	t.rule(forward, toUs, established(), []expr.Any{accept})
	t.rule(forward, toUs, []expr.Any{drop})

	post := t.chain("postrouting", nftables.ChainTypeNAT, nftables.ChainHookPostrouting, 100)
	t.rule(post, v4(), address(12, n.cfg.Subnet), n.interfaces(expr.MetaKeyOIFNAME, expr.CmpOpNeq), []expr.Any{&expr.Masq{}})
	if err := conn.Flush(); err != nil {
		return fmt.Errorf("put isolation in place (nftables): %w", err)
	}
	return nil
}

// complete reports whether all our rules are there.
func (n *Network) complete(conn *nftables.Conn) (bool, error) {
	chains, err := conn.ListChainsOfTableFamily(nftables.TableFamilyINet)
	if err != nil {
		return false, fmt.Errorf("read nftables: %w", err)
	}
	want := map[string]int{"input": 2, "forward": 5 + len(metadata), "postrouting": 1}
	for _, c := range chains {
		if c.Table.Name != tableName {
			continue
		}
		rules, err := conn.GetRules(c.Table, c)
		if err != nil {
			return false, fmt.Errorf("read nftables: %w", err)
		}
		if want[c.Name] == len(rules) {
			delete(want, c.Name)
		}
	}
	return len(want) == 0, nil
}

func (n *Network) removeTable() error {
	conn, err := nftables.New()
	if err != nil {
		return fmt.Errorf("open nftables: %w", err)
	}
	conn.DelTable(&nftables.Table{Family: nftables.TableFamilyINet, Name: tableName})
	if err := conn.Flush(); err != nil && !errors.Is(err, syscall.ENOENT) {
		return fmt.Errorf("remove isolation (nftables): %w", err)
	}
	return nil
}

// table is ours, on the connection that changes it.
type table struct {
	conn *nftables.Conn
	*nftables.Table
}

func (t table) chain(name string, kind nftables.ChainType, hook *nftables.ChainHook, prio nftables.ChainPriority) *nftables.Chain {
	return t.conn.AddChain(&nftables.Chain{Table: t.Table, Name: name, Type: kind, Hooknum: hook, Priority: &prio})
}

func (t table) rule(c *nftables.Chain, parts ...[]expr.Any) {
	t.conn.AddRule(&nftables.Rule{Table: t.Table, Chain: c, Exprs: slices.Concat(parts...)})
}

// interfaces matches names that start with our prefix: comparing fewer bytes
// than a name has is how nftables spells "rg-*".
func (n *Network) interfaces(key expr.MetaKey, op expr.CmpOp) []expr.Any {
	return []expr.Any{&expr.Meta{Key: key, Register: 1}, &expr.Cmp{Op: op, Register: 1, Data: []byte(n.cfg.BridgePrefix)}}
}

func established() []expr.Any {
	mask := binaryutil.NativeEndian.PutUint32(expr.CtStateBitESTABLISHED | expr.CtStateBitRELATED)
	return []expr.Any{
		&expr.Ct{Register: 1, Key: expr.CtKeySTATE},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: mask, Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: make([]byte, 4)},
	}
}

func v4() []expr.Any { return family(unix.NFPROTO_IPV4) }
func v6() []expr.Any { return family(unix.NFPROTO_IPV6) }

func family(proto byte) []expr.Any {
	return []expr.Any{&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1}, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{proto}}}
}

// address matches an IPv4 address of the header: its source at offset 12, its
// destination at 16 (RFC 791).
func address(offset uint32, p netip.Prefix) []expr.Any {
	mask := make([]byte, 4)
	for i := range p.Bits() {
		mask[i/8] |= 0x80 >> (i % 8)
	}
	net := p.Masked().Addr().As4()
	return []expr.Any{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: 4},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: mask, Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: net[:]},
	}
}

// not turns the last comparison of a match around.
func not(match []expr.Any) []expr.Any {
	match[len(match)-1].(*expr.Cmp).Op = expr.CmpOpNeq
	return match
}
