package cli

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"os"
	"runtime"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/remotegpu/remotegpu/control/server"
)

// heapFloor keeps the collector from running for a few megabytes: a copy through
// the SSH gateway leaves its own size as garbage, and with the small heap of a
// quiet server every second of it was collected ten times and more. It is never
// touched, so it takes no memory itself.
const heapFloor = 64 << 20

func (a *app) serverCommand() *cobra.Command {
	cfg := server.Config{Version: a.version}
	debug := false
	cmd := &cobra.Command{
		Use: "server", Short: "Run the control plane",
		Long: `Run the control plane: console, API, MQTT broker, tunnel, SSH gateway, image
registry, all in this one program. Without --database-url it runs a PostgreSQL of
its own, from the system's binaries, in its data folder.

At the first start it makes the first platform admin and writes address and
password to first-login.json in the data folder.

Several servers share one --database-url and one folder, behind a load balancer:
give each --replica-listen, where the others bring it streams. docs/replicas.md
has a configuration of haproxy, and what happens when one dies.`,
		Example: `  remotegpu server --data-dir /var/lib/remotegpu-server --url https://gpu.example.org:8443
  remotegpu server --data-dir /srv/remotegpu --database-url postgres://… --url https://gpu.example.org \
      --behind-proxy --public-ca --listen :8080 --replica-listen :8445`,
		Args: args(0, 0, "no argument"),
		RunE: func(cmd *cobra.Command, _ []string) error { return runServer(cmd.Context(), cfg, debug) },
	}
	cmd.AddCommand(a.mosquittoCommand())
	f := cmd.Flags()
	f.StringVar(&cfg.DataDir, "data-dir", "/var/lib/remotegpu-server", "database, images and downloads")
	f.StringVar(&cfg.DatabaseURL, "database-url", "", "PostgreSQL 14 or newer (default: $REMOTEGPU_DATABASE_URL, or a private one)")
	fromVariable(f, "database-url", "REMOTEGPU_DATABASE_URL")
	f.StringVar(&cfg.Listen, "listen", ":8443", "address of HTTPS: console, API, MQTT, tunnel, registry")
	f.StringVar(&cfg.SSHListen, "ssh-listen", ":2222", "address of the SSH gateway")
	f.StringVar(&cfg.MQTTListen, "mqtt-listen", "", "address of MQTT over TLS (default: only /mqtt of the HTTPS port)")
	f.StringVar(&cfg.MQTTBroker, "mqtt-broker", "", "tls://HOST:PORT of an MQTT 5 broker beside the built-in one, for this server (docs/replicas.md)")
	f.StringVar(&cfg.MQTTBrokerCA, "mqtt-broker-ca", "", "PEM file of the authority of its certificate (default: the fleet's own)")
	f.StringVar(&cfg.MQTTBrokerHosts, "mqtt-broker-hosts", "", "tls://HOST:PORT of it for hosts; the install line says it to new ones")
	f.StringVar(&cfg.ReplicaListen, "replica-listen", "", "one of several servers: address where the others bring it streams, like :8445; never open to the world")
	f.StringVar(&cfg.ReplicaAddress, "replica-address", "", "host:port of --replica-listen as the other servers reach it (default: the address by which this one reaches the database)")
	f.StringVar(&cfg.URL, "url", "", "how hosts and people reach this server (default https://localhost:PORT)")
	f.StringVar(&cfg.SSHAddress, "ssh-address", "", "host:port of the SSH gateway as people type it (default: from --url and --ssh-listen)")
	f.StringVar(&cfg.TLSCert, "tls-cert", "", "PEM file of the certificate (default: one of an own authority)")
	f.StringVar(&cfg.TLSKey, "tls-key", "", "PEM file of its key")
	f.BoolVar(&cfg.PublicCA, "public-ca", false, "the certificate is of an authority that every system knows")
	f.BoolVar(&cfg.PlainHTTP, "behind-proxy", false, "a proxy in front ends TLS: listen without, trust its X-Forwarded-For")
	f.StringVar(&cfg.ProxyCA, "proxy-ca", "", "PEM file of the authority of the proxy's certificate, if systems do not know it")
	f.StringVar(&cfg.AppsDomain, "apps-domain", "", "apps of environments get hosts of their own below it; needs *.DOMAIN in DNS and certificate (default for localhost: apps.localhost)")
	f.StringVar(&cfg.AppsListen, "apps-listen", "", "without --apps-domain: address that all apps share; off: none (default: the port after --listen's)")
	f.StringVar(&cfg.AppsURL, "apps-url", "", "how people reach --apps-listen, or a second name of the HTTPS port that all apps share (default: from --url)")
	f.StringVar(&cfg.Downloads, "downloads", "", "folder of a release, for the installer (default DATA-DIR/dl)")
	f.StringVar(&cfg.BlobURL, "blob-url", "", "store of recordings: file:///FOLDER, or s3://BUCKET?region=…[&endpoint=https://…] with AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (default DATA-DIR/blobs)")
	f.StringVar(&cfg.Clipboard, "rdp-clipboard", "both", "most that may be copied over remote desktops: both, to-host, from-host or none")
	f.IntVar(&cfg.UserStreams, "user-streams", 256, "most streams of a user at a time: a shell, a forwarded connection or a desktop is one; 0: no cap")
	f.IntVar(&cfg.HostStreams, "host-streams", 512, "most streams to a host at a time, of all users; 0: no cap")
	f.Func("session-rate", "most bytes per second of one shell, copy, forwarded connection, desktop or request to an app, like 20MiB; below --user-rate it leaves a user's shells room beside a copy (default: no cap)", sizeInto(&cfg.SessionRate))
	f.Func("user-rate", "most bytes per second over all streams of a user, like 50MiB (default: no cap)", sizeInto(&cfg.UserRate))
	f.Func("host-rate", "most bytes per second over all streams of a host, like 100MiB (default: no cap)", sizeInto(&cfg.HostRate))
	f.DurationVar(&cfg.Drain, "drain", 10*time.Second, "how long a stop waits for ssh sessions and forwards; those of remotegpu ssh survive it")
	f.StringVar(&cfg.DebugListen, "debug-listen", "", "show profiles of this program on an address of this machine alone, like 127.0.0.1:6060")
	f.BoolVar(&debug, "debug", false, "log more")
	return cmd
}

