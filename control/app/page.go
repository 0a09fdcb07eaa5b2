package app

import (
	"encoding/json"
	"html/template"
	"net/http"
	"strings"

	"github.com/remotegpu/remotegpu/control/errs"
	"github.com/remotegpu/remotegpu/control/pg"
	"github.com/remotegpu/remotegpu/control/web"
	"github.com/remotegpu/remotegpu/protocol"
)

var page = template.Must(template.New("page").Parse(`<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{.Title}} · RemoteGPU</title>
<style>:root { color-scheme: light dark } body { font: 16px/1.5 system-ui, sans-serif; max-width: 40rem; margin: 15vh auto; padding: 0 1rem } code { font-size: .9em; opacity: .7 }</style>
<h1>{{.Title}}</h1>
<p>{{.Text}}</p>
</html>
`))

// fail answers in place of an app: with a page to a person, with a problem
// document to a program.
func (s *Service) fail(w http.ResponseWriter, r *http.Request, err error) {
	err = pg.Meaning(err)
	kind, text := errs.KindOf(err), errs.Text(err)
	if kind == errs.Internal {
		id := protocol.NewID(protocol.PrefixRequest)
		s.log.Error("request for an app failed", "req", id, "err", err)
		text = "Internal error. The server's log tells more under request " + id + "."
	}
	s.write(w, r, web.Status(err), text)
}

func (s *Service) write(w http.ResponseWriter, r *http.Request, status int, text string) {
	h := w.Header()
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("X-Frame-Options", "DENY")
	if !strings.Contains(r.Header.Get("Accept"), "text/html") {
		h.Set("Content-Type", "application/problem+json")
		w.WriteHeader(status)
		_ = json.NewEncoder(w).Encode(map[string]any{"title": http.StatusText(status), "status": status, "detail": text}) // the peer may be gone
		return
	}
	h.Set("Content-Type", "text/html; charset=utf-8")
	h.Set("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'")
	w.WriteHeader(status)
	_ = page.Execute(w, struct{ Title, Text string }{http.StatusText(status), text}) // as above
}
