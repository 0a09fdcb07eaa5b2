// Command remotegpu-agent makes a machine with GPUs a host of RemoteGPU.
//
// It owns the command line and the settings; the agent itself is package
// agent. Only this program reads the environment.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/remotegpu/remotegpu/edge-agent/ctr/logs"
)

// version is set by the linker.
var version = "dev"

func main() {
	// containerd's shim starts this program as the log driver of a container.
	if len(os.Args) == 3 && os.Args[1] == logs.Argument {
		if err := logs.Drive(os.Args[2]); err != nil {
			fmt.Fprintln(os.Stderr, "remotegpu-agent:", err)
			os.Exit(1)
		}
		return
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // the second signal ends it at once
	if err := root().ExecuteContext(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "remotegpu-agent:", err)
		os.Exit(1)
	}
}

func root() *cobra.Command {
	var s settings
	cmd := &cobra.Command{
		Use:   "remotegpu-agent",
		Short: "Makes a machine with GPUs a host of RemoteGPU",
		Long: `remotegpu-agent makes this machine a host of a RemoteGPU control plane.

It dials out over HTTPS and listens on no port. The control plane sends it one
signed document that says which containers the host shall have; the agent makes
containerd agree, and keeps it so when the control plane is away.

The usual way here is the line that the console shows under Hosts, Add host:

  curl -fsSL https://SERVER/install.sh | sudo sh -s -- --token rgj_...

It downloads this program and runs "enroll", then "install" (with systemd) or
"supervise" (without). "status" tells how it is going.

Every setting is a flag and an environment variable: --data-dir is
REMOTEGPU_DATA_DIR, and so on. Variables are also read from
` + envFile + `, where HTTPS_PROXY and NO_PROXY may stand too.`,
		SilenceUsage:  true,
		SilenceErrors: true,
		Version:       version,
		PersistentPreRunE: func(cmd *cobra.Command, _ []string) error {
			return s.complete(cmd)
		},
	}
	s.register(cmd.PersistentFlags())
	cmd.AddCommand(enrollCommand(&s), runCommand(&s), superviseCommand(&s), installCommand(), uninstallCommand(&s), statusCommand(&s), versionCommand())
	return cmd
}

func versionCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version",
		Args:  cobra.NoArgs,
		Run:   func(cmd *cobra.Command, _ []string) { fmt.Fprintln(cmd.OutOrStdout(), version) },
	}
}
