package network

import (
	"bufio"
	"bytes"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
)

// resolvers are where a host says how it looks up names. Behind a stub on
// loopback, which a container cannot reach, the second tells what it asks.
var resolvers = []string{"/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"}

// ResolvConf returns a file for workloads at /etc/resolv.conf: the host's own
// nameservers, without those on loopback. Empty when there are none: the
// workload then looks up nothing.
func (n *Network) ResolvConf() string {
	var out bytes.Buffer
	for _, file := range resolvers {
		out.Reset()
		if readResolvers(file, &out) {
			break
		}
	}
	if out.Len() == 0 {
		return ""
	}
	path := filepath.Join(n.cfg.RunDir, "resolv.conf")
	if have, err := os.ReadFile(path); err == nil && bytes.Equal(have, out.Bytes()) {
		return path
	}
	if err := os.WriteFile(path, out.Bytes(), 0o644); err != nil {
		n.log().Warn("write resolv.conf for workloads", "err", err)
		return ""
	}
	return path
}

// readResolvers copies what is usable and reports whether a nameserver was.
func readResolvers(file string, out *bytes.Buffer) bool {
	f, err := os.Open(file)
	if err != nil {
		return false
	}
	defer f.Close()
	found := false
	for in := bufio.NewScanner(f); in.Scan(); {
		fields := strings.Fields(in.Text())
		if len(fields) < 2 {
			continue
		}
		switch fields[0] {
		case "nameserver":
			addr, err := netip.ParseAddr(fields[1])
			if err != nil || addr.IsLoopback() {
				continue
			}
			found = true
		case "search", "options":
		default:
			continue
		}
		out.WriteString(strings.Join(fields, " ") + "\n")
	}
	return found
}
