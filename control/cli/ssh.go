package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/crypto/ssh"
	"golang.org/x/term"

	"github.com/remotegpu/remotegpu/control/sshconfig"
	"github.com/remotegpu/remotegpu/control/terminal"
	"github.com/remotegpu/remotegpu/protocol/tunnel"
)

type gatewayRow struct {
	Address string `json:"address"`
	HostKey string `json:"host_key"`
}

func (a *app) sshCommand() *cobra.Command {
	var tty, noTTY, noResume bool
	var h holding
	cmd := &cobra.Command{
		Use: "ssh ENV [-- COMMAND...]", Short: "A shell, or a command, in an environment",
		Long: `A shell, or a command, in an environment, over the server's HTTPS port.

The session survives: when the network changes, the server restarts or this machine
sleeps, it goes on where it was, and the program runs on for the time of --keep.
At the beginning of a line, ~. ends the session, ~d leaves it running (see remotegpu
attach), ~? lists this.

The exit status is the command's own; 255 means that it could not be run.
Plain OpenSSH works as well: see remotegpu ssh-config.`,
		Example: "  remotegpu ssh my-env\n  remotegpu ssh my-env -- nvidia-smi\n  tar c . | remotegpu ssh my-env -- tar x -C /gemini/code",
		Args:    args(1, -1, "an environment"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := h.check(); err != nil {
				return err
			}
			want := len(args) == 1 && term.IsTerminal(int(os.Stdin.Fd()))
			command, terminal := strings.Join(args[1:], " "), (want || tty) && !noTTY
			if noResume {
				return a.ssh(cmd.Context(), args[0], command, terminal)
			}
			return a.shell(cmd.Context(), args[0], command, terminal, h)
		},
	}
	cmd.Flags().BoolVarP(&tty, "tty", "t", false, "make a terminal, also for a command")
	cmd.Flags().BoolVarP(&noTTY, "no-tty", "T", false, "make no terminal")
	cmd.Flags().BoolVar(&noResume, "no-resume", false, "a plain SSH session, which ends with its connection")
	h.flags(cmd)
	return cmd
}

func termName() string {
	if name := os.Getenv("TERM"); name != "" {
		return name
	}
	return "xterm-256color"
}

func (a *app) ssh(ctx context.Context, env, command string, tty bool) error {
	c, err := a.connect()
	if err != nil {
		return err
	}
	client, err := c.sshClient(ctx, c.qualified(env))
	if err != nil {
		return err
	}
	defer client.Close()
	ses, err := client.NewSession()
	if err != nil {
		return fmt.Errorf("open session: %w", err)
	}
	defer ses.Close()
	ses.Stdin, ses.Stdout, ses.Stderr = nil, a.out, a.errOut
	in, err := ses.StdinPipe()
	if err != nil {
		return err
	}
	var keys io.Reader = os.Stdin
	if tty {
		keys = terminal.Keys(os.Stdin)
		restore, err := remoteTerminal(ses)
		if err != nil {
			return err
		}
		defer restore()
	}
	go func() {
		_, _ = io.Copy(in, keys) // ends with stdin or with the session
		in.Close()
	}()
	if command == "" {
		err = ses.Shell()
	} else {
		err = ses.Start(command)
	}
	if err != nil {
		return fmt.Errorf("start session: %w", err)
	}
	return sessionStatus(ses.Wait())
}

