package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/remotegpu/remotegpu/control/progress"
)

type envRow struct {
	ID        string     `json:"id"`
	Name      string     `json:"name"`
	Workspace string     `json:"workspace"`
	Image     string     `json:"image"`
	Host      string     `json:"host"`
	HostName  string     `json:"host_name"`
	GPUs      []string   `json:"gpus"`
	Phase     string     `json:"phase"`
	Message   string     `json:"message"`
	Pid       uint32     `json:"pid"`
	StartedAt *time.Time `json:"started_at"`
	CreatedAt time.Time  `json:"created_at"`
	Restarts  int        `json:"restarts"`
	Pulled    uint64     `json:"pulled"`
	PullTotal uint64     `json:"pull_total"`
}

func (a *app) envCommand() *cobra.Command {
	commands := []*cobra.Command{a.envCreate(), a.envList(), a.envShow(), a.envEvents(), a.envLogs(), a.envRemove()}
	for _, v := range []struct{ verb, short, reached, done string }{
		{"start", "Start a stopped environment", "running", "runs"},
		{"stop", "Stop an environment; its files stay", "stopped", "is stopped"},
		{"restart", "Restart an environment in a new container; its volumes stay", "running", "runs again"},
	} {
		cmd := &cobra.Command{Use: v.verb + " ENV", Short: v.short, Args: args(1, 1, "an environment")}
		wait := cmd.Flags().Bool("wait", true, "wait until it is done")
		cmd.RunE = func(cmd *cobra.Command, args []string) error {
			return a.envVerb(cmd.Context(), args[0], v.verb, v.reached, v.done, *wait)
		}
		commands = append(commands, cmd)
	}
	return group("env", "Environments: containers with GPUs", commands...)
}

type createFlags struct {
	image, user, workdir, gpuModel, restart, host, region string
	preferHost, preferRegion, preferGPU                   string
	gpus, priority                                        int
	pids                                                  uint64
	gpuMemory, memory, disk, shm                          string
	cpus                                                  float64
	env, mounts                                           map[string]string
	wait                                                  bool
}

func (a *app) envCreate() *cobra.Command {
	var f createFlags
	cmd := &cobra.Command{
		Use: "create NAME [-- COMMAND...]", Short: "Create an environment and start it",
		Long: "Create an environment: a container on one of the hosts. Without a command it waits for your shells.\n" +
			"/gemini/code and /gemini/output outlive restarts and rebuilds.",
		Example: "  remotegpu env create my-env --gpus 1\n" +
			"  remotegpu env create train --gpus 8 --gpu-model H100 --image docker.io/library/python:3.13 -- python train.py",
		Args: args(1, -1, "a name"),
		RunE: func(cmd *cobra.Command, args []string) error { return a.create(cmd.Context(), args[0], args[1:], f) },
	}
	fl := cmd.Flags()
	fl.StringVar(&f.image, "image", "", "image (default: the starter image)")
	fl.IntVar(&f.gpus, "gpus", 0, "how many GPUs")
	fl.StringVar(&f.gpuModel, "gpu-model", "", "only GPUs whose name has this text, like H100")
	fl.StringVar(&f.gpuMemory, "gpu-memory", "", "least memory of each GPU, like 40GiB")
	fl.Float64Var(&f.cpus, "cpus", 0, "cores, like 0.5 (default: no limit)")
	fl.StringVar(&f.memory, "memory", "", "memory, like 16GiB (default: no limit)")
	fl.StringVar(&f.disk, "disk", "", "disk of the container itself, like 20GiB")
	fl.StringVar(&f.shm, "shm", "", "/dev/shm, like 8GiB (default 64MiB)")
	fl.Uint64Var(&f.pids, "pids", 0, "processes and threads (default 4096)")
	fl.StringToStringVarP(&f.env, "env", "e", nil, "environment variable: `KEY=VALUE`")
	fl.StringVar(&f.restart, "restart", "", "always, on-failure or never (default always)")
	fl.StringVar(&f.user, "user", "", "who runs the command and shells: name or uid, with :gid (default: the image's)")
	fl.StringVar(&f.workdir, "workdir", "", "where the command starts")
	fl.StringToStringVar(&f.mounts, "mount", nil, "folder kept until the environment is deleted: `/path/in/it=NAME` (default: /gemini/code and /gemini/output)")
	fl.IntVar(&f.priority, "priority", 0, "0 to 100; higher is served first (needs a workspace admin)")
	fl.StringVar(&f.host, "host", "", "only on this host")
	fl.StringVar(&f.region, "region", "", "only on hosts of this region")
	fl.StringVar(&f.preferHost, "prefer-host", "", "on this host, if possible")
	fl.StringVar(&f.preferRegion, "prefer-region", "", "on a host of this region, if possible")
	fl.StringVar(&f.preferGPU, "prefer-gpu-model", "", "on GPUs whose name has this text, if possible")
	fl.BoolVar(&f.wait, "wait", true, "wait until it runs, and show how it gets there")
	return cmd
}

