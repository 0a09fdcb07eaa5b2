package tunnel

import (
	"syscall"

	"golang.org/x/sys/unix"
)

// Pace is the Control of dialers and listeners whose connections carry bulk:
// they send at the rate of the line's narrowest place and do not fill the queue
// before it, which is the queue of somebody else's keystrokes too. Where the
// kernel has no BBR the connection stays as it is.
func Pace(_, _ string, c syscall.RawConn) error {
	return c.Control(func(fd uintptr) {
		_ = unix.SetsockoptString(int(fd), unix.IPPROTO_TCP, unix.TCP_CONGESTION, "bbr") // none: a longer queue
	})
}
