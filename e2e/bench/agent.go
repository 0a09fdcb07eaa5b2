package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
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

// weight is what the agent takes of a machine, alone and beside containers that
// do nothing. It has no baseline but what it may take.
func weight(b *bench) error {
	s, err := b.system()
	if err != nil {
		return err
	}
	const containers, idle, each, cpu = 50, 30.0, 0.3, 1.0
	if err := s.weigh(b, "no containers", idle, cpu); err != nil {
		return err
	}
	for i := range containers {
		if _, err := s.remotegpu("env", "create", fmt.Sprintf("idle-%d", i), "--image", image); err != nil {
			return err
		}
	}
	if err := s.weigh(b, fmt.Sprintf("%d idle containers", containers), idle+containers*each, cpu); err != nil {
		return err
	}
	for i := range containers {
		if _, err := s.remotegpu("env", "rm", fmt.Sprintf("idle-%d", i)); err != nil {
			return err
		}
	}
	return nil
}

func (s *system) weigh(b *bench, beside string, mostMiB, mostCPU float64) error {
	time.Sleep(10 * time.Second) // it has settled
	before, err := cpuOf(s.agent.Process.Pid)
	if err != nil {
		return err
	}
	const looked = 60
	time.Sleep(looked * time.Second)
	after, err := cpuOf(s.agent.Process.Pid)
	if err != nil {
		return err
	}
	held, err := residentOf(s.agent.Process.Pid)
	if err != nil {
		return err
	}
	b.bound("memory of the agent (resident), with "+beside, "MiB", held, mostMiB)
	b.bound("CPU of the agent, with "+beside, "% of a core", 100*(after-before)/looked, mostCPU)
	return nil
}

// residentOf is the memory that a process holds, in MiB.
func residentOf(pid int) (float64, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	_, rest, _ := bytes.Cut(text, []byte("VmRSS:"))
	var kib float64
	if _, err := fmt.Sscanf(string(rest), "%f kB", &kib); err != nil {
		return 0, fmt.Errorf("/proc/%d/status does not say what is resident: %w", pid, err)
	}
	return kib / 1024, nil
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
