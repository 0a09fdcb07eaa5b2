package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/remotegpu/remotegpu/control/progress"
	"github.com/remotegpu/remotegpu/control/terminal"
	"github.com/remotegpu/remotegpu/protocol"
	"github.com/remotegpu/remotegpu/protocol/resume"
)

type liveSession struct {
	ID       string    `json:"id"`
	Owner    string    `json:"owner"`
	Since    time.Time `json:"since"`
	Attached bool      `json:"attached"`
	Others   int       `json:"others"`
	Share    string    `json:"share"`
	Program  string    `json:"program"`
	Terminal bool      `json:"terminal"`
	Mine     bool      `json:"mine"`
}

// holding is how a session is to be kept.
type holding struct {
	keep  time.Duration
	share string
}

func (h *holding) flags(cmd *cobra.Command) {
	cmd.Flags().DurationVar(&h.keep, "keep", resume.Keep, "how long the program runs on without a client")
	cmd.Flags().StringVar(&h.share, "share", "", "what other members may do in the session: none, watch or write")
}

func (h *holding) check() error {
	switch {
	case h.share != "" && h.share != protocol.ShareNone && h.share != protocol.ShareWatch && h.share != protocol.ShareWrite:
		return usageError{fmt.Errorf("--share %s: use none, watch or write", h.share)}
	case h.keep < time.Second || h.keep > protocol.MaxKeep*time.Second:
		return usageError{fmt.Errorf("--keep %v: use 1s to %v", h.keep, protocol.MaxKeep*time.Second)}
	}
	return nil
}

func (a *app) attachCommand() *cobra.Command {
	var h holding
	var watch bool
	cmd := &cobra.Command{
		Use: "attach ENV [SESSION]", Short: "Go on with a session, or watch one that is shared",
		Long: `Goes on with a session that runs in an environment. One's own is taken over from the
client where it was; one that somebody else shares is watched, or typed into as well.

At the beginning of a line, ~d leaves the session running and ~. ends it (or, for
somebody else's, leaves it).`,
		Example: "  remotegpu attach my-env\n  remotegpu attach my-env ses_… --watch",
		Args:    args(1, 2, "an environment"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := h.check(); err != nil {
				return err
			}
			cfg := terminal.Config{Share: h.share, Keep: h.keep}
			if watch {
				cfg.Mode = protocol.ModeWatch
			}
			return a.attach(cmd.Context(), args[0], strings.Join(args[1:], ""), cfg)
		},
	}
	h.flags(cmd)
	cmd.Flags().BoolVar(&watch, "watch", false, "only watch")
	return cmd
}

func (a *app) attach(ctx context.Context, env, session string, cfg terminal.Config) error {
	c, err := a.connect()
	if err != nil {
		return err
	}
	if session != "" && !protocol.ValidID(protocol.PrefixSession, session) {
		return usageError{fmt.Errorf("%q is no session; it looks like ses_…, see: remotegpu sessions %s", session, env)}
	}
	if cfg.Session = session; session == "" {
		all, err := c.sessions(ctx, env)
		if err != nil {
			return err
		}
		if cfg.Session, err = only(env, all); err != nil {
			return err
		}
	}
	err = a.hold(ctx, c, env, cfg)
	var unopened *terminal.Unopened
	if errors.As(err, &unopened) {
		return a.cannot(err)
	}
	return err
}

// only returns the session that is meant when none is named: one's own, or the
// only one that is shared.
func only(env string, all []liveSession) (string, error) {
	var own, others []liveSession
	for _, s := range all {
		switch {
		case !s.Terminal:
		case s.Mine:
			own = append(own, s)
		default:
			others = append(others, s)
		}
	}
	if len(own) == 0 {
		own = others
	}
	switch len(own) {
	case 0:
		return "", fmt.Errorf("no session that you may attach to runs in %s; start one: remotegpu ssh %s", env, env)
	case 1:
		return own[0].ID, nil
	}
	return "", fmt.Errorf("%d sessions run in %s; name one, see: remotegpu sessions %s", len(own), env, env)
}

func (a *app) sessionsCommand() *cobra.Command {
	return &cobra.Command{
		Use: "sessions ENV", Short: "Sessions that one can attach to", Args: args(1, 1, "an environment"),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.connect()
			if err != nil {
				return err
			}
			all, err := c.sessions(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			return a.show(all, func(w io.Writer) {
				row(w, "ID", "OWNER", "SINCE", "ATTACHED", "OTHERS", "SHARED", "PROGRAM")
				for _, s := range all {
					row(w, s.ID, s.Owner, s.Since.Local().Format(time.DateTime), s.Attached, s.Others, s.Share, s.Program)
				}
			})
		},
	}
}

