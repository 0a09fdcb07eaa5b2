package reach

import (
	"net"
	"net/http"
	"net/url"
	"time"
)

// The kernel asks the other end of a silent connection whether it is there: that
// costs neither program anything, and a line that was cut is noticed in 17 s. While
// something is under way the kernel does not ask: a status that is said again and
// does not reach the broker ends the connection, 45 s after the cut at most.
const (
	aliveAfter = 8 * time.Second
	aliveEvery = 3 * time.Second
	aliveTimes = 3
)

// Dialer returns what connections to the control plane are made with.
func Dialer() *net.Dialer {
	return &net.Dialer{
		Timeout:         connectWithin,
		KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: aliveAfter, Interval: aliveEvery, Count: aliveTimes},
	}
}

// Proxied reports whether a proxy stands between here and host:port: its kernel
// answers for itself, and says nothing of what is behind it.
func (s *Server) Proxied(address string) bool {
	proxy, err := s.proxy(&http.Request{Method: http.MethodConnect, URL: &url.URL{Scheme: "https", Host: address}})
	return err == nil && proxy != nil
}
