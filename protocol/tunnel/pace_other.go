//go:build !linux

package tunnel

import "syscall"

// Pace does nothing: the system chooses how a connection is paced.
func Pace(_, _ string, _ syscall.RawConn) error { return nil }