func runServer(ctx context.Context, cfg server.Config, debug bool) error {
	level := slog.LevelInfo
	if debug {
		level = slog.LevelDebug
	}
	log := slog.New(slog.NewJSONHandler(os.Stderr, &slog.HandlerOptions{Level: level}))
	s, err := server.New(ctx, cfg, log)
	if err != nil {
		return err
	}
	floor := make([]byte, heapFloor)
	defer runtime.KeepAlive(floor)
	if err = s.Run(ctx); errors.Is(err, syscall.EADDRINUSE) {
		err = fmt.Errorf("%w; end what listens there, or choose another address (remotegpu server --help)", err)
	}
	return err
}

func (a *app) mosquittoCommand() *cobra.Command {
	database, host := "", ""
	cmd := &cobra.Command{
		Use: "mosquitto FOLDER", Short: "Write a configuration of mosquitto as a broker beside the built-in one",
		Long: `Write a configuration of mosquitto 2 as an MQTT 5 broker of this fleet: its
certificate, who is let in and what they may do, and limits for nftables. Files
that are there stay.`,
		Example: "  remotegpu server mosquitto --database-url postgres://… --host mqtt.example.org /etc/mosquitto/remotegpu",
		Args:    args(1, 1, "a folder"),
		RunE: func(cmd *cobra.Command, folder []string) error {
			if host == "" || database == "" {
				return usageError{errors.New("--host and --database-url are needed")}
			}
			return server.WriteMosquitto(cmd.Context(), database, host, folder[0])
		},
	}
	cmd.Flags().StringVar(&database, "database-url", "", "the servers' PostgreSQL (default: $REMOTEGPU_DATABASE_URL)")
	fromVariable(cmd.Flags(), "database-url", "REMOTEGPU_DATABASE_URL")
	cmd.Flags().StringVar(&host, "host", "", "name or address by which hosts and servers reach the broker")
	return cmd
}

// sizeInto reads a flag that is a size; 0 is none.
func sizeInto(to *int) func(string) error {
	return func(text string) error {
		if *to = 0; text == "0" {
			return nil
		}
		n, err := parseSize(text)
		*to = int(min(n, math.MaxInt))
		return err
	}
}
