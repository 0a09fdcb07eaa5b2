package server

import (
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/remotegpu/remotegpu/control/auth"
	"github.com/remotegpu/remotegpu/control/errs"
	"github.com/remotegpu/remotegpu/control/web"
	"github.com/remotegpu/remotegpu/installers"
)

// installRoutes serves the installer, what it downloads, and the certificate
// by which other programs know this server. All are public: the join token is
// what lets a host in, and downloads are signed.
func (s *Server) installRoutes(api *web.API) {
	api.Raw(web.Route{Method: http.MethodGet, Path: "/install.sh", Action: auth.HealthRead, Summary: "Installer of the agent"},
		http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			script, err := s.installScript()
			if err != nil {
				api.Fail(w, r, err)
				return
			}
			w.Header().Set("Content-Type", "text/x-shellscript; charset=utf-8")
			fmt.Fprint(w, script)
		}))
	api.Raw(web.Route{Method: http.MethodGet, Path: "/ca.pem", Action: auth.HealthRead, Summary: "Certificate of the server's own authority"},
		http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if len(s.identity.ca) == 0 {
				api.Fail(w, r, errs.E(errs.NotFound, "This server has no authority of its own: the system's certificates know it."))
				return
			}
			w.Header().Set("Content-Type", "application/x-pem-file")
			_, _ = w.Write(s.identity.ca) // the client may be gone
		}))
	api.Raw(web.Route{Method: http.MethodGet, Path: "/dl/{file...}", Action: auth.HealthRead, Summary: "Signed programs"},
		http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			name := path.Clean("/" + r.PathValue("file"))
			if strings.Contains(name, "/.") || strings.HasSuffix(name, ".key") {
				http.NotFound(w, r)
				return
			}
			http.ServeFile(w, r, filepath.Join(s.cfg.Downloads, filepath.FromSlash(name)))
		}))
}

// installScript fills in what only this server knows.
func (s *Server) installScript() (string, error) {
	pub, err := os.ReadFile(filepath.Join(s.cfg.Downloads, "release.pub"))
	if errors.Is(err, fs.ErrNotExist) {
		return "", errs.E(errs.Unavailable, "This server has no agent to hand out: put a release into "+s.cfg.Downloads+" (make release).")
	} else if err != nil {
		return "", fmt.Errorf("read release key: %w", err)
	}
	return strings.NewReplacer(
		"@URL@", s.cfg.URL,
		"@CA_PEM@", strings.TrimSpace(string(s.identity.ca)),
		"@RELEASE_PUB@", strings.TrimSpace(string(pub)),
	).Replace(installers.Script), nil
}

// InstallCommand returns the one line that joins a host with token.
func (s *Server) InstallCommand(token string) string {
	curl := "curl -fsSL"
	switch {
	case s.identity.pin != "": // curl checks the key itself, so no authority is needed
		curl += "k --pinnedpubkey '" + s.identity.pin + "'"
	case len(s.identity.ca) > 0:
		curl += " --cacert ca.pem"
	}
	line := fmt.Sprintf("%s %s/install.sh | sudo sh -s -- --token %s", curl, s.cfg.URL, token)
	if s.cfg.MQTTBrokerHosts != "" {
		line += " --mqtt " + s.cfg.MQTTBrokerHosts
	}
	return line
}
