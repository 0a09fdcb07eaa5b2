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

//go:embed index.html front.js front.css login.html login.js player.js terminal.js
var files embed.FS

// policy lets the page load its own files and nothing else.
const policy = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"

// Handler serves the console's files.
func Handler() http.Handler {
	return guarded(http.FileServerFS(files))
}

// Login is the page that logs in to an app, whatever its path.
func Login() http.Handler {
	return guarded(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { http.ServeFileFS(w, r, files, "login.html") }))
}

func guarded(serve http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Security-Policy", policy)
		w.Header().Set("Cache-Control", "no-cache")
		serve.ServeHTTP(w, r)
	})
}
