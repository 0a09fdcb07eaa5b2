package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/remotegpu/remotegpu/edge-agent/agent"
	"github.com/remotegpu/remotegpu/edge-agent/enroll"
	"github.com/remotegpu/remotegpu/edge-agent/inventory"
	"github.com/remotegpu/remotegpu/edge-agent/reach"
	"github.com/remotegpu/remotegpu/edge-agent/state"
	"github.com/remotegpu/remotegpu/edge-agent/supervise"
)

func enrollCommand(s *settings) *cobra.Command {
	var server, token, name, ca string
	cmd := &cobra.Command{
		Use:   "enroll --server https://HOST --token TOKEN",
		Short: "Make this machine a host of a control plane",
		Long: `Shows a join token to the control plane and stores who this host is in the data
folder. The host's private key is made here and never leaves the machine.

Running it again changes nothing. A proxy is taken from HTTPS_PROXY.`,
		Example: `  remotegpu-agent enroll --server https://gpu.example.com --token rgj_...
  remotegpu-agent enroll --server https://10.0.0.5:8443 --ca ca.pem --token rgj_... --name gpu-7`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			result, err := enrol(cmd.Context(), s, joining{server, token, name, ca})
			if err != nil {
				return err
			}
			text := fmt.Sprintf("This machine is now host %s (%s) of %s.", result.Name, result.Host, server)
			if result.Already {
				text = fmt.Sprintf("This machine is already host %s (%s) of %s; nothing was changed.", result.Name, result.Host, server)
			}
			if !result.Approved {
				text += " It gets no work before an admin approves it under Hosts in the console."
			}
			fmt.Fprintln(cmd.OutOrStdout(), text)
			return nil
		},
	}
	f := cmd.Flags()
	f.StringVar(&server, "server", "", "address of the control plane, https://HOST[:PORT]")
	f.StringVar(&token, "token", "", "join token, from Hosts, Add host in the console")
	f.StringVar(&name, "name", "", "name of this host (default: its hostname)")
	f.StringVar(&ca, "ca", "", "PEM file of the authority that signs the server's certificate (default: the system's)")
	return cmd
}

// joining is what a person gives to enrol.
type joining struct{ server, token, name, ca string }

func enrol(ctx context.Context, s *settings, j joining) (enroll.Result, error) {
	if j.server == "" {
		return enroll.Result{}, errors.New("--server is needed: the address of the control plane, https://HOST[:PORT]")
	}
	var ca []byte
	if j.ca != "" {
		var err error
		if ca, err = os.ReadFile(j.ca); err != nil {
			return enroll.Result{}, fmt.Errorf("the CA file cannot be read: %w", err)
		}
	}
	s.Log = slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn})) // a person reads it
	server, err := reach.New(reach.Config{URL: j.server, CA: ca})
	if err != nil {
		return enroll.Result{}, err
	}
	if id, err := state.ReadIdentity(s.DataDir); err == nil {
		return enroll.Known(id, server.String()) // also while the agent runs
	}
	store, err := state.Open(s.DataDir)
	if err != nil {
		return enroll.Result{}, err
	}
	defer store.Close()
	key, err := store.HostKey()
	if err != nil {
		return enroll.Result{}, err
	}
	gpus, err := agent.OpenGPUs(ctx, s.Config, key)
	if err != nil {
		return enroll.Result{}, err
	}
	defer gpus.Close()
	found := inventory.New(agent.Inventory(s.Config, gpus)).Inventory(ctx)
	return enroll.Enroll(ctx, store, enroll.Request{
		Server: server, CA: string(ca), Token: j.token, Name: j.name, Agent: version, Inventory: found,
	})
}

func runCommand(s *settings) *cobra.Command {
	return &cobra.Command{
		Use:   "run",
		Short: "Run the agent in the foreground",
		Long: `Runs the agent until SIGTERM. Containers run on after it, and are looked after
again when it comes back. systemd and "supervise" start it so.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			s.Log.Info("agent starts", "version", version, "dir", s.DataDir)
			err := agent.Run(cmd.Context(), s.Config)
			s.Log.Info("agent ends", "err", err)
			return err
		},
	}
}

func superviseCommand(s *settings) *cobra.Command {
	var stop, withContainerd, detach bool
	cmd := &cobra.Command{
		Use:   "supervise",
		Short: "Keep the agent and containerd alive where there is no systemd",
		Long: `Keeps "run" alive, and containerd too if nothing answers on its socket. Logs go
to the log folder. SIGTERM or --stop ends the supervisor and the agent;
containerd and all containers run on, and the next supervisor takes them over.`,
		Example: `  remotegpu-agent supervise --detach
  remotegpu-agent supervise --stop`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			switch {
			case stop:
				ctx, cancel := context.WithTimeout(cmd.Context(), time.Minute)
				defer cancel()
				return supervise.Stop(ctx, s.RunDir, withContainerd)
			case detach:
				return superviseDetached(cmd.Context(), s)
			}
			return supervise.Run(cmd.Context(), superviseConfig(s))
		},
	}
	cmd.Flags().BoolVar(&stop, "stop", false, "end the supervisor and the agent")
	cmd.Flags().BoolVar(&withContainerd, "with-containerd", false, "with --stop: also the containerd that it started")
	cmd.Flags().BoolVar(&detach, "detach", false, "start in the background and return when it runs")
	return cmd
}

func superviseConfig(s *settings) supervise.Config {
	return supervise.Config{
		RunDir: s.RunDir, LogDir: s.logDir, Socket: s.Containerd,
		Containerd: []string{"containerd", "--address", s.Containerd},
		Agent:      append([]string{s.Program, "run"}, s.flags()...),
		Log:        s.Log,
	}
}

// flags are the settings as arguments for a process of the same program.
func (s *settings) flags() []string {
	return []string{
		"--data-dir=" + s.DataDir, "--run-dir=" + s.RunDir, "--containerd=" + s.Containerd, "--containerd-namespace=" + s.Namespace,
		"--gpu-source=" + s.GPUSource, "--helper=" + s.Helper, "--nvml=" + s.NVML, "--cni-bin=" + s.cniBin, "--subnet=" + s.Subnet,
		"--bridge-prefix=" + s.BridgePrefix, "--mqtt=" + s.MQTT, "--log-dir=" + s.logDir, "--log-format=" + s.logFormat, "--log-level=" + s.logLevel,
	}
}

// superviseDetached starts a supervisor in the background.
func superviseDetached(ctx context.Context, s *settings) error {
	if pid := supervise.Running(s.RunDir); pid > 0 {
		fmt.Printf("The supervisor runs already (pid %d).\n", pid)
		return nil
	}
	if err := os.MkdirAll(s.logDir, 0o711); err != nil {
		return fmt.Errorf("make log folder: %w", err)
	}
	out, err := os.OpenFile(filepath.Join(s.logDir, "supervise.log"), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("open log: %w", err)
	}
	defer out.Close()
	cmd := exec.Command(s.Program, append([]string{"supervise"}, s.flags()...)...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = "/", out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start the supervisor: %w", err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	for supervise.Running(s.RunDir) != cmd.Process.Pid {
		select {
		case <-ended:
			return fmt.Errorf("the supervisor ended at once: see %s", out.Name())
		case <-ctx.Done():
			return fmt.Errorf("the supervisor does not start: see %s", out.Name())
		case <-time.After(50 * time.Millisecond):
		}
	}
	fmt.Printf("The supervisor runs (pid %d); logs are in %s.\n", cmd.Process.Pid, s.logDir)
	return nil
}
