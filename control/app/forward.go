package app

import (
	"io"
	"net"
	"net/http"
	"path"
	"strconv"

	"github.com/remotegpu/remotegpu/control/auth"
	"github.com/remotegpu/remotegpu/control/errs"
	"github.com/remotegpu/remotegpu/control/web"
	"github.com/remotegpu/remotegpu/protocol"
	"github.com/remotegpu/remotegpu/protocol/tunnel"
)

// target reads where a forward leads.
func target(network, address string) (protocol.Target, error) {
	t := protocol.Target{Network: network, Address: address}
	switch network {
	case protocol.NetworkTCP, protocol.NetworkUDP:
		host, port, err := net.SplitHostPort(address)
		if n, bad := strconv.ParseUint(port, 10, 16); err != nil || bad != nil || n == 0 || host == "" {
			return t, errs.Ef(errs.Invalid, "%.80q is no address in an environment; write it like 127.0.0.1:8888 or db:5432.", address)
		}
	case protocol.NetworkUnix:
		if !path.IsAbs(address) {
			return t, errs.Ef(errs.Invalid, "%.80q is no path of a socket; write it like /run/app.sock.", address)
		}
	default:
		return t, errs.Ef(errs.Invalid, "%.20q is no kind of network; use tcp, udp or unix.", network)
	}
	if err := t.Validate(); err != nil {
		return t, errs.Ef(errs.Invalid, "The address %.80q is too long.", address)
	}
	return t, nil
}

// forward carries one connection of a program to an address in an environment.
func (s *Service) forward(api *web.API, w http.ResponseWriter, r *http.Request) {
	to, visit, err := s.reach(r)
	if err != nil {
		api.Fail(w, r, err)
		return
	}
	defer to.Close()
	defer visit.end()
	from, err := tunnel.Upgrade(w, r)
	if err != nil {
		return // Upgrade has answered
	}
	defer from.Close()
	stop := make(chan struct{})
	defer close(stop)
	go func() {
		select {
		case <-r.Context().Done(): // the server stops: a cut, and no end of bytes
			from.CloseWithError(errStopping)
			to.Close()
		case <-stop:
		}
	}()
	bridge(from, to, visit)
}

var errStopping = errs.E(errs.Unavailable, "the server is stopping")

// reach makes the connection that a request asks for.
func (s *Service) reach(r *http.Request) (*tunnel.Conn, visit, error) {
	c := auth.From(r.Context())
	e, err := s.environment(r.Context(), c, auth.EnvironmentAccess, r.PathValue("workspace")+"/"+r.PathValue("environment"))
	if err != nil {
		return nil, visit{}, err
	}
	q := r.URL.Query()
	t, err := target(q.Get("network"), q.Get("address"))
	if err != nil {
		return nil, visit{}, err
	}
	to, err := s.cfg.Dial(r.Context(), c, e, t)
	if err != nil {
		return nil, visit{}, err
	}
	v, err := s.visits.begin(r.Context(), c, e, "forward", t.Network+":"+t.Address)
	if err != nil {
		to.Close()
	}
	return to, v, err
}

// bridge copies both ways until both ends have said all, or one is gone. An
// abort of one arrives as an abort at the other.
func bridge(person, service *tunnel.Conn, v visit) {
	back := make(chan struct{})
	go func() {
		defer close(back)
		carry(service, person, func(n int64) { v.add(n, 0) })
	}()
	carry(person, service, func(n int64) { v.add(0, n) })
	<-back
}

func carry(to, from *tunnel.Conn, count func(int64)) {
	_, err := io.Copy(counting{to, count}, from)
	if err != nil {
		to.CloseWithError(err)
		from.CloseWithError(err)
		return
	}
	_ = to.CloseWrite() // it may be gone
}

// counting tells count of each write.
type counting struct {
	io.Writer
	count func(int64)
}

func (c counting) Write(p []byte) (int, error) {
	n, err := c.Writer.Write(p)
	c.count(int64(n))
	return n, err
}
