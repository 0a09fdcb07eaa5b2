package cli

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/remotegpu/remotegpu/control/progress"
	"github.com/remotegpu/remotegpu/protocol/scrollback"
)

type policyRow struct {
	Mode     string `json:"mode"`
	KeepDays int    `json:"keep_days"`
}

type recordingRow struct {
	ID              string     `json:"id"`
	EnvironmentName string     `json:"environment_name"`
	UserName        string     `json:"user_name"`
	Via             string     `json:"via"`
	StartedAt       time.Time  `json:"started_at"`
	EndedAt         *time.Time `json:"ended_at"`
	Cut             bool       `json:"cut"`
	Bytes           uint64     `json:"bytes"`
}

// length says how long a recording is.
func (r recordingRow) length() string {
	switch {
	case r.EndedAt == nil:
		return "runs"
	case r.Cut:
		return r.EndedAt.Sub(r.StartedAt).Round(time.Second).String() + ", cut"
	}
	return r.EndedAt.Sub(r.StartedAt).Round(time.Second).String()
}

func (a *app) recordingCommand() *cobra.Command {
	cmd := group("recording", "What was on terminals, where a workspace keeps that", a.recordingListCommand(), a.recordingPolicyCommand())
	cmd.Long = "Recordings show what people's terminals showed, never what they typed. A\nworkspace records nothing until an admin of it says so."
	cmd.Example = "  remotegpu recording policy terminal --keep 90\n  remotegpu recording ls\n  remotegpu play rec_…"
	return cmd
}

// chain is what remotegpu audit verify has seen of the audit log.
type chain struct {
	Entries  int64      `json:"entries"`
	From     *time.Time `json:"from,omitempty"`
	To       *time.Time `json:"to,omitempty"`
	Head     string     `json:"head"`
	Damage   string     `json:"damage,omitempty"`
	Expected *bool      `json:"expected,omitempty"` // the hash given is in it; nil: none was
}

func (a *app) auditCommand() *cobra.Command {
	verify := &cobra.Command{Use: "verify", Short: "Verify the chain of the audit log (platform admins)", Args: args(0, 0, "no argument"),
		Long: `Walks the whole audit log, in which each entry has a hash over itself and all
before it, and fails where one was changed, removed or slipped in.

What was cut off at its end, and a chain that somebody who can write to the
database has made anew, shows only against a hash from before: keep the head that
is printed somewhere else (the server's log has one every hour), and give it with
--expect the next time.`,
		Example: "  remotegpu audit verify\n  remotegpu audit verify --expect 0c9f…"}
	expect := verify.Flags().String("expect", "", "a head of before, which must still be in the chain")
	verify.RunE = func(cmd *cobra.Command, _ []string) error {
		c, err := a.connect()
		if err != nil {
			return err
		}
		all, err := c.verifyAudit(cmd.Context(), *expect)
		if err != nil {
			return err
		}
		err = a.show(all, func(w io.Writer) {
			row(w, "ENTRIES", "FROM", "TO", "HEAD")
			row(w, all.Entries, moment(all.From), moment(all.To), or(all.Head, "-"))
		})
		switch {
		case err != nil:
			return err
		case all.Damage != "":
			return fmt.Errorf("the audit log is damaged: %s", all.Damage)
		case all.Expected != nil && !*all.Expected:
			return fmt.Errorf("the chain fits together, but no entry has the hash %s: entries are gone from its end, or the chain was made anew since", *expect)
		}
		return nil
	}
	return group("audit", "Who did what (platform admins)", verify)
}

// verifyAudit has the chain walked part by part.
func (c *client) verifyAudit(ctx context.Context, expect string) (all chain, err error) {
	found, place := false, int64(0)
	for more := true; more; {
		var part struct {
			Entries, Place int64
			From, To       *time.Time
			Hash, Damage   string
			Found, More    bool
		}
		q := url.Values{"after": {strconv.FormatInt(place, 10)}, "hash": {all.Head}, "expect": {expect}}
		if err := c.call(ctx, http.MethodGet, "/api/v1/audit/verify?"+q.Encode(), nil, &part); err != nil {
			return all, err
		}
		if all.From == nil {
			all.From = part.From
		}
		if part.To != nil {
			all.To = part.To
		}
		all.Entries, all.Head, all.Damage = all.Entries+part.Entries, part.Hash, part.Damage
		found, place, more = found || part.Found, part.Place, part.More
	}
	if expect != "" {
		all.Expected = &found
	}
	return all, nil
}

