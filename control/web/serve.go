package web

import (
	"log/slog"
	"net/http"
	"time"
)

// Server returns what serves h on every listener of ours. Who says nothing is
// cut; there is no limit to how long a body or an answer takes: they are files,
// and programs that think for hours.
func Server(h http.Handler, log *slog.Logger) *http.Server {
	return &http.Server{
		Handler: h, ReadHeaderTimeout: 15 * time.Second, IdleTimeout: 2 * time.Minute, MaxHeaderBytes: 64 << 10,
		ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
}
