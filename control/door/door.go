// Package door bounds what strangers, and connections that are idle, hold of a
// listener.
//
// It owns how many connections of one network, and of all, may be open whose
// client has not shown yet who it is, and how often they may send something; how
// often somebody may guess is package account's business, and MQTT has limits of
// its own in package broker. It also lets TLS handshakes take turns (Turns) and
// keeps far deadlines without a timer each (Idle). Its invariant: whoever has shown who they are is not counted, so strangers keep
// nobody out but others of their own network.
package door

import (
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// How many requests with a body strangers of one network may send: logins, and
// hosts that join.
const (
	askRate  = 5 // per second, after askBurst
	askBurst = 60
	maxAsks  = 10_000 // networks that are remembered
)

// Door counts the strangers of one listener.
type Door struct {
	name       string
	perNetwork int
	total      int
	log        *slog.Logger

	mu      sync.Mutex // guards what follows
	from    map[netip.Prefix]int
	asks    map[netip.Prefix]*rate.Limiter // forgotten when they are too many
	all     int
	refused int
	told    time.Time
}

// New returns a door without anybody before it.
func New(name string, perNetwork, total int, log *slog.Logger) *Door {
	return &Door{name: name, perNetwork: perNetwork, total: total, log: log, from: map[netip.Prefix]int{}, asks: map[netip.Prefix]*rate.Limiter{}}
}

// Network is what one customer of a provider has: an IPv4 address, or the /64
// of an IPv6 address. Remote may have a port; one that cannot be read is in the
// zero network.
func Network(remote string) netip.Prefix {
	if host, _, err := net.SplitHostPort(remote); err == nil {
		remote = host
	}
	addr, err := netip.ParseAddr(remote)
	if err != nil {
		return netip.Prefix{}
	}
	bits := 32
	if addr = addr.Unmap().WithZone(""); addr.Is6() {
		bits = 64
	}
	network, _ := addr.Prefix(bits) // the bits are in range
	return network
}

// Visit is one connection.
type Visit struct {
	door *Door
	from netip.Prefix
	once sync.Once
}

// Enter counts a connection, or returns nil: it must be closed.
func (d *Door) Enter(remote net.Addr) *Visit {
	from := Network(remote.String())
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.from[from] >= d.perNetwork || d.all >= d.total {
		d.tell(from)
		return nil
	}
	d.from[from]++
	d.all++
	return &Visit{door: d, from: from}
}

// ask counts one more request with a body, or refuses it.
func (v *Visit) ask() bool {
	d := v.door
	d.mu.Lock()
	defer d.mu.Unlock()
	l := d.asks[v.from]
	if l == nil {
		if len(d.asks) >= maxAsks {
			clear(d.asks) // so many networks are one attacker's, whom the number of connections bounds
		}
		l = rate.NewLimiter(askRate, askBurst)
		d.asks[v.from] = l
	}
	if l.Allow() {
		return true
	}
	d.tell(v.from)
	return false
}

// tell logs a refusal, at most once per minute; d.mu is held.
func (d *Door) tell(from netip.Prefix) {
	d.refused++
	if time.Since(d.told) < time.Minute {
		return
	}
	d.log.Warn("connections are refused: too many of their network, or of all, are open and have not logged in; block the network if it goes on",
		"listener", d.name, "network", from.String(), "refused", d.refused, "strangers", d.all)
	d.refused, d.told = 0, time.Now()
}

// Known says that the client has shown who it is, or is gone. It may be called
// more than once, and on nil.
func (v *Visit) Known() {
	if v == nil {
		return
	}
	v.once.Do(func() {
		v.door.mu.Lock()
		defer v.door.mu.Unlock()
		v.door.all--
		if v.door.from[v.from]--; v.door.from[v.from] == 0 {
			delete(v.door.from, v.from)
		}
	})
}
