package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/remotegpu/remotegpu/protocol/tunnel"
)

// Suffixes of names in OpenSSH's configuration.
const (
	suffixEnvironment = ".rg"
	suffixHost        = ".rghost"
)

func (a *app) sshProxyCommand() *cobra.Command {
	var strict bool
	cmd := &cobra.Command{
		Use: "ssh-proxy [ENV|host:NAME]", Short: "ProxyCommand for OpenSSH, over the HTTPS port", Args: args(0, 1, "at most one environment or host:NAME"),
		Long: `Connects stdin and stdout with an environment's host, or with a host itself, over
the server's HTTPS port: SSH is encrypted end to end. Where the workspace records
sessions, and without a name, it is the SSH gateway that answers.
Use it as OpenSSH's ProxyCommand; remotegpu ssh-config writes it for you.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.connect()
			if err != nil {
				return err
			}
			host := strings.Join(args, "")
			if name, ok := strings.CutSuffix(host, suffixEnvironment); ok && c.Workspace != "" && !strings.ContainsAny(name, "._") {
				fmt.Fprintln(a.errOut, "remotegpu: Your configuration of ssh is that of an older version, and ssh may not know the host by it; write it anew: remotegpu ssh-config --install")
			}
			conn, err := c.dialEnd(cmd.Context(), host, strict)
			if err != nil {
				return err
			}
			defer conn.Close()
			go func() {
				_, _ = io.Copy(conn, os.Stdin) // ends with ssh or with the connection
				if half, ok := conn.(interface{ CloseWrite() error }); ok {
					_ = half.CloseWrite()
				}
			}()
			_, err = io.Copy(os.Stdout, conn)
			return err
		},
	}
	cmd.Flags().BoolVar(&strict, "end-to-end", false, "end to end or not at all")
	return cmd
}

// dialEnd connects with the SSH end of what OpenSSH calls host.
func (c *client) dialEnd(ctx context.Context, host string, strict bool) (net.Conn, error) {
	query := url.Values{}
	if name, isHost := strings.CutSuffix(host, suffixHost); isHost {
		query.Set("to", "host:"+name)
	} else if host != "" {
		query.Set("to", c.qualified(strings.Replace(strings.TrimSuffix(host, suffixEnvironment), suffixEnvironment+".", ".", 1)))
	}
	if strict {
		query.Set("mode", "end-to-end")
	}
	conn, err := tunnel.Dial(ctx, tunnel.DialConfig{
		URL:    "wss" + strings.TrimPrefix(c.URL, "https") + "/api/v1/ssh/connect?" + query.Encode(),
		Header: http.Header{"Authorization": {"Bearer " + c.Token}},
		TLS:    c.tls, Proxy: http.ProxyFromEnvironment,
	})
	if rejected, ok := errors.AsType[*tunnel.Rejected](err); ok {
		var problem struct{ Detail string }
		if json.Unmarshal([]byte(rejected.Body), &problem) == nil && problem.Detail != "" {
			return nil, errors.New(problem.Detail)
		}
	}
	if err != nil {
		return nil, unreachable(c.URL, err)
	}
	return conn, nil
}

func (a *app) sshConfigCommand() *cobra.Command {
	var install bool
	cmd := &cobra.Command{
		Use: "ssh-config", Short: "Print what makes ssh ENV.rg just work", Args: args(0, 0, "no argument"),
		Long: `Prints a block for ~/.ssh/config. With it, ssh ENV.rg, and whatever builds on ssh
(scp, rsync, git, VS Code, JetBrains), reaches an environment over the server's
HTTPS port, without a key. --install puts it into a file of its own beside
~/.ssh/config, which includes it.`,
		Example: "  remotegpu ssh-config --install\n  ssh my-env.rg",
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.connect()
			if err != nil {
				return err
			}
			block, err := a.sshConfig(cmd.Context(), c)
			if err != nil {
				return err
			}
			if !install {
				_, err = io.WriteString(a.out, block)
				return err
			}
			file, err := installSSHConfig(block)
			if err == nil {
				fmt.Fprintf(a.out, "Written to %s. Try: ssh ENV.rg\n", file)
			}
			return err
		},
	}
	cmd.Flags().BoolVar(&install, "install", false, "write it where ssh finds it")
	return cmd
}

// sshConfig returns the block, and writes the file of known hosts that it names.
func (a *app) sshConfig(ctx context.Context, c *client) (string, error) {
	var gw struct {
		Address string `json:"address"`
		HostKey string `json:"host_key"`
		HostCA  string `json:"host_ca"`
	}
	if err := c.call(ctx, http.MethodGet, "/api/v1/ssh", nil, &gw); err != nil {
		return "", err
	}
	file, err := a.profilePath()
	if err != nil {
		return "", err
	}
	self, err := os.Executable()
	if err != nil {
		return "", err
	}
	known := strings.TrimSuffix(file, ".json") + ".known_hosts"
	host, port, err := net.SplitHostPort(gw.Address)
	if err != nil {
		return "", fmt.Errorf("read the gateway's address: %w", err)
	}
	lines := fmt.Sprintf("@cert-authority *.rg,*.rghost,[%s]:%s %s\n[%s]:%s %s\n", host, port, gw.HostCA, host, port, gw.HostKey)
	if err := os.WriteFile(known, []byte(lines), 0o600); err != nil {
		return "", err
	}
	own := ""
	if c.Workspace != "" { // its name goes where ssh looks for the host's certificate: other workspaces have an ENV too
		own = fmt.Sprintf("Host *.rg !*.*.rg !env_*\n    HostName %%h.%s.rg\n", c.Workspace)
	}
	return fmt.Sprintf(`# RemoteGPU, %[1]s
#
#   ssh ENV.rg              an environment of workspace %[2]s
#   ssh ENV.WORKSPACE.rg    of any workspace
#   ssh HOST.rghost         a host itself, for platform admins
#
# Encrypted end to end, up to the host. Where a workspace records sessions, the
# gateway sees them; a terminal says at its start which of the two it is.
%[6]sHost *.rg *.rghost
    ProxyCommand "%[3]s" --config "%[4]s" ssh-proxy %%h
    UserKnownHostsFile "%[5]s"
    StrictHostKeyChecking yes
    ServerAliveInterval 15
    ServerAliveCountMax 4
`, c.URL, or(c.Workspace, "none yet"), self, file, known, own), nil
}

// sshConfigFile lies beside OpenSSH's config, which includes it.
const sshConfigFile = "remotegpu.conf"

// installSSHConfig writes block and lets OpenSSH's configuration include it
// first: what follows a Host line belongs to that host.
func installSSHConfig(block string) (file string, err error) {
	home, err := os.UserHomeDir()
	if err != nil {
		return "", err
	}
	dir := filepath.Join(home, ".ssh")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", err
	}
	file = filepath.Join(dir, sshConfigFile)
	if err := os.WriteFile(file, []byte(block), 0o600); err != nil {
		return "", err
	}
	config := filepath.Join(dir, "config")
	old, err := os.ReadFile(config)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	include := "Include " + sshConfigFile
	if slices.Contains(strings.Split(strings.ReplaceAll(string(old), "\r\n", "\n"), "\n"), include) {
		return file, nil
	}
	return file, os.WriteFile(config, bytes.Join([][]byte{[]byte(include), old}, []byte("\n")), 0o600)
}
