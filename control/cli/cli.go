// Package cli is the remotegpu command line.
//
// It owns the commands, their flags, help and output; it speaks to the server
// through the public API alone, but for the server command, which runs one.
// Its invariant: exit status 0 means done, 1 that it failed with a sentence on
// stderr, 2 that the command line was wrong; ssh passes on the program's own.
package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/remotegpu/remotegpu/control/progress"
)

// app is what the commands share.
type app struct {
	version   string
	out       io.Writer
	errOut    io.Writer
	profile   string // --config
	output    string // --output
	workspace string // --workspace
}

// exitStatus ends the program with a status and nothing more to say.
type exitStatus int

func (e exitStatus) Error() string { return fmt.Sprintf("exit status %d", int(e)) }

// usageError is a wrong command line.
type usageError struct{ error }

// stopped is what a signal has left, where that is worth saying.
type stopped struct{ error }

// Main runs the command line and returns the exit status.
func Main(version string, args []string) int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	a := &app{version: version, out: os.Stdout, errOut: os.Stderr}
	root := a.root()
	root.SetArgs(args)
	cmd, err := root.ExecuteContextC(ctx)
	return a.status(cmd, err)
}

func (a *app) status(cmd *cobra.Command, err error) int {
	var code exitStatus
	var usage usageError
	var left stopped
	switch {
	case err == nil:
		return 0
	case errors.As(err, &code):
		return int(code)
	case errors.As(err, &usage), strings.HasPrefix(err.Error(), "unknown command"), strings.HasPrefix(err.Error(), "if any flags in the group"):
		fmt.Fprintln(a.errOut, "remotegpu:", err)
		fmt.Fprintf(a.errOut, "See %s --help.\n", cmd.CommandPath())
		return 2
	case cmd.Context() != nil && cmd.Context().Err() != nil && !errors.As(err, &left): // by a signal: what it broke is no news
		fmt.Fprintln(a.errOut, "remotegpu: interrupted")
		return 1
	}
	fmt.Fprintln(a.errOut, "remotegpu:", progress.Plain(err.Error()))
	return 1
}

func (a *app) root() *cobra.Command {
	root := &cobra.Command{
		Use:   "remotegpu",
		Short: "One private GPU cloud from machines behind NAT",
		Long: `remotegpu reaches GPU machines that sit behind NAT as one private cloud.

First steps:
  remotegpu login https://gpu.example.org:8443    once per machine
  remotegpu host join                             prints the line for a GPU host
  remotegpu env create my-env --gpus 1            a container with a GPU
  remotegpu ssh my-env                            a shell in it`,
		SilenceUsage: true, SilenceErrors: true, Version: a.version,
	}
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error {
		if n, ok := errors.AsType[*strconv.NumError](err); ok {
			err = errors.New(strings.Replace(err.Error(), n.Error(), n.Err.Error(), 1)) // without the name of Go's function
		}
		return usageError{err}
	})
	root.SetVersionTemplate("remotegpu {{.Version}}\n")
	flags := root.PersistentFlags()
	flags.StringVar(&a.profile, "config", "", "file with server and token (default: $REMOTEGPU_CONFIG, or "+profileHint()+")")
	flags.StringVarP(&a.output, "output", "o", "table", "table or json")
	flags.StringVarP(&a.workspace, "workspace", "w", "", "workspace (default: $REMOTEGPU_WORKSPACE, or the one from login)")
	fromVariable(flags, "config", "REMOTEGPU_CONFIG")
	fromVariable(flags, "workspace", "REMOTEGPU_WORKSPACE")
	root.PersistentPreRunE = func(*cobra.Command, []string) error { return a.checkOutput() }
	root.AddCommand(a.serverCommand(), a.loginCommand(), a.logoutCommand(), a.passwordCommand(), a.hostCommand(), a.envCommand(), a.sshCommand(), a.cpCommand(),
		a.sshProxyCommand(), a.sshConfigCommand(), a.keyCommand(), a.tokenCommand(), a.workspaceCommand(), a.userCommand(), a.schedulerCommand(),
		a.recordingCommand(), a.playCommand(), a.auditCommand(), a.forwardCommand(), a.appCommand(), a.jupyterCommand(), a.rdpCommand(), a.attachCommand(), a.sessionsCommand())
	completions(root, a.arguments(), a.options())
	withoutEmpty(root)
	return root
}

