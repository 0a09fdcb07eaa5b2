package e2e

import (
	"strings"
	"time"
)

// Kinds of IronErrorKind.
const (
	gatewayFailed     = 4
	negotiationFailed = 6
)

// refusals are RDP servers of the host box that want nothing, know nothing or
// say nothing. The page is told which of the two it is, a server's own word or
// ours, and does not wait for long.
func (d *desktopPage) refusals(m *machine) {
	d.t.Helper()
	for _, server := range []struct {
		name, does string
		kind       int // of the client's error
		within     time.Duration
	}{
		{"refuses", `head -c 19 >/dev/null; printf '\003\000\000\023\016\320\000\000\022\064\000\003\000\010\000\005\000\000\000'; exec cat >/dev/null`, negotiationFailed, atOnce}, // HYBRID_REQUIRED_BY_SERVER
		{"is none", `printf 'SSH-2.0-none\r\n'; exec cat >/dev/null`, gatewayFailed, atOnce},
		{"hangs up", `exit`, gatewayFailed, atOnce},
		{"is silent", `exec cat >/dev/null`, gatewayFailed, 30 * time.Second},
	} {
		m.must("printf '%s\\n' '#!/bin/sh' " + quote(server.does) + " >/run/server && chmod 755 /run/server; busybox nc -ll -p 3389 -e /run/server >/dev/null 2>&1 </dev/null & echo $! >/run/server.pid")
		d.open()
		began := time.Now()
		r := d.attempt(d.ticket("hosts/box/rdp", "{}"), args{"username": "lab", "password": "x"})
		took := time.Since(began)
		d.t.Logf("a server that %s: after %v %+v", server.name, took.Round(time.Millisecond), r.Error)
		if r.Error == nil || r.Error.Kind != server.kind || server.kind == gatewayFailed && r.Error.Status != 503 || took > server.within {
			d.t.Errorf("a server that %s: %+v after %v", server.name, r, took)
		}
		m.must("kill $(cat /run/server.pid)")
	}
}

func quote(line string) string { return "'" + strings.ReplaceAll(line, "'", `'\''`) + "'" }
