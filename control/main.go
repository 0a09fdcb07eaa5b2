// Command remotegpu is the control plane's server and everybody's command
// line.
package main

import (
	"os"

	"github.com/remotegpu/remotegpu/control/cli"
)

var version = "dev" // set by the linker

func main() {
	os.Exit(cli.Main(version, os.Args[1:]))
}
