package gpu

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"time"

	"github.com/remotegpu/remotegpu/edge-agent/gpu/wire"
)

// process is one running child. It belongs to one goroutine; only kill may be
// called from others.
type process struct {
	cmd    *exec.Cmd
	in     *os.File
	out    *os.File
	exited chan struct{} // closed once the system has reaped it
	next   uint64        // id of the last request
	cdi    string        // what the CDI specification was last written for
}

// refusal is an answer: the child works, but NVML or the system says no.
type refusal string

func (r refusal) Error() string { return string(r) }

func startProcess(program string, log *slog.Logger) (*process, error) {
	cmd := exec.Command(program, "serve")
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "LD_LIBRARY_PATH=" + os.Getenv("LD_LIBRARY_PATH")}
	cmd.Dir = "/"
	childIn, in, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	out, childOut, err := os.Pipe()
	if err != nil {
		return nil, errors.Join(err, childIn.Close(), in.Close())
	}
	said, childErr, err := os.Pipe()
	if err != nil {
		return nil, errors.Join(err, childIn.Close(), in.Close(), out.Close(), childOut.Close())
	}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = childIn, childOut, childErr
	err = cmd.Start()
	childIn.Close()
	childOut.Close()
	childErr.Close()
	if err != nil {
		return nil, errors.Join(err, in.Close(), out.Close(), said.Close())
	}
	p := &process{cmd: cmd, in: in, out: out, exited: make(chan struct{})}
	go logLines(said, log)
	go func() {
		_ = cmd.Wait() // its end is seen as the end of its output
		close(p.exited)
	}()
	return p, nil
}

// kill ends the child, or at least the talk with it when the driver holds it.
func (p *process) kill() {
	_ = p.cmd.Process.Kill()
	p.in.Close()
	p.out.Close()
}

// ask sends one request and waits at most limit for its answer. After any
// error but a refusal the child is of no more use.
func (p *process) ask(r wire.Request, limit time.Duration) (*wire.Reply, error) {
	p.next++
	r.ID = p.next
	deadline := time.Now().Add(limit)
	if err := errors.Join(p.in.SetWriteDeadline(deadline), p.out.SetReadDeadline(deadline)); err != nil {
		return nil, fmt.Errorf("the NVML process ended: %w", err)
	}
	if err := wire.Write(p.in, &r); err != nil {
		return nil, explain(r.Op, limit, err)
	}
	var reply wire.Reply
	if err := wire.Read(p.out, &reply); err != nil {
		return nil, explain(r.Op, limit, err)
	}
	if reply.ID != r.ID {
		return nil, fmt.Errorf("the NVML process answered request %d, asked was %d", reply.ID, r.ID)
	}
	if reply.Error != "" {
		return nil, refusal(reply.Error)
	}
	return &reply, nil
}

func explain(op string, limit time.Duration, err error) error {
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		return fmt.Errorf("the NVIDIA driver did not answer %s within %s: look into the kernel log; a reboot of the host helps", op, limit)
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, os.ErrClosed):
		return fmt.Errorf("the NVML process ended while asked for %s: %w", op, err)
	}
	return fmt.Errorf("talk with the NVML process about %s: %w", op, err)
}

// maxLogLines bounds what one child may put into the agent's log.
const maxLogLines = 100

// logLines passes on what a child says on stderr, up to maxLogLines of at most
// 1 KiB, and swallows the rest so that it never blocks.
func logLines(r io.ReadCloser, log *slog.Logger) {
	defer r.Close()
	lines := bufio.NewReaderSize(r, 1024)
	for range maxLogLines {
		line, _, err := lines.ReadLine()
		if err != nil {
			return
		}
		log.Info("nvml child says", "line", string(line))
	}
	_, _ = io.Copy(io.Discard, lines)
}
