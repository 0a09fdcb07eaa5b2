package door

import (
	"context"
	"net"
	"net/http"
	"sync"
)

type visitKey struct{}

// Guard makes srv count its connections: one is a stranger's until Known is
// called for a request on it, or until it is no HTTP any more.
func (d *Door) Guard(srv *http.Server) {
	var visits sync.Map // net.Conn → *Visit
	srv.ConnContext = func(ctx context.Context, c net.Conn) context.Context {
		v := d.Enter(c.RemoteAddr())
		if v == nil {
			c.Close()
			return ctx
		}
		visits.Store(c, v)
		return context.WithValue(ctx, visitKey{}, v)
	}
	srv.ConnState = func(c net.Conn, state http.ConnState) {
		if state != http.StateClosed && state != http.StateHijacked {
			return
		}
		if v, ok := visits.LoadAndDelete(c); ok {
			v.(*Visit).Known()
		}
	}
}

// maxAsk is the largest body of a stranger, in bytes: a host that joins says
// what it has.
const maxAsk = 256 << 10

// Ask reports whether a stranger may send one more request with a body of size
// bytes, -1 when nobody knows. Who is not guarded may.
func Ask(ctx context.Context, size int64) bool {
	v, _ := ctx.Value(visitKey{}).(*Visit)
	return v == nil || size <= maxAsk && v.ask()
}

// Known says that the request of ctx has shown whose it is.
func Known(ctx context.Context) {
	v, _ := ctx.Value(visitKey{}).(*Visit)
	v.Known()
}