// fromVariable gives a flag the value of a variable. It is no default, which help
// would show: it may hold a password.
func fromVariable(flags *pflag.FlagSet, name, variable string) {
	if v := os.Getenv(variable); v != "" {
		_ = flags.Lookup(name).Value.Set(v) // these are strings, which take all
	}
}

// withoutEmpty has help not say "(default [])".
func withoutEmpty(cmd *cobra.Command) {
	cmd.Flags().VisitAll(func(f *pflag.Flag) {
		if f.DefValue == "[]" && f.Value.Type() == "stringToString" {
			f.DefValue = ""
		}
	})
	for _, sub := range cmd.Commands() {
		withoutEmpty(sub)
	}
}

// args checks how many arguments a command has, and says what is missing.
func args(least, most int, what string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, got []string) error {
		if len(got) < least || most >= 0 && len(got) > most {
			return usageError{fmt.Errorf("%s needs %s: %s", cmd.CommandPath(), what, cmd.UseLine())}
		}
		if slices.Contains(got[:least], "") { // of a variable that is not set
			return usageError{fmt.Errorf("%s needs %s, and was given an empty word", cmd.CommandPath(), what)}
		}
		return nil
	}
}

// checkOutput is asked before anything is done.
func (a *app) checkOutput() error {
	if a.output != "json" && a.output != "table" {
		return usageError{fmt.Errorf("--output %q: use table or json", a.output)}
	}
	return nil
}

// show prints v as JSON, or as a table whose rows print makes.
func (a *app) show(v any, print func(w io.Writer)) error {
	if a.output == "json" {
		enc := json.NewEncoder(a.out)
		enc.SetIndent("", "  ")
		return enc.Encode(v)
	}
	w := tabwriter.NewWriter(a.out, 0, 4, 3, ' ', 0)
	print(w)
	return w.Flush()
}

// say tells what was done, in JSON where that is wanted.
func (a *app) say(done string) error {
	if a.output == "json" {
		return a.show(map[string]string{"message": done}, nil)
	}
	_, err := fmt.Fprintln(a.errOut, done)
	return err
}

func row(w io.Writer, cells ...any) {
	for i, c := range cells {
		if i > 0 {
			fmt.Fprint(w, "\t")
		}
		text := progress.Plain(fmt.Sprint(c))
		if text == "" {
			text = "-"
		}
		fmt.Fprint(w, text)
	}
	fmt.Fprintln(w)
}

// age says how long ago t was, as kubectl does: 42s, 5m, 3h, 12d.
func age(t time.Time) string {
	d := time.Since(t)
	switch {
	case t.IsZero():
		return ""
	case d < time.Minute:
		return fmt.Sprintf("%ds", max(0, int(d.Seconds())))
	case d < time.Hour:
		return fmt.Sprintf("%dm", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh", int(d.Hours()))
	}
	return fmt.Sprintf("%dd", int(d.Hours()/24))
}

func ago(t *time.Time) string {
	if t == nil {
		return "never"
	}
	return age(*t) + " ago"
}

func date(t *time.Time, none string) string {
	if t == nil {
		return none
	}
	return t.Local().Format("2006-01-02")
}

// moment says when, to the second.
func moment(t *time.Time) string {
	if t == nil {
		return "-"
	}
	return t.UTC().Format(time.RFC3339)
}

// count says "1 label" or "3 labels".
func count(n int, noun string) string {
	if n != 1 {
		noun += "s"
	}
	return fmt.Sprintf("%d %s", n, noun)
}
