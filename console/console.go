// Package console holds the web console.
//
// It owns the pages; everything they show and do goes through the public API,
// as the CLI does. For now it is one plain front page that logs an admin in
// and makes the install line for a host.
package console

import (
	"embed"
	"net/http"
)

//go:embed index.html front.js front.css
var files embed.FS

// policy lets the page load its own files and nothing else.
const policy = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"

// Handler serves the console's files.
func Handler() http.Handler {
	serve := http.FileServerFS(files)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Security-Policy", policy)
		w.Header().Set("Cache-Control", "no-cache")
		serve.ServeHTTP(w, r)
	})
}
