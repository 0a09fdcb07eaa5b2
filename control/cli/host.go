package cli

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/remotegpu/remotegpu/control/progress"
)

type hostRow struct {
	ID        string            `json:"id"`
	Name      string            `json:"name"`
	Status    string            `json:"status"`
	Health    string            `json:"health"`
	State     string            `json:"state"`
	OS        string            `json:"os"`
	OSVersion string            `json:"os_version"`
	Arch      string            `json:"arch"`
	Agent     string            `json:"agent"`
	CPUs      int               `json:"cpus"`
	Memory    uint64            `json:"memory"`
	GPUs      []gpuRow          `json:"gpus"`
	Labels    map[string]string `json:"labels"`
	LastSeen  *time.Time        `json:"last_seen"`
}

// gpus says "8 × NVIDIA H100 (3 free)".
func (h hostRow) gpus() string {
	if len(h.GPUs) == 0 {
		return "none"
	}
	count, free := map[string]int{}, 0
	var order []string
	for _, g := range h.GPUs {
		if count[g.Name]++; count[g.Name] == 1 {
			order = append(order, g.Name)
		}
		if g.Status == "available" {
			free++
		}
	}
	parts := make([]string, len(order))
	for i, name := range order {
		parts[i] = fmt.Sprintf("%d × %s", count[name], name)
	}
	return fmt.Sprintf("%s (%d free)", strings.Join(parts, ", "), free)
}

// life says "online", or "online, cordoned" where its state says more.
func (h hostRow) life() string {
	if h.State == "active" || h.State == h.Status {
		return h.Status
	}
	return h.Status + ", " + h.State
}

func (a *app) hostCommand() *cobra.Command {
	verbs := []struct{ use, path, short, done string }{
		{"approve", "approve", "Let a host in that joined with a token that asks for approval", "is approved"},
		{"cordon", "cordon", "Place nothing new on a host", "is cordoned"},
		{"uncordon", "uncordon", "Place on a host again", "takes environments again"},
		{"drain", "drain", "Cordon a host and stop what runs there", "drains"},
		{"maintenance", "maintenance", "Cordon a host and stop what runs there, until activate", "is in maintenance"},
		{"activate", "activate", "Bring a host back from maintenance or drain; what was stopped starts", "is active"},
		{"retire", "retire", "Remove a host from the fleet for good", "is retired"},
	}
	commands := []*cobra.Command{a.hostList(), a.hostShow(), a.hostJoin(), a.hostTokens(), a.hostRevoke(), a.hostLabel(), a.hostEvents(),
		a.hostWords("group", "groups"), a.hostWords("tag", "tags"), a.hostGPU()}
	for _, v := range verbs {
		commands = append(commands, &cobra.Command{Use: v.use + " HOST", Short: v.short, Args: args(1, 1, "a host"),
			RunE: func(cmd *cobra.Command, args []string) error {
				return a.post(cmd, hostPath(args[0], v.path), nil, "Host "+args[0]+" "+v.done+".")
			}})
	}
	return group("host", "GPU hosts (platform admins)", commands...)
}

func hostPath(host string, more ...string) string {
	return strings.Join(append([]string{"/api/v1/hosts", url.PathEscape(host)}, more...), "/")
}

func (a *app) hostList() *cobra.Command {
	cmd := &cobra.Command{Use: "ls", Short: "List hosts", Args: args(0, 0, "no argument")}
	status := cmd.Flags().String("status", "", "only these: online, offline, maintenance, error")
	text := cmd.Flags().String("search", "", "only those whose name, address or GPU has this text")
	label := cmd.Flags().String("label", "", "only those with this label: key=value, or key")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		query := url.Values{}
		for k, v := range map[string]string{"status": *status, "search": *text, "label": *label} {
			if v != "" {
				query.Set(k, v)
			}
		}
		all, err := a.hosts(cmd.Context(), query)
		if err != nil {
			return err
		}
		return a.show(all, func(w io.Writer) {
			row(w, "NAME", "STATUS", "HEALTH", "GPUS", "CPUS", "MEMORY", "SYSTEM", "SEEN")
			for _, h := range all.Items {
				row(w, h.Name, h.life(), h.Health, h.gpus(), h.CPUs, progress.Size(h.Memory), or(h.OSVersion, h.OS)+" "+h.Arch, ago(h.LastSeen))
			}
		})
	}
	return cmd
}

