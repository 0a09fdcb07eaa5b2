package cli

import (
	"log/slog"
	"os"

	"github.com/spf13/cobra"

	"github.com/remotegpu/remotegpu/control/server"
)

func (a *app) serverCommand() *cobra.Command {
	cfg := server.Config{Version: a.version}
	debug := false
	cmd := &cobra.Command{
		Use: "server", Short: "Run the control plane",
		Long: `Run the control plane: console, API, MQTT broker, tunnel, SSH gateway, image
registry, all in this one program. Without --database-url it runs a PostgreSQL of
its own, from the system's binaries, in its data folder.

At the first start it makes the first platform admin and writes address and
password to first-login.json in the data folder.`,
		Example: "  remotegpu server --data-dir /var/lib/remotegpu-server --url https://gpu.example.org:8443",
		Args:    args(0, 0, "no argument"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			level := slog.LevelInfo
			if debug {
				level = slog.LevelDebug
			}
			log := slog.New(slog.NewJSONHandler(os.Stderr, &slog.HandlerOptions{Level: level}))
			s, err := server.New(cmd.Context(), cfg, log)
			if err != nil {
				return err
			}
			return s.Run(cmd.Context())
		},
	}
	f := cmd.Flags()
	f.StringVar(&cfg.DataDir, "data-dir", "/var/lib/remotegpu-server", "database, images and downloads")
	f.StringVar(&cfg.DatabaseURL, "database-url", os.Getenv("REMOTEGPU_DATABASE_URL"), "PostgreSQL 14 or newer (default: a private one)")
	f.StringVar(&cfg.Listen, "listen", ":8443", "address of HTTPS: console, API, MQTT, tunnel, registry")
	f.StringVar(&cfg.SSHListen, "ssh-listen", ":2222", "address of the SSH gateway")
	f.StringVar(&cfg.MQTTListen, "mqtt-listen", "", "address of MQTT over TLS (default: only /mqtt of the HTTPS port)")
	f.StringVar(&cfg.URL, "url", "", "how hosts and people reach this server (default https://localhost:PORT)")
	f.StringVar(&cfg.SSHAddress, "ssh-address", "", "host:port of the SSH gateway as people type it (default: from --url and --ssh-listen)")
	f.StringVar(&cfg.TLSCert, "tls-cert", "", "PEM file of the certificate (default: one of an own authority)")
	f.StringVar(&cfg.TLSKey, "tls-key", "", "PEM file of its key")
	f.BoolVar(&cfg.PublicCA, "public-ca", false, "the certificate is of an authority that every system knows")
	f.BoolVar(&cfg.PlainHTTP, "behind-proxy", false, "a proxy in front ends TLS: listen without, trust its X-Forwarded-For")
	f.StringVar(&cfg.ProxyCA, "proxy-ca", "", "PEM file of the authority of the proxy's certificate, if systems do not know it")
	f.StringVar(&cfg.Downloads, "downloads", "", "folder of a release, for the installer (default DATA-DIR/dl)")
	f.BoolVar(&debug, "debug", false, "log more")
	return cmd
}
