package supervise

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strconv"
	"syscall"
)

// process names a process for good: pids are used again, but not with the same
// start time.
type process struct {
	pid   int
	start uint64 // ticks since boot, field 22 of /proc/PID/stat (proc(5))
}

func find(pid int) (process, bool) {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return process{}, false
	}
	// The second field is a name in parentheses that may hold anything.
	fields := bytes.Fields(raw[bytes.LastIndexByte(raw, ')')+1:])
	if len(fields) < 20 || fields[0][0] == 'Z' {
		return process{}, false
	}
	start, err := strconv.ParseUint(string(fields[19]), 10, 64)
	return process{pid, start}, err == nil
}

func (p process) alive() bool {
	now, ok := find(p.pid)
	return ok && now == p
}

// signal does nothing if the process is gone.
func (p process) signal(s syscall.Signal) error {
	if !p.alive() {
		return nil
	}
	if err := syscall.Kill(p.pid, s); err != nil && !errors.Is(err, syscall.ESRCH) {
		return err
	}
	return nil
}

func writePid(path string, pid int) error {
	p, ok := find(pid)
	if !ok {
		return nil // it has ended already
	}
	return os.WriteFile(path, fmt.Appendf(nil, "%d %d\n", p.pid, p.start), 0o644)
}

// readPid returns the process of a pid file if it lives.
func readPid(path string) (process, bool) {
	raw, err := os.ReadFile(path)
	if err != nil {
		return process{}, false
	}
	var p process
	if _, err := fmt.Sscan(string(raw), &p.pid, &p.start); err != nil {
		return process{}, false
	}
	return p, p.alive()
}