func (a *app) recordingListCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "ls", Short: "List recordings, newest first", Args: args(0, 0, "no argument")}
	env := cmd.Flags().String("env", "", "of this environment alone")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		c, err := a.connect()
		if err != nil {
			return err
		}
		return fetch(a, cmd, c.in("recordings")+"?environment="+url.QueryEscape(*env), func(w io.Writer, all list[recordingRow]) {
			row(w, "ID", "ENVIRONMENT", "USER", "VIA", "STARTED", "LENGTH", "SIZE")
			for _, r := range all.Items {
				row(w, r.ID, r.EnvironmentName, r.UserName, r.Via, r.StartedAt.Local().Format("2006-01-02 15:04:05"), r.length(), progress.Size(r.Bytes))
			}
		})
	}
	return cmd
}

func (a *app) recordingPolicyCommand() *cobra.Command {
	var keep int
	cmd := &cobra.Command{
		Use: "policy [off|terminal|all]", Short: "Show or change what the workspace records",
		Long: `Show what the workspace records, or change it for sessions that begin from now on.

  off       nothing
  terminal  sessions with a terminal
  all       also commands without one, and a line per file that goes by SFTP`,
		Args: args(0, 1, "at most one mode"),
		RunE: func(cmd *cobra.Command, got []string) error {
			c, err := a.connect()
			if err != nil {
				return err
			}
			var p policyRow
			if err := c.call(cmd.Context(), http.MethodGet, c.in("recording"), nil, &p); err != nil {
				return err
			}
			if len(got) == 1 || cmd.Flags().Changed("keep") {
				if len(got) == 1 {
					p.Mode = got[0]
				}
				if cmd.Flags().Changed("keep") {
					p.KeepDays = keep
				}
				if err := c.call(cmd.Context(), http.MethodPut, c.in("recording"), p, nil); err != nil {
					return err
				}
			}
			return a.show(p, func(w io.Writer) {
				row(w, "MODE", "KEPT FOR")
				row(w, p.Mode, strconv.Itoa(p.KeepDays)+" days")
			})
		},
	}
	cmd.Flags().IntVar(&keep, "keep", 0, "days until a recording is deleted")
	return cmd
}

func (a *app) playCommand() *cobra.Command {
	var p player
	cmd := &cobra.Command{
		Use: "play RECORDING", Short: "Play a recording in this terminal",
		Long:    "Plays a recording in this terminal, at the speed at which it happened. With\n--raw it prints the asciicast v2 file, which other players take too.",
		Example: "  remotegpu play rec_… --speed 4\n  remotegpu play rec_… --raw > session.cast",
		Args:    args(1, 1, "a recording"),
		RunE: func(cmd *cobra.Command, got []string) error {
			c, err := a.connect()
			if err != nil {
				return err
			}
			file, err := c.download(cmd.Context(), c.in("recordings", got[0]))
			if err != nil {
				return err
			}
			defer file.Close()
			if p.raw {
				_, err = io.Copy(a.out, file)
				return err
			}
			return p.play(cmd.Context(), a.out, file)
		},
	}
	cmd.Flags().Float64Var(&p.speed, "speed", 1, "how many times as fast")
	cmd.Flags().DurationVar(&p.idle, "idle", 2*time.Second, "longest wait where nothing happened")
	cmd.Flags().BoolVar(&p.raw, "raw", false, "print the asciicast file")
	return cmd
}

// player shows an asciicast v2 file.
type player struct {
	speed float64
	idle  time.Duration
	raw   bool
}

func (p player) play(ctx context.Context, w io.Writer, file io.Reader) error {
	if p.speed <= 0 {
		return usageError{fmt.Errorf("--speed %v: it must be above zero", p.speed)}
	}
	in := bufio.NewScanner(file)
	in.Buffer(nil, 16<<20)
	if !in.Scan() {
		return fmt.Errorf("the recording is empty: %w", in.Err())
	}
	var last float64
	var shown scrollback.Filter // for what asked the terminal of then, and anybody could be recorded
	for in.Scan() {
		var event [3]any
		if err := json.Unmarshal(in.Bytes(), &event); err != nil {
			return fmt.Errorf("the recording is damaged: %w", err)
		}
		at, _ := event[0].(float64)
		kind, _ := event[1].(string)
		data, _ := event[2].(string)
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(min(p.idle, time.Duration((at-last)/p.speed*float64(time.Second)))):
		}
		last = at
		if kind != "o" {
			continue
		}
		if _, err := w.Write(shown.Append(nil, []byte(data))); err != nil {
			return err
		}
	}
	return in.Err()
}
