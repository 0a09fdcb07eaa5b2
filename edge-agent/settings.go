package main

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/remotegpu/remotegpu/edge-agent/agent"
)

// envFile holds settings as shell assignments; systemd reads it too.
const envFile = "/etc/remotegpu/agent.env"

// settings are the flags that all commands share.
type settings struct {
	agent.Config
	cniBin    string
	logFormat string
	logLevel  string
	logDir    string
}

func (s *settings) register(f *pflag.FlagSet) {
	f.StringVar(&s.DataDir, "data-dir", "/var/lib/remotegpu", "where identity, desired state and volumes are kept")
	f.StringVar(&s.RunDir, "run-dir", "/run/remotegpu", "where sockets and pid files are, gone with a reboot")
	f.StringVar(&s.Containerd, "containerd", "/run/containerd/containerd.sock", "containerd's socket")
	f.StringVar(&s.Namespace, "containerd-namespace", "remotegpu", "containerd namespace of the containers")
	f.StringVar(&s.GPUSource, "gpu-source", "auto", "auto, nvml, none, or sim:8xH100 for machines without a GPU")
	f.StringVar(&s.Helper, "helper", "/usr/local/lib/remotegpu/remotegpu-helper", "program that is mounted into containers")
	f.StringVar(&s.NVML, "nvml", "/usr/local/lib/remotegpu/remotegpu-nvml", "program that asks the NVIDIA driver")
	f.StringVar(&s.cniBin, "cni-bin", "/opt/cni/bin:/usr/lib/cni:/usr/libexec/cni", "folders of CNI plugins")
	f.StringVar(&s.Subnet, "subnet", "10.213.0.0/16", "network that containers get their addresses from")
	f.StringVar(&s.BridgePrefix, "bridge-prefix", "rg-", "how the names of our network bridges begin")
	f.StringVar(&s.MQTT, "mqtt", "", "tls://HOST:PORT of a broker beside the server (default: /mqtt of the server)")
	f.BoolVar(&s.NoHostShell, "no-host-shell", false, "let no platform admin have a shell on this host itself")
	f.StringVar(&s.logDir, "log-dir", "/var/log/remotegpu", "where supervise writes logs")
	f.StringVar(&s.logFormat, "log-format", "json", "json or text")
	f.StringVar(&s.logLevel, "log-level", "info", "debug, info, warn or error")
}

// complete fills in what no flag gave from the environment.
func (s *settings) complete(cmd *cobra.Command) error {
	path := os.Getenv("REMOTEGPU_ENV_FILE")
	if path == "" {
		path = envFile
	}
	if err := loadEnv(path); err != nil {
		return err
	}
	var wrong error
	cmd.Flags().VisitAll(func(f *pflag.Flag) {
		name := "REMOTEGPU_" + strings.ToUpper(strings.ReplaceAll(f.Name, "-", "_"))
		if value := os.Getenv(name); value != "" && !f.Changed && wrong == nil {
			if err := cmd.Flags().Set(f.Name, value); err != nil {
				wrong = fmt.Errorf("the variable %s: %w", name, err)
			}
		}
	})
	if wrong != nil {
		return wrong
	}
	for name, p := range map[string]*string{
		"data-dir": &s.DataDir, "run-dir": &s.RunDir, "containerd": &s.Containerd,
		"helper": &s.Helper, "nvml": &s.NVML, "log-dir": &s.logDir,
	} {
		abs, err := filepath.Abs(*p)
		if err != nil {
			return fmt.Errorf("--%s: %w", name, err)
		}
		*p = abs
	}
	return s.finish()
}

// finish sets what is not a flag.
func (s *settings) finish() error {
	s.CNIBin = filepath.SplitList(s.cniBin)
	s.Version = version
	program, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find this program: %w", err)
	}
	s.Program = program
	var level slog.Level
	if err := level.UnmarshalText([]byte(s.logLevel)); err != nil {
		return errors.New("--log-level is debug, info, warn or error")
	}
	options := &slog.HandlerOptions{Level: level}
	switch s.logFormat {
	case "json":
		s.Log = slog.New(slog.NewJSONHandler(os.Stderr, options))
	case "text":
		s.Log = slog.New(slog.NewTextHandler(os.Stderr, options))
	default:
		return errors.New("--log-format is json or text")
	}
	return nil
}

// loadEnv sets the variables of a file that are not set yet.
func loadEnv(path string) error {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read settings: %w", err)
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		name, value, ok := assignment(lines.Text())
		if !ok {
			continue
		}
		if _, set := os.LookupEnv(name); !set {
			if err := os.Setenv(name, value); err != nil {
				return fmt.Errorf("read settings: set %s: %w", name, err)
			}
		}
	}
	if err := lines.Err(); err != nil {
		return fmt.Errorf("read settings: %w", err)
	}
	return nil
}

// assignment reads NAME=VALUE, NAME='VALUE' or NAME="VALUE".
func assignment(line string) (name, value string, ok bool) {
	line = strings.TrimSpace(line)
	name, value, ok = strings.Cut(line, "=")
	if !ok || name == "" || strings.ContainsAny(name, " \t#'\"") {
		return "", "", false
	}
	if n := len(value); n >= 2 && (value[0] == '\'' || value[0] == '"') && value[n-1] == value[0] {
		value = value[1 : n-1]
	}
	return name, value, true
}
