package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
	"golang.org/x/crypto/ssh"
	"golang.org/x/term"

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
	if tty {
		restore, err := remoteTerminal(ses)
		if err != nil {
			return err
		}
		defer restore()
	}
	go func() {
		_, _ = io.Copy(in, os.Stdin) // ends with stdin or with the session
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
	conn, err := c.dialSSH(ctx)
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

func (c *client) dialSSH(ctx context.Context) (net.Conn, error) {
	conn, err := tunnel.Dial(ctx, tunnel.DialConfig{
		URL:    "wss" + strings.TrimPrefix(c.URL, "https") + "/api/v1/ssh/connect",
		Header: http.Header{"Authorization": {"Bearer " + c.Token}},
		TLS:    c.tls, Proxy: http.ProxyFromEnvironment,
	})
	if err != nil {
		return nil, unreachable(c.URL, err)
	}
	return conn, nil
}

// remoteTerminal puts the local one into raw mode, asks for one over there and keeps
// their sizes alike.
func remoteTerminal(ses *ssh.Session) (restore func(), err error) {
	fd := int(os.Stdin.Fd())
	cols, rows, err := term.GetSize(fd)
	if err != nil {
		cols, rows = 80, 24
	}
	if err := ses.RequestPty(termName(), rows, cols, ssh.TerminalModes{}); err != nil {
		return nil, fmt.Errorf("ask for a terminal: %w", err)
	}
	restore = func() {}
	if state, err := term.MakeRaw(fd); err == nil {
		restore = func() { _ = term.Restore(fd, state) } // nothing to do when it fails
	}
	sizes := make(chan os.Signal, 1)
	signal.Notify(sizes, syscall.SIGWINCH)
	go func() {
		for range sizes {
			if cols, rows, err := term.GetSize(fd); err == nil {
				_ = ses.WindowChange(rows, cols) // the session may have ended
			}
		}
	}()
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