// hosts returns all hosts that query asks for, page by page.
func (a *app) hosts(ctx context.Context, query url.Values) (all list[hostRow], err error) {
	const most = 1000
	query.Set("limit", strconv.Itoa(most))
	all.Items = []hostRow{}
	c, err := a.connect()
	for err == nil {
		var page list[hostRow]
		err = c.call(ctx, http.MethodGet, "/api/v1/hosts?"+query.Encode(), nil, &page)
		all.Items = append(all.Items, page.Items...)
		if len(page.Items) < most {
			break
		}
		query.Set("after", page.Items[most-1].Name)
	}
	return all, err
}

func (a *app) hostShow() *cobra.Command {
	return &cobra.Command{Use: "show HOST", Short: "Everything about a host, as JSON", Args: args(1, 1, "a host"),
		RunE: func(cmd *cobra.Command, args []string) error {
			a.output = "json"
			return fetch(a, cmd, hostPath(args[0]), func(io.Writer, any) {})
		}}
}

func (a *app) hostJoin() *cobra.Command {
	cmd := &cobra.Command{Use: "join", Short: "Print the line that makes a machine a host", Args: args(0, 0, "no argument"),
		Long:    "Makes a join token and prints the line to run on the GPU machine, as root.\nThe token is shown once.",
		Example: "  remotegpu host join\n  remotegpu host join --uses 20 --hours 2 --approve --label region=lab"}
	f := cmd.Flags()
	uses := f.Int("uses", 1, "how many hosts may join with it")
	hours := f.Int("hours", 24, "hours until it expires")
	approve := f.Bool("approve", false, "each host waits until an admin approves it")
	labels := f.StringToString("label", nil, "labels for hosts that join with it: `KEY=VALUE`")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		c, err := a.connect()
		if err != nil {
			return err
		}
		in := map[string]any{"uses": *uses, "hours": *hours, "approval": *approve, "labels": *labels}
		var out struct {
			ID      string `json:"id"`
			Token   string `json:"token"`
			Command string `json:"command"`
		}
		if err := c.call(cmd.Context(), http.MethodPost, "/api/v1/join-tokens", in, &out); err != nil {
			return err
		}
		return a.show(out, func(w io.Writer) { fmt.Fprintln(w, out.Command) })
	}
	return cmd
}

func (a *app) hostLabel() *cobra.Command {
	return &cobra.Command{Use: "label HOST KEY=VALUE...", Short: "Set labels; KEY= removes one", Args: args(2, -1, "a host and labels"),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.connect()
			if err != nil {
				return err
			}
			var h hostRow
			if err := c.call(cmd.Context(), http.MethodGet, hostPath(args[0]), nil, &h); err != nil {
				return err
			}
			labels := map[string]string{}
			for k, v := range h.Labels {
				labels[k] = v
			}
			for _, pair := range args[1:] {
				k, v, ok := strings.Cut(pair, "=")
				if !ok {
					return usageError{fmt.Errorf("%q is no label; write KEY=VALUE", pair)}
				}
				if labels[k] = v; v == "" {
					delete(labels, k)
				}
			}
			if err := c.call(cmd.Context(), http.MethodPatch, hostPath(args[0]), map[string]any{"labels": labels}, nil); err != nil {
				return err
			}
			return a.say("Host " + args[0] + " now has " + count(len(labels), "label") + ".")
		}}
}

// hostWords sets one of a host's lists of words.
func (a *app) hostWords(use, list string) *cobra.Command {
	return &cobra.Command{Use: use + " HOST [" + strings.ToUpper(use) + "...]", Short: "Set the " + list + " of a host; none removes all", Args: args(1, -1, "a host"),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.connect()
			if err != nil {
				return err
			}
			if err := c.call(cmd.Context(), http.MethodPatch, hostPath(args[0]), map[string][]string{list: args[1:]}, nil); err != nil {
				return err
			}
			return a.say("Host " + args[0] + " now has " + count(len(args)-1, use) + ".")
		}}
}

func (a *app) hostTokens() *cobra.Command {
	return &cobra.Command{Use: "tokens", Short: "List join tokens", Args: args(0, 0, "no argument"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return fetch(a, cmd, "/api/v1/join-tokens", func(w io.Writer, all list[joinRow]) {
				row(w, "ID", "USED", "EXPIRES", "APPROVAL", "REVOKED")
				for _, t := range all.Items {
					row(w, t.ID, fmt.Sprintf("%d of %d", t.Used, t.Uses), t.ExpiresAt.Local().Format("2006-01-02 15:04"), t.Approval, t.Revoked)
				}
			})
		}}
}

