// Command remotegpu-helper is the first process of every container.
//
// It owns what an ordinary image lacks: it reaps, runs the workload's command
// as its user, and opens shells and commands for people over a socket that
// only the agent can use. It needs nothing from the image. Its invariant: the
// container lives exactly as long as the command; without a command, until it
// is told to stop.
package main

import (
	"flag"
	"fmt"
	"os"
)

const (
	socketPath = "/.remotegpu/run/session.sock"

	exitUsage       = 2
	exitNotRunnable = 126 // as a shell says it
	exitNotFound    = 127
)

func main() {
	if len(os.Args) < 2 || os.Args[1] != "init" {
		fmt.Fprintln(os.Stderr, "usage: helper init [--user USER] [--workdir DIR] [--] [COMMAND...]")
		os.Exit(exitUsage)
	}
	flags := flag.NewFlagSet("init", flag.ExitOnError)
	user := flags.String("user", "", "who runs the command and sessions: name or uid, with :group or :gid")
	workdir := flags.String("workdir", "", "where the command starts")
	socket := flags.String("socket", socketPath, "where sessions are asked for")
	_ = flags.Parse(os.Args[2:]) // ends the program on an error
	os.Exit(run(config{*user, *workdir, *socket, flags.Args()}))
}

// complain writes one line to the container's log.
func complain(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "remotegpu: "+format+"\n", args...)
}