// sshClient speaks SSH to the gateway over a WebSocket that the API token has
// authenticated already; the gateway's host key comes by the same, trusted way.
func (c *client) sshClient(ctx context.Context, user string) (*ssh.Client, error) {
	var gw gatewayRow
	if err := c.call(ctx, http.MethodGet, "/api/v1/ssh", nil, &gw); err != nil {
		return nil, err
	}
	key, _, _, _, err := ssh.ParseAuthorizedKey([]byte(gw.HostKey))
	if err != nil {
		return nil, fmt.Errorf("read the gateway's host key: %w", err)
	}
	conn, err := c.dial(ctx, "/api/v1/ssh/connect")
	if err != nil {
		return nil, err
	}
	sc, channels, requests, err := ssh.NewClientConn(conn, gw.Address, &ssh.ClientConfig{
		User: user, HostKeyCallback: ssh.FixedHostKey(key), HostKeyAlgorithms: []string{key.Type()}, ClientVersion: "SSH-2.0-remotegpu",
	})
	if err != nil {
		conn.Close()
		return nil, fmt.Errorf("ssh to the gateway: %w", err)
	}
	return ssh.NewClient(sc, channels, requests), nil
}

// remoteTerminal puts the local one into raw mode, asks for one over there and keeps
// their sizes alike.
func remoteTerminal(ses *ssh.Session) (restore func(), err error) {
	cols, rows, restore := terminal.Raw(os.Stdin, func(cols, rows int) {
		_ = ses.WindowChange(rows, cols) // the session may have ended
	})
	if err := ses.RequestPty(termName(), rows, cols, ssh.TerminalModes{}); err != nil {
		restore()
		return nil, fmt.Errorf("ask for a terminal: %w", err)
	}
	return restore, nil
}

func sessionStatus(err error) error {
	var exit *ssh.ExitError
	var missing *ssh.ExitMissingError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &exit):
		return exitStatus(exit.ExitStatus())
	case errors.As(err, &missing):
		fmt.Fprintln(os.Stderr, "remotegpu: the connection to the server was lost")
		return exitStatus(255)
	}
	return err
}

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
			if name, ok := strings.CutSuffix(host, sshconfig.Environment); ok && c.Workspace != "" && !strings.ContainsAny(name, "._") {
				fmt.Fprintln(a.errOut, "remotegpu: Your configuration of ssh is that of an older version, and ssh may not know the host by it; write it anew: remotegpu ssh-config --install")
			}
			conn, err := c.dialEnd(cmd.Context(), host, strict)
			if err != nil {
				return err
			}
			defer conn.Close()
			go func() {
				_, _ = io.Copy(conn, os.Stdin) // ends with ssh or with the connection
				_ = conn.CloseWrite()          // it may be gone
			}()
			_, err = io.Copy(os.Stdout, conn)
			return err
		},
	}
	cmd.Flags().BoolVar(&strict, "end-to-end", false, "end to end or not at all")
	return cmd
}

// dialEnd connects with the SSH end of what OpenSSH calls host.
func (c *client) dialEnd(ctx context.Context, host string, strict bool) (*tunnel.Conn, error) {
	query := url.Values{}
	name, isHost := strings.CutSuffix(host, sshconfig.Host)
	if !isHost {
		name, isHost = strings.CutPrefix(host, "host:")
	}
	if isHost {
		query.Set("to", "host:"+name)
	} else if host != "" {
		query.Set("to", c.qualified(strings.Replace(strings.TrimSuffix(host, sshconfig.Environment), sshconfig.Environment+".", ".", 1)))
	}
	if strict {
		query.Set("mode", "end-to-end")
	}
	return c.dial(ctx, "/api/v1/ssh/connect?"+query.Encode())
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
			file, err := sshconfig.Install(block)
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
	known := filepath.ToSlash(strings.TrimSuffix(file, ".json") + ".known_hosts") // a backslash may be an escape to OpenSSH
	host, port, err := net.SplitHostPort(gw.Address)
	if err != nil {
		return "", fmt.Errorf("read the gateway's address: %w", err)
	}
	if err := os.WriteFile(known, []byte(sshconfig.KnownHosts(host, port, gw.HostCA, gw.HostKey)), 0o600); err != nil {
		return "", err
	}
	return sshconfig.Block(c.URL, c.Workspace, fmt.Sprintf(`"%s" --config "%s"`, self, file), known), nil
}
