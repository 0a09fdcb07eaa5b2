// Command remotegpu-helper is the first process of every container.
//
// It owns what an ordinary image lacks: it reaps, runs the workload's command
// as its user, and opens shells and commands for people over a socket that
// only the agent can use; run again, as that user, it serves files. It needs
// nothing from the image. On a host itself it serves its administrators in the
// same way. Its invariant: the container lives exactly as long as the command;
// without a command, until it is told to stop.
package main

import (
	"flag"
	"fmt"
	"os"
	"time"

	"github.com/remotegpu/remotegpu/edge-agent/helper/files"
)

const (
	socketPath = "/.remotegpu/run/session.sock"

	exitUsage       = 2
	exitNotRunnable = 126 // as a shell says it
	exitNotFound    = 127
)

func main() {
	if len(os.Args) < 2 {
		usage()
	}
	switch os.Args[1] {
	case "init":
		initMain(os.Args[2:])
	case "host":
		hostMain(os.Args[2:])
	case "sftp":
		serveFiles(func() (bool, error) {
			if len(os.Args) > 2 && os.Args[2] == "--attached" {
				return true, files.Attached(os.Stdin)
			}
			return true, files.SFTP()
		})
	case "scp":
		serveFiles(func() (bool, error) { return files.SCP(os.Args[2:]) })
	default:
		usage()
	}
}

// serveFiles ends the program with the status that a tool for copying expects.
func serveFiles(serve func() (ok bool, err error)) {
	ok, err := serve()
	if err != nil {
		complain("%v", err)
	}
	if !ok || err != nil {
		os.Exit(1)
	}
	os.Exit(0)
}

func usage() {
	fmt.Fprintln(os.Stderr, "usage: helper init [--user USER] [--workdir DIR] [--] [COMMAND...]\n       helper sftp | scp -t PATH | scp -f PATH...")
	os.Exit(exitUsage)
}

func initMain(args []string) {
	flags := flag.NewFlagSet("init", flag.ExitOnError)
	user := flags.String("user", "", "who runs the command and sessions: name or uid, with :group or :gid")
	workdir := flags.String("workdir", "", "where the command starts")
	socket := flags.String("socket", socketPath, "where sessions are asked for")
	_ = flags.Parse(args) // ends the program on an error
	os.Exit(run(config{*user, *workdir, *socket, flags.Args()}))
}

// hostIdle is how long a helper of the host itself waits for work.
const hostIdle = 5 * time.Minute

// hostMain serves the host itself as its root, until nobody has wanted anything
// for a while.
func hostMain(args []string) {
	flags := flag.NewFlagSet("host", flag.ExitOnError)
	socket := flags.String("socket", "", "where sessions are asked for")
	_ = flags.Parse(args) // as above
	who, err := findAccount("")
	if err == nil {
		srv := newServer(newReaper(), who)
		srv.allow = fromRoot
		if err = srv.listen(*socket); err == nil {
			for idle := time.Duration(0); idle < hostIdle; idle += hostIdle / 10 {
				time.Sleep(hostIdle / 10)
				if !srv.idle() {
					idle = 0
				}
			}
			_ = os.Remove(*socket) // who dials now starts another
			return
		}
	}
	complain("shells on this host cannot be opened: %v", err)
	os.Exit(1)
}

// complain writes one line to the container's log.
func complain(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "remotegpu: "+format+"\n", args...)
}
