package server

import "syscall"

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
