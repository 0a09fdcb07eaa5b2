package cli

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/term"
)

type loginFlags struct {
	email, token, ca, pin string
	passwordStdin         bool
}

func (a *app) loginCommand() *cobra.Command {
	var f loginFlags
	cmd := &cobra.Command{
		Use: "login URL", Short: "Log in to a server and remember it",
		Long: `Log in to a server and remember it, for this user of this machine.

The server's certificate is checked in one of three ways: by the system's
authorities; by --ca FILE; or by the server's public key, which is shown to you
once and pinned (--pin gives it beforehand, for scripts).

A server with a certificate of its own shows its key in its log at start.`,
		Example: "  remotegpu login https://gpu.example.org:8443 --email me@example.org\n" +
			"  remotegpu login https://gpu.example.org:8443 --token rgt_…",
		Args: args(1, 1, "the server's URL"),
		RunE: func(cmd *cobra.Command, args []string) error { return a.login(cmd.Context(), args[0], f) },
	}
	flags := cmd.Flags()
	flags.StringVar(&f.email, "email", "", "e-mail address (asked for when missing)")
	flags.BoolVar(&f.passwordStdin, "password-stdin", false, "read the password from stdin")
	flags.StringVar(&f.token, "token", "", "API token instead of a password")
	flags.StringVar(&f.ca, "ca", "", "PEM file of the authority that signed the server's certificate")
	flags.StringVar(&f.pin, "pin", "", "sha256//… of the server's public key")
	return cmd
}

func (a *app) login(ctx context.Context, server string, f loginFlags) error {
	u, err := url.Parse(strings.TrimRight(server, "/"))
	if err != nil || u.Scheme != "https" || u.Host == "" {
		return usageError{fmt.Errorf("%q is not a server's URL; it looks like https://gpu.example.org:8443", server)}
	}
	p := profile{URL: u.Scheme + "://" + u.Host, Token: f.token, Pin: f.pin}
	if f.ca != "" {
		pem, err := os.ReadFile(f.ca)
		if err != nil {
			return err
		}
		p.CA = string(pem)
	}
	if p.CA == "" && p.Pin == "" {
		if p.Pin, err = a.trust(ctx, p.URL, u.Host); err != nil {
			return err
		}
	}
	c, err := newClient(p)
	if err != nil {
		return err
	}
	if c.Token == "" {
		if err := a.password(ctx, c, f); err != nil {
			return err
		}
	}
	return a.remember(ctx, c)
}

// trust returns "" when the system trusts the server's certificate, else the
// key that the person agreed to.
func (a *app) trust(ctx context.Context, server, host string) (pin string, err error) {
	if !strings.Contains(host, ":") {
		host += ":443"
	}
	dialer := &tls.Dialer{Config: &tls.Config{}}
	conn, err := dialer.DialContext(ctx, "tcp", host)
	if err == nil {
		return "", conn.Close()
	}
	var bad *tls.CertificateVerificationError
	if !errors.As(err, &bad) {
		return "", unreachable(server, err)
	}
	key := keyPin(bad.UnverifiedCertificates[0])
	if !term.IsTerminal(int(os.Stdin.Fd())) {
		return "", fmt.Errorf("this machine does not know the authority of the certificate of %s; if its key should be %s, log in with --pin '%s'", server, key, key)
	}
	fmt.Fprintf(a.errOut, "This machine does not know the authority of the certificate of %s.\nThe key of the server is %s.\nIs that the one in the server's log? Type yes to trust it: ", server, key)
	line, _ := typed(ctx, bufio.NewReader(os.Stdin))
	if strings.TrimSpace(line) != "yes" {
		return "", errors.New("not trusted; nothing was sent")
	}
	return key, nil
}

func (a *app) password(ctx context.Context, c *client, f loginFlags) error {
	in := bufio.NewReader(os.Stdin)
	if f.email == "" {
		fmt.Fprint(a.errOut, "E-mail: ")
		line, err := typed(ctx, in)
		if err != nil {
			return errors.New("no e-mail address given; use --email")
		}
		f.email = strings.TrimSpace(line)
	}
	password, err := a.secret(ctx, in, "Password: ", f.passwordStdin)
	if err != nil {
		return err
	}
	var out struct{ Token string }
	err = c.call(ctx, http.MethodPost, "/api/v1/login", map[string]string{"email": f.email, "password": password}, &out)
	c.Token = out.Token
	return err
}

