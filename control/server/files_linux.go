package server

import (
	"syscall"

	"github.com/remotegpu/remotegpu/control/errs"
)

// spareFiles is how many files may be warm connections of hosts: half of what
// the system gives this process, but for some; the other half is for hosts' MQTT
// and for people. 0: as many as they like.
func spareFiles() int {
	const kept = 2048
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil || limit.Cur > 1<<30 {
		return 0
	}
	return max(64, (int(limit.Cur)-kept)/2)
}

// keptFree is the most that is kept free of a disk, in bytes; of a small one it is
// a twentieth.
const keptFree = 4 << 30

// roomIn returns what refuses so many bytes more of what people may fill when the
// disk of dir would be nearly full: the rest is for the database, without which
// nothing works for anybody.
func roomIn(dir string) func(bytes int64) error {
	return func(bytes int64) error {
		var fs syscall.Statfs_t
		if err := syscall.Statfs(dir, &fs); err != nil {
			return nil // whoever writes there will say what is wrong
		}
		size := uint64(fs.Bsize)
		if fs.Bavail*size < min(fs.Blocks*size/20, keptFree)+uint64(bytes) {
			return errs.E(errs.Unavailable, "The server's disk is nearly full and takes no more; delete what is not needed, or tell a platform admin.")
		}
		return nil
	}
}