func (c *client) sessions(ctx context.Context, env string) ([]liveSession, error) {
	var list struct {
		Items []liveSession `json:"items"`
	}
	err := c.call(ctx, http.MethodGet, c.environment(env, "sessions"), nil, &list)
	return list.Items, err
}

// hold runs a session that survives, at this terminal.
func (a *app) hold(ctx context.Context, c *client, env string, cfg terminal.Config) error {
	cfg.Dial = func(ctx context.Context, q url.Values) (io.ReadWriteCloser, error) {
		return c.dialTerminal(ctx, c.environment(env, "terminal")+"?"+q.Encode())
	}
	cfg.Stdin, cfg.Stdout, cfg.Stderr = os.Stdin, a.out, a.errOut
	if (cfg.Open == nil || cfg.Open.Term != "") && term.IsTerminal(int(os.Stdin.Fd())) {
		cfg.TTY, cfg.Stdin = os.Stdin, terminal.Keys(os.Stdin)
	}
	signal.Ignore(syscall.SIGPIPE) // whose output nobody reads ends over there as well, instead of being kept
	exit, err := terminal.Run(ctx, cfg)
	var unopened *terminal.Unopened
	switch {
	case errors.Is(err, syscall.EPIPE):
		return exitStatus(128 + int(syscall.SIGPIPE))
	case err == nil && exit.Message != "":
		fmt.Fprintln(a.errOut, "remotegpu: "+progress.Plain(exit.Message))
	case errors.Is(err, terminal.ErrDetached):
		fmt.Fprintf(a.errOut, "remotegpu: the session runs on; go back to it with: remotegpu attach %s %s\n", env, cfg.Session)
		return nil
	case errors.Is(err, terminal.ErrLeft):
		return exitStatus(255)
	case errors.As(err, &unopened):
		return err
	case err != nil:
		return a.cannot(err)
	}
	if exit.Code == 0 {
		return nil
	}
	return exitStatus(exit.Code)
}

// cannot says why there is no session, as ssh does: with status 255.
func (a *app) cannot(err error) error {
	fmt.Fprintln(a.errOut, "remotegpu:", progress.Plain(err.Error()))
	return exitStatus(255)
}

// shell runs a session that survives or, where only those are allowed that end
// with their connection, such a one.
func (a *app) shell(ctx context.Context, env, command string, tty bool, h holding) error {
	c, err := a.connect()
	if err != nil {
		return err
	}
	open := &protocol.SessionOpen{Command: command}
	if tty {
		open.Term = termName()
	}
	for try := 0; ; try++ {
		err := a.hold(ctx, c, env, terminal.Config{Session: protocol.NewID(protocol.PrefixSession), Open: open, Keep: h.keep, Share: h.share})
		var unopened *terminal.Unopened
		var p *problem
		switch {
		case !errors.As(err, &unopened):
			return err
		case errors.As(err, &p) && p.Status == http.StatusForbidden: // the gateway knows who may, and records
			return a.ssh(ctx, env, command, tty)
		case try == 0 && errors.As(err, &p) && p.Status == http.StatusServiceUnavailable && a.comesUp(ctx, c, env):
		default:
			return a.cannot(err)
		}
	}
}

const comesUpLimit = 2 * time.Minute

// comesUp waits for an environment that is starting, or has just done so.
func (a *app) comesUp(ctx context.Context, c *client, env string) bool {
	deadline, said := time.Now().Add(comesUpLimit), false
	for time.Now().Before(deadline) && ctx.Err() == nil {
		var e struct {
			Name    string `json:"name"`
			Phase   string `json:"phase"`
			Message string `json:"message"`
		}
		if err := c.call(ctx, http.MethodGet, c.environment(env), nil, &e); err != nil {
			return false
		}
		switch e.Phase {
		case protocol.PhasePending, protocol.PhasePulling, protocol.PhaseStarting:
		default:
			return true // what it is now, the next try says
		}
		if !said {
			fmt.Fprintf(a.errOut, "remotegpu: Environment %s is %s; waiting for it.\n", e.Name, e.Phase)
			if e.Message != "" {
				fmt.Fprintln(a.errOut, " ", progress.Plain(e.Message))
			}
			said = true
		}
		time.Sleep(300 * time.Millisecond)
	}
	return false
}

// dialTerminal connects with a session. What the server says of the caller or
// the environment no other try will change; that it cannot right now, one may.
func (c *client) dialTerminal(ctx context.Context, path string) (io.ReadWriteCloser, error) {
	conn, err := c.dial(ctx, path)
	var p *problem
	if errors.As(err, &p) && !p.strange && p.Status < 500 && p.Status != http.StatusTooManyRequests {
		return nil, resume.Final(err)
	} else if err != nil {
		return nil, err
	}
	return conn, nil
}
