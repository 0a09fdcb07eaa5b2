package web

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"strings"

	"github.com/remotegpu/remotegpu/control/auth"
	"github.com/remotegpu/remotegpu/protocol"
)

// Authenticate finds out who sends a request. Credentials that are shown and
// wrong are an error; none at all is nobody.
type Authenticate func(r *http.Request) (auth.Caller, error)

// Handler returns the way in for all routes: it gives every request an id and
// a caller. Behind a proxy that is trusted, the address that the proxy saw
// counts.
func (a *API) Handler(who Authenticate, trustProxy bool) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		id := protocol.NewID(protocol.PrefixRequest)
		head := w.Header()
		head.Set("X-Request-Id", id)
		head.Set("X-Content-Type-Options", "nosniff")
		head.Set("Referrer-Policy", "no-referrer")
		head.Set("X-Frame-Options", "DENY")
		if r.TLS != nil {
			head.Set("Strict-Transport-Security", "max-age=31536000")
		}
		if _, pattern := a.mux.Handler(r); !a.raw[pattern] {
			ctx, cancel := finishing(r.Context())
			defer cancel()
			r = r.WithContext(ctx)
		}
		caller, err := who(r)
		if err != nil {
			a.Fail(w, r, err)
			return
		}
		caller.Remote = Remote(r, trustProxy)
		ctx := context.WithValue(auth.With(r.Context(), caller), requestKey{}, id)
		a.mux.ServeHTTP(w, r.WithContext(ctx))
	})
}

// Fail answers a Raw route with a problem document.
func (a *API) Fail(w http.ResponseWriter, r *http.Request, err error) {
	kind, text := a.judge(w.Header().Get("X-Request-Id"), err)
	w.Header().Set("Content-Type", "application/problem+json")
	w.WriteHeader(statuses[kind])
	_ = json.NewEncoder(w).Encode(map[string]any{ // the peer may be gone
		"title": http.StatusText(statuses[kind]), "status": statuses[kind], "detail": text,
	})
}

// finishing returns a context that ends when the client goes away, but not when
// the server stops, which has a cause of its own.
func finishing(ctx context.Context) (context.Context, context.CancelFunc) {
	own, cancel := context.WithCancel(context.WithoutCancel(ctx))
	stop := context.AfterFunc(ctx, func() {
		if errors.Is(context.Cause(ctx), context.Canceled) {
			cancel()
		}
	})
	return own, func() {
		stop()
		cancel()
	}
}

type requestKey struct{}

// RequestID returns the id of the request that ctx belongs to.
func RequestID(ctx context.Context) string {
	id, _ := ctx.Value(requestKey{}).(string)
	return id
}

// Remote returns the address of the caller without port: behind a proxy that is
// trusted, the one that the proxy saw.
func Remote(r *http.Request, trustProxy bool) string {
	if trustProxy {
		if last := r.Header.Values("X-Forwarded-For"); len(last) > 0 {
			hops := strings.Split(last[len(last)-1], ",")
			return strings.TrimSpace(hops[len(hops)-1])
		}
	}
	host, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil {
		return r.RemoteAddr
	}
	return host
}
