//go:build linux && cgo

// Command remotegpu-nvml is the part of the agent that loads NVIDIA's library.
//
// It owns the calls into NVML and the CDI specification made from them, and it
// is the hook program that this specification names, so that a host needs the
// driver and nothing else of NVIDIA's. It keeps no state and talks to nobody
// but its parent. Its invariant: whatever the driver does to this process, the
// agent lives on; it kills the process and starts another.
//
//	remotegpu-nvml serve     child of the agent: requests on stdin, replies on stdout (package wire)
//	remotegpu-nvml HOOK ...  run by the container runtime (create-symlinks, update-ldcache, ...)
//
// The hooks are those of nvidia-cdi-hook, linked in from the NVIDIA Container
// Toolkit. update-ldcache runs the host's own ldconfig, which every glibc
// system has; on a host without one (musl), containers find the libraries in
// the standard folders only.
package main

import (
	"context"
	"fmt"
	"os"

	"github.com/NVIDIA/go-nvml/pkg/nvml"
	"github.com/NVIDIA/nvidia-container-toolkit/cmd/nvidia-cdi-hook/commands"
	"github.com/sirupsen/logrus"
	"github.com/urfave/cli/v3"
)

func main() {
	if len(os.Args) == 2 && os.Args[1] == "serve" {
		os.Setenv("PATH", os.Getenv("PATH")+":"+localDir+"/bin") // where nvidia-smi is looked for
		driver := newDriver(nvml.New(), "/")
		if err := serve(os.Stdin, os.Stdout, driver.answer, os.Exit); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	hooks := commands.ConfigureCDIHookCommand(logrus.New(), &cli.Command{
		Name:  "remotegpu-nvml",
		Usage: "Reads the NVIDIA driver for the agent, and is its CDI hook",
	})
	if err := hooks.Run(context.Background(), os.Args); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
