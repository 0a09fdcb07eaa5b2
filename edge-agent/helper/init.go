package main

import (
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
)

type config struct {
	user, workdir, socket string
	command               []string
}

// run is the life of the container; it returns its exit status.
func run(cfg config) int {
	children := newReaper()
	signals := make(chan os.Signal, 16)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP, syscall.SIGQUIT, syscall.SIGUSR1, syscall.SIGUSR2)
	who, err := findAccount(cfg.user)
	if err != nil {
		complain("%v", err)
		return exitNotRunnable
	}
	srv := newServer(children, who)
	if err := srv.listen(cfg.socket); err != nil {
		complain("shells cannot be opened here: %v", err) // the workload itself goes on
	}
	defer srv.hangUpAll()
	if len(cfg.command) == 0 {
		for s := range signals {
			if s != syscall.SIGHUP && s != syscall.SIGUSR1 && s != syscall.SIGUSR2 {
				return 0
			}
		}
	}
	pid, ended, status := startCommand(children, who, cfg)
	if status != 0 {
		return status
	}
	for {
		select {
		case s := <-signals:
			_ = syscall.Kill(pid, s.(syscall.Signal)) // it may just have ended
		case ws := <-ended:
			return exitStatus(ws)
		}
	}
}

func startCommand(children *reaper, who account, cfg config) (pid int, ended <-chan syscall.WaitStatus, status int) {
	env := who.environ(os.Environ())
	path, err := lookPath(cfg.command[0], env)
	if err != nil {
		complain("command %q is not in the image; check its name and PATH", cfg.command[0])
		return 0, nil, exitNotFound
	}
	dir := cfg.workdir
	if dir == "" {
		dir = "/"
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		complain("working folder %s: %v", dir, err)
		return 0, nil, exitNotRunnable
	}
	devNull, err := os.Open(os.DevNull)
	if err != nil {
		complain("%v", err)
		return 0, nil, exitNotRunnable
	}
	defer devNull.Close()
	pid, ended, err = children.start(path, cfg.command, &syscall.ProcAttr{
		Dir: dir, Env: env, Files: []uintptr{devNull.Fd(), 1, 2},
		Sys: &syscall.SysProcAttr{Setsid: true, Credential: who.credential()},
	})
	if err != nil {
		complain("command %q cannot be run: %v", filepath.Base(path), err)
		return 0, nil, exitNotRunnable
	}
	return pid, ended, 0
}

func exitStatus(ws syscall.WaitStatus) int {
	if ws.Signaled() {
		return 128 + int(ws.Signal())
	}
	return ws.ExitStatus()
}