func (a *app) create(ctx context.Context, name string, command []string, f createFlags) error {
	c, err := a.connect()
	if err != nil {
		return err
	}
	body, err := f.body(name, command)
	if err != nil {
		return usageError{err}
	}
	var env envRow
	if err := c.call(ctx, http.MethodPost, c.in("environments"), body, &env); err != nil {
		return err
	}
	if f.wait {
		if env, err = a.follow(ctx, c, env.Name, "running"); err != nil {
			return err
		}
	}
	if a.output == "json" {
		return a.show(env, nil)
	}
	if !f.wait {
		fmt.Fprintf(a.errOut, "Environment %s is %s. %s\n", env.Name, env.Phase, progress.Plain(env.Message))
		return nil
	}
	return a.howToReach(ctx, c, env)
}

func (f createFlags) body(name string, command []string) (map[string]any, error) {
	resources := given(map[string]any{"gpus": f.gpus, "milli_cpu": int(f.cpus * 1000), "gpu_model": f.gpuModel, "pids": f.pids})
	for key, text := range map[string]string{"memory": f.memory, "disk": f.disk, "shm": f.shm, "gpu_memory": f.gpuMemory} {
		if text == "" {
			continue
		}
		n, err := parseSize(text)
		if err != nil {
			return nil, fmt.Errorf("--%s: %w", strings.ReplaceAll(key, "_", "-"), err)
		}
		resources[key] = n
	}
	var mounts []map[string]string
	for _, target := range slices.Sorted(maps.Keys(f.mounts)) {
		mounts = append(mounts, map[string]string{"target": target, "volume": f.mounts[target]})
	}
	return given(map[string]any{
		"name": name, "image": f.image, "restart": f.restart, "user": f.user, "workdir": f.workdir, "priority": f.priority,
		"command": command, "env": f.env, "mounts": mounts, "resources": resources,
		"affinity": given(map[string]any{"host": f.host, "region": f.region}),
		"prefer":   given(map[string]any{"host": f.preferHost, "region": f.preferRegion, "gpu_model": f.preferGPU}),
	}), nil
}

// given leaves out what was not said.
func given(m map[string]any) map[string]any {
	maps.DeleteFunc(m, func(_ string, v any) bool {
		r := reflect.ValueOf(v)
		return r.IsZero() || (r.Kind() == reflect.Map || r.Kind() == reflect.Slice) && r.Len() == 0
	})
	return m
}

func (a *app) howToReach(ctx context.Context, c *client, env envRow) error {
	var gw gatewayRow
	if err := c.call(ctx, http.MethodGet, "/api/v1/ssh", nil, &gw); err != nil {
		return err
	}
	host, port, err := net.SplitHostPort(gw.Address)
	if err != nil {
		return fmt.Errorf("read the gateway's address: %w", err)
	}
	fmt.Fprintf(a.out, "Environment %s runs on %s.\n  remotegpu ssh %s\n  ssh -p %s %s@%s\n", env.Name, or(env.HostName, env.Host), env.Name, port, c.qualified(env.Name), host)
	return nil
}

const (
	followWait = time.Second            // for a change; what is pulled grows without one
	followPace = 250 * time.Millisecond // between answers in which nothing has
)

// follow shows how an environment gets to a phase, until it is there or it is
// clear that it will not come.
func (a *app) follow(ctx context.Context, c *client, name, reached string) (envRow, error) {
	line := progress.New(a.errOut)
	defer line.End()
	for phase := ""; ; {
		pace := time.After(followPace)
		var env envRow // anew: an answer leaves out what is empty
		path := fmt.Sprintf("%s?while=%s&wait=%d", c.environment(name), phase, int(followWait.Seconds()))
		if err := c.call(ctx, http.MethodGet, path, nil, &env); err != nil {
			var gone *problem
			if reached == "deleted" && errors.As(err, &gone) && gone.Status == http.StatusNotFound {
				return env, nil
			}
			if ctx.Err() != nil && phase != "" {
				err = stopped{fmt.Errorf("stopped waiting; environment %s is %s and goes on by itself: remotegpu env events %s", name, phase, name)}
			}
			return env, err
		}
		line.Show(env.progress(line.Live()))
		switch env.Phase {
		case reached:
			return env, nil
		case "failed", "exited":
			if reached != "deleted" {
				return env, fmt.Errorf("environment %s is %s: %s", env.Name, env.Phase, env.Message)
			}
		}
		if env.Phase != phase {
			phase = env.Phase
			continue
		}
		select {
		case <-ctx.Done(): // the next call says it
		case <-pace:
		}
	}
}

// progress says how an environment gets on.
func (e envRow) progress(live bool) string {
	switch {
	case e.Phase == "pulling" && e.PullTotal > 0 && live:
		return "  " + e.Phase + " " + progress.Bar(e.Pulled, e.PullTotal)
	case e.Phase == "backoff":
		return "  " + e.Phase + ": " + e.Message + " (it is tried again; ^C stops waiting)"
	case e.Message != "":
		return "  " + e.Phase + ": " + e.Message
	}
	return "  " + e.Phase
}

