package main

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"github.com/kardianos/service"
	"github.com/spf13/cobra"

	"github.com/remotegpu/remotegpu/edge-agent/agent"
	"github.com/remotegpu/remotegpu/edge-agent/supervise"
)

const (
	unitName = "remotegpu-agent"
	unitPath = "/etc/systemd/system/" + unitName + ".service"
)

//go:embed remotegpu-agent.service
var unitTemplate string

// program satisfies the service package; systemd runs "run" as it is.
type program struct{}

func (program) Start(service.Service) error { return nil }
func (program) Stop(service.Service) error  { return nil }

func unit() (service.Service, error) {
	svc, err := service.New(program{}, &service.Config{
		Name:        unitName,
		DisplayName: "RemoteGPU agent",
		Description: "RemoteGPU agent",
		Arguments:   []string{"run"},
		Option:      service.KeyValue{"SystemdScript": unitTemplate},
	})
	if err != nil || svc.Platform() != "linux-systemd" {
		return nil, errors.New("this machine is not run by systemd: use `remotegpu-agent supervise --detach` instead, and have it run at boot")
	}
	return svc, nil
}

func installCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "install",
		Short: "Install the systemd unit",
		Long: `Writes ` + unitPath + ` and enables it. It does not
start it: systemctl start remotegpu-agent. Settings come from
` + envFile + `. Running it again writes the unit anew.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			svc, err := unit()
			if err != nil {
				return err
			}
			if err := os.Remove(unitPath); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return fmt.Errorf("replace the unit: %w", err)
			}
			if err := svc.Install(); err != nil {
				return fmt.Errorf("install the unit: %w", err)
			}
			fmt.Fprintln(cmd.OutOrStdout(), "Installed "+unitPath+".")
			return nil
		},
	}
}

func uninstallCommand(s *settings) *cobra.Command {
	networks := false
	cmd := &cobra.Command{
		Use:   "uninstall",
		Short: "Stop the agent and remove its systemd unit",
		Long: `Stops the agent, however it was started, and removes the systemd unit.
Containers, volumes and the host's identity stay: "install.sh --uninstall"
removes those.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, cancel := context.WithTimeout(cmd.Context(), time.Minute)
			defer cancel()
			if err := supervise.Stop(ctx, s.RunDir, true); err != nil {
				return err
			}
			if networks {
				if err := agent.RemoveNetworks(ctx, s.Config); err != nil {
					return err
				}
			}
			if _, err := os.Stat(unitPath); errors.Is(err, fs.ErrNotExist) {
				fmt.Fprintln(cmd.OutOrStdout(), "There is no unit to remove.")
				return nil
			}
			svc, err := unit()
			if err != nil {
				return err
			}
			if err := errors.Join(svc.Stop(), svc.Uninstall()); err != nil {
				return fmt.Errorf("remove the unit: %w", err)
			}
			fmt.Fprintln(cmd.OutOrStdout(), "Removed "+unitPath+".")
			return nil
		},
	}
	cmd.Flags().BoolVar(&networks, "networks", false, "remove the networks of containers too, and their isolation")
	return cmd
}
