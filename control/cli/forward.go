package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/remotegpu/remotegpu/control/forward"
	"github.com/remotegpu/remotegpu/protocol"
)

type forwardRow struct {
	Local       string `json:"local"`
	Network     string `json:"network"` // of the local end
	Target      string `json:"target"`
	Environment string `json:"environment"`
}

func (a *app) forwardCommand() *cobra.Command {
	return &cobra.Command{
		Use: "forward ENV PORT...", Short: "Reach ports of an environment on this machine",
		Long: `Listen on 127.0.0.1 and carry what comes to an environment, over the server's
HTTPS port, until it is interrupted. A port is one of

  8888              port 8888 of the environment, here too
  8080:80           its port 80, here 8080; 0 is any port that is free
  5432:db:5432      what the environment calls db
  53:53/udp         UDP
  9000:/run/a.sock  a unix socket in it`,
		Example: "  remotegpu forward my-env 8888 6006\n  remotegpu forward my-env 5432:db:5432",
		Args:    args(2, -1, "an environment and ports"),
		RunE: func(cmd *cobra.Command, got []string) error {
			specs := make([]forward.Spec, 0, len(got)-1)
			for _, text := range got[1:] {
				s, err := forward.Parse(text)
				if err != nil {
					return usageError{err}
				}
				specs = append(specs, s)
			}
			return a.forward(cmd.Context(), got[0], specs)
		},
	}
}

func (a *app) forward(ctx context.Context, name string, specs []forward.Spec) error {
	c, err := a.connect()
	if err != nil {
		return err
	}
	var env envRow
	if err := c.call(ctx, http.MethodGet, c.environment(name), nil, &env); err != nil {
		return err
	}
	all, err := forward.Listen(specs)
	if err != nil {
		return err
	}
	way := a.way(c, name)
	if env.Phase != "running" {
		way.say(fmt.Sprintf("environment %s is %s; what is forwarded works once it runs", env.Name, env.Phase))
	}
	rows := make([]forwardRow, len(all))
	for i, l := range all {
		rows[i] = forwardRow{Local: l.Local(), Network: "tcp", Target: l.Target.Address, Environment: env.Name}
		if l.Target.Network == protocol.NetworkUDP {
			rows[i].Network = "udp"
		}
	}
	err = a.show(rows, func(w io.Writer) {
		row(w, "HERE", "KIND", "IN "+strings.ToUpper(env.Name))
		for _, r := range rows {
			row(w, r.Local, r.Network, r.Target)
		}
	})
	if err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	for _, l := range all {
		g.Go(func() error { return l.Serve(ctx, forward.Config{Dial: way.dial, Say: way.say, Lost: way.broke}) })
	}
	return g.Wait()
}

// way leads to one environment. It outlives restarts of the server: a new
// connection waits a while for it.
type way struct {
	*client
	env    string
	errOut io.Writer

	mu   sync.Mutex // guards lost and the order of lines
	lost time.Time  // when the server was last seen away; zero: it is there
}

func (a *app) way(c *client, env string) *way { return &way{client: c, env: env, errOut: a.errOut} }

func (w *way) say(line string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	fmt.Fprintln(w.errOut, "remotegpu:", line)
}

const (
	patience = 15 * time.Second // of a program whose connection waits for the server
	settling = 20 * time.Second // after it is back, until hosts are too
)

// dial connects with t in the environment.
func (w *way) dial(ctx context.Context, t protocol.Target) (forward.Stream, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for wait := 200 * time.Millisecond; ; wait = min(2*wait, 2*time.Second) {
		conn, err := w.dialOnce(ctx, t)
		if err == nil || !w.passes(err) {
			return conn, err
		}
		select {
		case <-ctx.Done():
			return nil, err
		case <-time.After(wait):
		}
	}
}

func (w *way) dialOnce(ctx context.Context, t protocol.Target) (forward.Stream, error) {
	q := url.Values{"network": {t.Network}, "address": {t.Address}}
	conn, err := w.client.dial(ctx, w.environment(w.env, "dial")+"?"+q.Encode())
	if err != nil {
		return nil, err
	}
	w.back()
	return conn, nil
}

// passes notes an error that may pass by itself: the server is away, or is
// back and does not have its hosts yet.
func (w *way) passes(err error) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	var p *problem
	if errors.As(err, &p) {
		return p.Status == http.StatusServiceUnavailable && time.Since(w.lost) < settling || p.Status == http.StatusBadGateway
	}
	if w.lost.IsZero() {
		fmt.Fprintf(w.errOut, "remotegpu: %v; new connections wait for it\n", err)
	}
	w.lost = time.Now()
	return true
}

// broke says that a connection was cut.
func (w *way) broke(err error) {
	w.say(fmt.Sprintf("a connection to %s was cut (%v); new ones work as soon as the way is free", w.env, err))
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.lost.IsZero() {
		w.lost = time.Now()
	}
}

func (w *way) back() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.lost.IsZero() {
		fmt.Fprintln(w.errOut, "remotegpu: connections to", w.env, "work again")
	}
	w.lost = time.Time{}
}
