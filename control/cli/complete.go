package cli

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// completeWithin is how long a shell waits for the server.
const completeWithin = 2 * time.Second

// arguments complete what usage lines call so. Of a word that means several
// things, the command above it says which.
func (a *app) arguments() map[string]cobra.CompletionFunc {
	return map[string]cobra.CompletionFunc{
		"ENV": a.offer(environmentNames), "HOST": a.offer(hostNames), "ENV|host:NAME": a.offer(environmentOrHost), "SRC": a.places, "DST": a.places,
		"GPU": a.offer(gpuNames), "SESSION": a.offer(sessionNames), "APP": a.offer(appNames), "PORT|NAME": a.offer(appNames), "PORT|jupyter": choices("jupyter"),
		"RECORDING": a.offer(recordingNames), "EMAIL": a.offer(memberNames), "user EMAIL": cobra.NoFileCompletions,
		"token ID": a.offer(tokenNames), "key ID": a.offer(keyNames), "host ID": a.offer(joinNames),
		"STRATEGY": choices("first_fit", "best_fit", "least_loaded", "round_robin", "random"), "off|terminal|all": choices("off", "terminal", "all"),
		"FILE.pub": cobra.FixedCompletions([]cobra.Completion{"pub"}, cobra.ShellCompDirectiveFilterFileExt),
		"FOLDER":   cobra.FixedCompletions(nil, cobra.ShellCompDirectiveFilterDirs),
	}
}

// options complete the values of flags, as arguments do.
func (a *app) options() map[string]cobra.CompletionFunc {
	hosts, models := a.offer(hostNames), a.offer(gpuModels)
	return map[string]cobra.CompletionFunc{
		"output": choices("table", "json"), "workspace": a.offer(workspaceNames), "role": choices("owner", "admin", "member", "viewer"),
		"share": choices("none", "watch", "write"), "restart": choices("always", "on-failure", "never"), "status": choices("online", "offline", "maintenance", "error"),
		"host": hosts, "server host": cobra.NoFileCompletions, "prefer-host": hosts, "gpu-model": models, "prefer-gpu-model": models,
		"recording env": a.offer(environmentNames), "rdp-clipboard": choices("both", "to-host", "from-host", "none"),
	}
}

func pick(words map[string]cobra.CompletionFunc, parent *cobra.Command, word string) cobra.CompletionFunc {
	if parent != nil && words[parent.Name()+" "+word] != nil {
		return words[parent.Name()+" "+word]
	}
	return words[word]
}

// completions gives cmd, and all below it, arguments and options.
func completions(cmd *cobra.Command, arguments, options map[string]cobra.CompletionFunc) {
	register := func(flag *pflag.Flag) {
		if f := pick(options, cmd.Parent(), flag.Name); f != nil {
			_ = cmd.RegisterFlagCompletionFunc(flag.Name, f) // fails only for a flag that is not there, or has one
		}
	}
	cmd.Flags().VisitAll(register)
	cmd.PersistentFlags().VisitAll(register)
	if usage := strings.Fields(cmd.Use)[1:]; len(usage) > 0 {
		cmd.ValidArgsFunction = func(_ *cobra.Command, args []string, begun string) ([]cobra.Completion, cobra.ShellCompDirective) {
			at := len(args)
			if at >= len(usage) && strings.Contains(cmd.Use, "...") {
				at = len(usage) - 1
			}
			if at < len(usage) {
				if f := pick(arguments, cmd.Parent(), plainWord(usage[at])); f != nil {
					return f(cmd, args, begun)
				}
			}
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
	}
	for _, c := range cmd.Commands() {
		completions(c, arguments, options)
	}
}

// plainWord is what [WORD...] names.
func plainWord(usage string) string { return strings.TrimRight(strings.Trim(usage, "[]"), ".") }

func choices(all ...cobra.Completion) cobra.CompletionFunc {
	return cobra.FixedCompletions(all, cobra.ShellCompDirectiveNoFileComp)
}

// lister finds what there is of something; args are the arguments before it.
type lister func(ctx context.Context, c *client, args []string, begun string) ([]cobra.Completion, error)

// offer asks the server. Who is not logged in, or cannot reach it in time, is
// offered nothing and told nothing.
func (a *app) offer(find lister) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, begun string) ([]cobra.Completion, cobra.ShellCompDirective) {
		ctx, cancel := context.WithTimeout(context.Background(), completeWithin)
		defer cancel()
		c, err := a.connect()
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		all, err := find(ctx, c, args, begun)
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		all = slices.DeleteFunc(all, func(word cobra.Completion) bool { return !strings.HasPrefix(word, begun) })
		return all, cobra.ShellCompDirectiveNoFileComp
	}
}

// names makes a word of each item of a list of the API.
func names[T any](ctx context.Context, c *client, path string, word func(T) cobra.Completion) (all []cobra.Completion, err error) {
	var answer list[T]
	if err := c.call(ctx, http.MethodGet, path, nil, &answer); err != nil {
		return nil, err
	}
	for _, item := range answer.Items {
		all = append(all, word(item))
	}
	return all, nil
}