func (a *app) envVerb(ctx context.Context, name, verb, reached, done string, wait bool) error {
	c, err := a.connect()
	if err != nil {
		return err
	}
	var env envRow
	if err := c.call(ctx, http.MethodPost, c.environment(name, verb), nil, &env); err != nil {
		return err
	}
	if wait {
		// A restart must not be taken for done because the old container still runs.
		if env, err = a.follow(ctx, c, name, reached); err != nil {
			return err
		}
	}
	if a.output == "json" {
		return a.show(env, nil)
	}
	if !wait {
		done = "is " + env.Phase
	}
	fmt.Fprintf(a.errOut, "Environment %s %s.\n", name, done)
	return nil
}

func (a *app) envRemove() *cobra.Command {
	cmd := &cobra.Command{Use: "rm ENV", Short: "Delete an environment and its files", Args: args(1, 1, "an environment")}
	wait := cmd.Flags().Bool("wait", true, "wait until it is gone")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		c, err := a.connect()
		if err != nil {
			return err
		}
		if err := c.call(cmd.Context(), http.MethodDelete, c.environment(args[0]), nil, nil); err != nil {
			return err
		}
		if !*wait {
			return a.say("Environment " + args[0] + " is being deleted.")
		}
		if _, err := a.follow(cmd.Context(), c, args[0], "deleted"); err != nil {
			return err
		}
		return a.say("Environment " + args[0] + " is deleted.")
	}
	return cmd
}

func (a *app) envList() *cobra.Command {
	return &cobra.Command{Use: "ls", Short: "List environments", Args: args(0, 0, "no argument"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.connect()
			if err != nil {
				return err
			}
			return fetch(a, cmd, c.in("environments"), func(w io.Writer, all list[envRow]) {
				row(w, "NAME", "PHASE", "GPUS", "HOST", "IMAGE", "AGE", "MESSAGE")
				for _, e := range all.Items {
					row(w, e.Name, e.Phase, len(e.GPUs), or(e.HostName, e.Host), e.Image, age(e.CreatedAt), e.Message)
				}
			})
		}}
}

func (a *app) envShow() *cobra.Command {
	return &cobra.Command{Use: "show ENV", Short: "Everything about an environment, as JSON", Args: args(1, 1, "an environment"),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.connect()
			if err != nil {
				return err
			}
			a.output = "json"
			return fetch(a, cmd, c.environment(args[0]), func(io.Writer, any) {})
		}}
}

func (a *app) envEvents() *cobra.Command {
	return &cobra.Command{Use: "events ENV", Short: "What happened to an environment", Args: args(1, 1, "an environment"),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.connect()
			if err != nil {
				return err
			}
			return fetch(a, cmd, c.environment(args[0], "events"), printEvents)
		}}
}

func (a *app) envLogs() *cobra.Command {
	cmd := &cobra.Command{Use: "logs ENV", Short: "What an environment's command has written", Args: args(1, 1, "an environment"),
		Example: "  remotegpu env logs train -f"}
	tail := cmd.Flags().Uint32("tail", 100, "how many lines from the end")
	follow := cmd.Flags().BoolP("follow", "f", false, "go on with what is added, until interrupted")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		c, err := a.connect()
		if err != nil {
			return err
		}
		logs, err := c.download(cmd.Context(), fmt.Sprintf("%s?tail=%d&follow=%v", c.environment(args[0], "logs"), *tail, *follow))
		if err != nil && *follow && cmd.Context().Err() != nil { // before there was a line
			return nil
		}
		if err != nil {
			return err
		}
		defer logs.Close()
		if _, err := io.Copy(a.out, logs); err != nil && cmd.Context().Err() == nil {
			return fmt.Errorf("the log of %s broke off: %w", args[0], err)
		}
		return nil
	}
	return cmd
}

// parseSize reads 16GiB, 16G (the same), 512MiB or plain bytes.
func parseSize(text string) (uint64, error) {
	units := []struct {
		suffix string
		shift  uint
	}{{"KIB", 10}, {"MIB", 20}, {"GIB", 30}, {"TIB", 40}, {"K", 10}, {"M", 20}, {"G", 30}, {"T", 40}, {"B", 0}, {"", 0}}
	upper := strings.ToUpper(strings.TrimSpace(text))
	for _, u := range units {
		digits, ok := strings.CutSuffix(upper, u.suffix)
		if !ok {
			continue
		}
		v, err := strconv.ParseFloat(strings.TrimSpace(digits), 64)
		if err != nil || v <= 0 || v > 1<<20 && u.shift >= 40 {
			break
		}
		return uint64(v * float64(uint64(1)<<u.shift)), nil
	}
	return 0, fmt.Errorf("%q is no size; write 16GiB or 512MiB", text)
}
