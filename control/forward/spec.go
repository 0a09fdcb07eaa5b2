package forward

import (
	"fmt"
	"net"
	"strconv"
	"strings"

	"github.com/remotegpu/remotegpu/protocol"
)

// Spec is what a person asks to be forwarded.
type Spec struct {
	Local  uint16 // port of 127.0.0.1; 0: any that is free
	Target protocol.Target
}

// Parse reads what is typed: PORT, LOCAL:PORT, LOCAL:HOST:PORT, each with /udp
// or not, and LOCAL:/path/of/a/socket.
func Parse(text string) (Spec, error) {
	bad := fmt.Errorf("%q cannot be forwarded: write 8888, 8080:80, 5432:db:5432, 53:53/udp or 9000:/run/app.sock", text)
	if local, path, ok := strings.Cut(text, ":"); ok && strings.HasPrefix(path, "/") {
		port, err := port(local, 0)
		if err != nil || strings.ContainsRune(path, 0) {
			return Spec{}, bad
		}
		return Spec{port, protocol.Target{Network: protocol.NetworkUnix, Address: path}}, nil
	}
	network := protocol.NetworkTCP
	text, proto, named := strings.Cut(text, "/")
	if named {
		network = proto
	}
	if network != protocol.NetworkTCP && network != protocol.NetworkUDP {
		return Spec{}, bad
	}
	local, rest, two := strings.Cut(text, ":")
	if !two {
		rest = local
	}
	from, err := port(local, 0)
	if err != nil {
		return Spec{}, bad
	}
	host := "127.0.0.1"
	if strings.Contains(rest, ":") {
		if host, rest, err = net.SplitHostPort(rest); err != nil || host == "" || strings.ContainsAny(host, "/ \x00") {
			return Spec{}, bad
		}
	}
	to, err := port(rest, 1)
	if err != nil {
		return Spec{}, bad
	}
	return Spec{from, protocol.Target{Network: network, Address: net.JoinHostPort(host, strconv.Itoa(int(to)))}}, nil
}

func port(text string, least uint64) (uint16, error) {
	n, err := strconv.ParseUint(text, 10, 16)
	if err != nil || n < least {
		return 0, fmt.Errorf("no port: %q", text)
	}
	return uint16(n), nil
}

// String writes a spec as Parse reads it.
func (s Spec) String() string {
	if s.Target.Network == protocol.NetworkUnix {
		return fmt.Sprintf("%d:%s", s.Local, s.Target.Address)
	}
	text := fmt.Sprintf("%d:%s", s.Local, strings.TrimPrefix(s.Target.Address, "127.0.0.1:"))
	if s.Target.Network == protocol.NetworkUDP {
		text += "/udp"
	}
	return text
}

// elsewhere is s with a local port that the system chooses.
func (s Spec) elsewhere() string {
	s.Local = 0
	return s.String()
}
