package relay

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"github.com/remotegpu/remotegpu/protocol"
)

// errNoHostShell is for a host whose owner wants nobody on it.
var errNoHostShell = errors.New("shells on the host itself are switched off")

// hostStartWait is how long its helper may take, through systemd.
const hostStartWait = 5 * time.Second

// connectHost dials the helper that serves the host itself, and starts it when
// nobody has used it for a while. It lives on when the agent ends.
func (r *Relay) connectHost(ctx context.Context) (*net.UnixConn, string, error) {
	if r.cfg.HostHelper == "" {
		return nil, protocol.ReplyUnsupported, errNoHostShell
	}
	socket, err := r.hostSocket()
	if err != nil {
		return nil, protocol.ReplyInternal, err
	}
	r.starting.Lock() // two at a time would start two
	defer r.starting.Unlock()
	if conn, err := dial(socket); err == nil {
		return conn, "", nil
	}
	if err := startHostHelper(r.cfg.HostHelper, socket); err != nil {
		return nil, protocol.ReplyInternal, err
	}
	for deadline := time.Now().Add(hostStartWait); ; {
		conn, err := dial(socket)
		if err == nil {
			return conn, "", nil
		}
		if ctx.Err() != nil || time.Now().After(deadline) {
			return nil, protocol.ReplyInternal, err
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// hostSocket returns where this very helper listens: one that is older serves
// its sessions to their end, and no new ones.
func (r *Relay) hostSocket() (string, error) {
	st, err := os.Stat(r.cfg.HostHelper)
	if err != nil {
		return "", err
	}
	dir := filepath.Join(r.cfg.RunDir, "host")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", err
	}
	sum := fnv.New32a()
	fmt.Fprint(sum, r.cfg.HostHelper, st.Size(), st.ModTime().UnixNano())
	return filepath.Join(dir, fmt.Sprintf("%08x.sock", sum.Sum32())), nil
}

// startHostHelper starts it outside of the agent's own unit where systemd runs:
// what an administrator does on the host has not the agent's limits.
func startHostHelper(helper, socket string) error {
	args := []string{helper, "host", "--socket", socket}
	if _, err := os.Stat("/run/systemd/system"); err == nil {
		run := append([]string{"systemd-run", "--quiet", "--collect", "--description=RemoteGPU: shells on this host", "--property=KillMode=process", "--"}, args...)
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		if out, err := exec.CommandContext(ctx, run[0], run[1:]...).CombinedOutput(); err != nil {
			return fmt.Errorf("start the host's helper by systemd-run: %w: %.200s", err, out)
		}
		return nil
	}
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8"} // none of the agent's secrets
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start the host's helper: %w", err)
	}
	go func() { _ = cmd.Wait() }() // it says itself what went wrong
	return nil
}