func (a *app) hostRevoke() *cobra.Command {
	return &cobra.Command{Use: "revoke ID", Short: "Revoke a join token; hosts that joined with it stay", Args: args(1, 1, "an id from host tokens"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.remove(cmd, "/api/v1/join-tokens/"+url.PathEscape(args[0]), "Join token revoked.")
		}}
}

func (a *app) schedulerCommand() *cobra.Command {
	return &cobra.Command{Use: "scheduler [STRATEGY]", Short: "How hosts are chosen (platform admins)", Args: args(0, 1, "at most one strategy"),
		Long: "Shows or sets the strategy by which hosts are chosen: first_fit, best_fit, least_loaded, round_robin or random.",
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.connect()
			if err != nil {
				return err
			}
			var s struct {
				Strategy string `json:"strategy"`
			}
			method, in := http.MethodGet, any(nil)
			if len(args) == 1 {
				method, in = http.MethodPut, map[string]string{"strategy": args[0]}
			}
			if err := c.call(cmd.Context(), method, "/api/v1/scheduler", in, &s); err != nil {
				return err
			}
			return a.show(s, func(w io.Writer) { fmt.Fprintln(w, s.Strategy) })
		}}
}

type joinRow struct {
	ID        string    `json:"id"`
	Uses      int       `json:"uses"`
	Used      int       `json:"used"`
	ExpiresAt time.Time `json:"expires_at"`
	Approval  bool      `json:"approval"`
	Revoked   bool      `json:"revoked"`
}

type eventRow struct {
	At       time.Time `json:"at"`
	Severity string    `json:"severity"`
	Reason   string    `json:"reason"`
	Message  string    `json:"message"`
}

func printEvents(w io.Writer, all list[eventRow]) {
	row(w, "TIME", "SEVERITY", "REASON", "MESSAGE")
	for _, e := range all.Items {
		row(w, e.At.Local().Format("2006-01-02 15:04:05"), e.Severity, e.Reason, e.Message)
	}
}

func (a *app) hostEvents() *cobra.Command {
	return &cobra.Command{Use: "events HOST", Short: "What happened on a host", Args: args(1, 1, "a host"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return fetch(a, cmd, hostPath(args[0], "events"), printEvents)
		}}
}

// gpuRow is a GPU as the API shows it.
type gpuRow struct {
	UUID        string `json:"uuid"`
	Index       int    `json:"index"`
	Name        string `json:"name"`
	Memory      uint64 `json:"memory"`
	Status      string `json:"status"`
	Health      string `json:"health"`
	Environment string `json:"environment"`
}

func (a *app) hostGPU() *cobra.Command {
	return group("gpu", "GPUs of a host", a.gpuList(),
		a.gpuMove("maintenance", "Give a GPU to nobody new; who has it keeps it", true, "is in maintenance"),
		a.gpuMove("activate", "Let a GPU be given again", false, "may be given again"))
}

func (a *app) gpuList() *cobra.Command {
	return &cobra.Command{Use: "ls HOST", Short: "List the GPUs of a host", Args: args(1, 1, "a host"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return fetch(a, cmd, hostPath(args[0]), func(w io.Writer, h struct {
				GPUs []gpuRow `json:"gpus"`
			}) {
				row(w, "INDEX", "UUID", "NAME", "MEMORY", "STATUS", "HEALTH", "ENVIRONMENT")
				for _, g := range h.GPUs {
					row(w, g.Index, g.UUID, g.Name, progress.Size(g.Memory), g.Status, g.Health, g.Environment)
				}
			})
		}}
}

func (a *app) gpuMove(verb, short string, maintenance bool, done string) *cobra.Command {
	return &cobra.Command{Use: verb + " HOST GPU", Short: short, Args: args(2, 2, "a host and a GPU: its index or UUID"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.send(cmd, http.MethodPatch, hostPath(args[0], "gpus", url.PathEscape(args[1])), map[string]bool{"maintenance": maintenance},
				"GPU "+args[1]+" of host "+args[0]+" "+done+".")
		}}
}