// secret asks a person for a password, without showing it, or takes the next
// line of stdin.
func (a *app) secret(ctx context.Context, in *bufio.Reader, prompt string, stdin bool) (string, error) {
	tty := int(os.Stdin.Fd())
	if stdin || !term.IsTerminal(tty) {
		line, err := typed(ctx, in)
		if err != nil && line == "" {
			return "", errors.New("no password on stdin")
		}
		return strings.TrimRight(line, "\r\n"), nil
	}
	shown, err := term.GetState(tty)
	if err != nil {
		return "", err
	}
	fmt.Fprint(a.errOut, prompt)
	b, err := await(ctx, func() ([]byte, error) { return term.ReadPassword(tty) })
	if ctx.Err() != nil {
		_ = term.Restore(tty, shown) // the read, which would do it, goes on
	}
	fmt.Fprintln(a.errOut)
	return string(b), err
}

func typed(ctx context.Context, in *bufio.Reader) (string, error) {
	return await(ctx, func() (string, error) { return in.ReadString('\n') })
}

// await returns what read does, or at once when ctx ends: a signal ends no read
// of a terminal.
func await[T any](ctx context.Context, read func() (T, error)) (v T, err error) {
	done := make(chan func() (T, error), 1)
	go func() {
		v, err := read()
		done <- func() (T, error) { return v, err }
	}()
	select {
	case answer := <-done:
		return answer()
	case <-ctx.Done():
		return v, ctx.Err()
	}
}

func (a *app) passwordCommand() *cobra.Command {
	return &cobra.Command{Use: "password", Short: "Change your password", Args: args(0, 0, "no argument"),
		Long: `Change your password. The old and the new one are asked for, or are the first two
lines of stdin.

Your other logins end at once, with all that they have open; the one that changes
the password stays. API tokens and SSH keys stay too: look at them with
remotegpu token ls and remotegpu key ls, and end them with rm.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.connect()
			if err != nil {
				return err
			}
			in := bufio.NewReader(os.Stdin)
			old, err := a.secret(cmd.Context(), in, "Old password: ", false)
			if err != nil {
				return err
			}
			fresh, err := a.secret(cmd.Context(), in, "New password: ", false)
			if err != nil {
				return err
			}
			if err := c.call(cmd.Context(), http.MethodPut, "/api/v1/account/password", map[string]string{"old": old, "new": fresh}, nil); err != nil {
				return err
			}
			return a.say("The password is changed, and your other logins have ended; API tokens and SSH keys stay.")
		}}
}

// remember checks the token, picks the workspace and writes the profile.
func (a *app) remember(ctx context.Context, c *client) error {
	var me struct{ Email string }
	if err := c.call(ctx, http.MethodGet, "/api/v1/account", nil, &me); err != nil {
		return err
	}
	var spaces list[workspaceRow]
	if err := c.call(ctx, http.MethodGet, "/api/v1/workspaces", nil, &spaces); err != nil {
		return err
	}
	c.Email, c.Workspace = me.Email, a.workspace
	for _, w := range spaces.Items {
		if c.Workspace == "" && (w.Name != "library" || len(spaces.Items) == 1) {
			c.Workspace = w.Name
		}
	}
	name, err := a.save(c.profile)
	if err != nil {
		return fmt.Errorf("remember login: %w", err)
	}
	return a.say(fmt.Sprintf("Logged in to %s as %s, workspace %s (kept in %s).", c.URL, me.Email, or(c.Workspace, "none yet"), name))
}

func (a *app) logoutCommand() *cobra.Command {
	return &cobra.Command{Use: "logout", Short: "Forget the login on this machine", Args: args(0, 0, "no argument"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			name, err := a.profilePath()
			if err != nil {
				return err
			}
			if c, err := a.connect(); err == nil && strings.HasPrefix(c.Token, "rgs_") { // a session ends, with what was opened by it; a token may have other uses
				if err := c.call(cmd.Context(), http.MethodDelete, "/api/v1/login", nil, nil); err != nil {
					fmt.Fprintf(a.errOut, "The session on the server could not be ended (%v); it ends by itself within 14 days.\n", err)
				}
			}
			if err := os.Remove(name); err != nil && !errors.Is(err, os.ErrNotExist) {
				return err
			}
			return a.say("Logged out.")
		}}
}

func or(s, other string) string {
	if s == "" {
		return other
	}
	return s
}
