package main

import (
	"bytes"
	"errors"
	"fmt"
	"os/exec"
	"time"

	"github.com/creack/pty"
)

// environment compares the time from 'env create' to a shell's prompt by ssh
// with 'ctr run' of the same image, which is there already. The agent's
// container has a network, limits and an account in the database; ctr's has
// none of that.
func environment(b *bench) error {
	s, err := b.system()
	if err != nil {
		return err
	}
	n := 0
	next := func() string { n++; return fmt.Sprintf("bench-%d", n) }
	p, err := paired(b.seldom(),
		func() (measured, error) { return s.createToPrompt(next()) },
		func() (measured, error) { return s.runToPrompt(next()) },
	)
	if err != nil {
		return err
	}
	b.add("environment, create to shell prompt, against ctr run", "s", atMost(5), 0, p)
	return nil
}

func (s *system) createToPrompt(name string) (measured, error) {
	start := time.Now()
	if _, err := s.remotegpu("env", "create", name, "--image", image); err != nil {
		return nil, err
	}
	if err := prompt(s.ssh(name, "-tt")); err != nil {
		return nil, err
	}
	took := time.Since(start).Seconds()
	_, err := s.remotegpu("env", "rm", name)
	return measured{took}, err
}

func (s *system) runToPrompt(name string) (measured, error) {
	start := time.Now()
	cmd := s.command("ctr", "--address", s.containerd, "--namespace", "bench", "run", "--rm", "-t", image, name, "/bin/sh")
	if err := prompt(cmd); err != nil {
		return nil, err
	}
	return measured{time.Since(start).Seconds()}, nil
}

// prompt runs a shell in a terminal until its prompt comes, and then has it
// exit.
func prompt(cmd *exec.Cmd) error {
	terminal, err := pty.Start(cmd)
	if err != nil {
		return err
	}
	defer terminal.Close()
	late := time.AfterFunc(30*time.Second, func() { _ = cmd.Process.Kill() })
	defer late.Stop()
	var said []byte
	for buf := make([]byte, 1024); !bytes.Contains(said, []byte("# ")); {
		k, err := terminal.Read(buf)
		if said = append(said, buf[:k]...); err != nil {
			return errors.Join(fmt.Errorf("no prompt, but %q", said), cmd.Wait())
		}
	}
	if _, err := terminal.WriteString("exit\n"); err != nil {
		return err
	}
	return cmd.Wait()
}