func described(word string, about ...any) cobra.Completion {
	return cobra.CompletionWithDesc(word, strings.TrimSpace(fmt.Sprintln(about...)))
}

// environmentNames has also those of other workspaces, once there is a dot.
func environmentNames(ctx context.Context, c *client, _ []string, begun string) ([]cobra.Completion, error) {
	name, _, dotted := strings.Cut(begun, ".")
	if !dotted {
		return names(ctx, c, c.in("environments"), func(e envRow) cobra.Completion { return described(e.Name, e.Phase) })
	}
	return names(ctx, c, "/api/v1/workspaces", func(w workspaceRow) cobra.Completion { return name + "." + w.Name })
}

func hostNames(ctx context.Context, c *client, _ []string, _ string) ([]cobra.Completion, error) {
	return names(ctx, c, "/api/v1/hosts", func(h hostRow) cobra.Completion { return described(h.Name, h.life()) })
}

func environmentOrHost(ctx context.Context, c *client, args []string, begun string) ([]cobra.Completion, error) {
	if !strings.HasPrefix(begun, "host:") {
		return environmentNames(ctx, c, args, begun)
	}
	return names(ctx, c, "/api/v1/hosts", func(h hostRow) cobra.Completion { return described("host:"+h.Name, h.life()) })
}

// places are files of this machine, and environments.
func (a *app) places(cmd *cobra.Command, args []string, begun string) ([]cobra.Completion, cobra.ShellCompDirective) {
	if strings.ContainsAny(begun, ":/") {
		return nil, cobra.ShellCompDirectiveDefault
	}
	all, _ := a.offer(environmentNames)(cmd, args, begun)
	for i, word := range all {
		name, about, _ := strings.Cut(word, "\t")
		all[i] = cobra.CompletionWithDesc(name+":", about)
	}
	return all, cobra.ShellCompDirectiveNoSpace
}

func workspaceNames(ctx context.Context, c *client, _ []string, _ string) ([]cobra.Completion, error) {
	return names(ctx, c, "/api/v1/workspaces", func(w workspaceRow) cobra.Completion { return w.Name })
}

func memberNames(ctx context.Context, c *client, _ []string, _ string) ([]cobra.Completion, error) {
	return names(ctx, c, c.in("members"), func(m memberRow) cobra.Completion { return described(m.Email, m.Role) })
}

func tokenNames(ctx context.Context, c *client, _ []string, _ string) ([]cobra.Completion, error) {
	return names(ctx, c, "/api/v1/account/tokens", func(t tokenRow) cobra.Completion { return described(t.ID, t.Name) })
}

func keyNames(ctx context.Context, c *client, _ []string, _ string) ([]cobra.Completion, error) {
	return names(ctx, c, "/api/v1/account/keys", func(k keyRow) cobra.Completion { return described(k.ID, k.Name) })
}

func joinNames(ctx context.Context, c *client, _ []string, _ string) ([]cobra.Completion, error) {
	return names(ctx, c, "/api/v1/join-tokens", func(j joinRow) cobra.Completion { return described(j.ID, j.Used, "of", j.Uses, "used") })
}

func recordingNames(ctx context.Context, c *client, _ []string, _ string) ([]cobra.Completion, error) {
	return names(ctx, c, c.in("recordings"), func(r recordingRow) cobra.Completion { return described(r.ID, r.EnvironmentName, r.UserName) })
}

func sessionNames(ctx context.Context, c *client, args []string, _ string) ([]cobra.Completion, error) {
	return names(ctx, c, c.environment(args[0], "sessions"), func(s liveSession) cobra.Completion { return described(s.ID, s.Owner, s.Program) })
}

func appNames(ctx context.Context, c *client, args []string, _ string) ([]cobra.Completion, error) {
	name, ws := c.whose(args[0])
	all, err := names(ctx, c, inWorkspace(ws, []string{"apps"}), func(r appRow) cobra.Completion {
		if r.EnvironmentName != name {
			return ""
		}
		return r.Name
	})
	return slices.DeleteFunc(all, func(word cobra.Completion) bool { return word == "" }), err
}

func gpuNames(ctx context.Context, c *client, args []string, _ string) (all []cobra.Completion, err error) {
	var h hostRow
	err = c.call(ctx, http.MethodGet, hostPath(args[0]), nil, &h)
	for _, g := range h.GPUs {
		all = append(all, described(g.UUID, g.Name))
	}
	return all, err
}

func gpuModels(ctx context.Context, c *client, _ []string, _ string) (all []cobra.Completion, err error) {
	var hosts list[hostRow]
	err = c.call(ctx, http.MethodGet, "/api/v1/hosts", nil, &hosts)
	for _, h := range hosts.Items {
		for _, g := range h.GPUs {
			all = append(all, g.Name)
		}
	}
	slices.Sort(all)
	return slices.Compact(all), err
}
