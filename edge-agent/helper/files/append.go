package files

import (
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// toAppend makes what is written to a file go to its end, which somebody else may
// have moved: OpenSSH's server does that, and the library writes where the client
// believes the end to be. The kernel can be told so when the file is open: of the
// descriptors that are new when isOpen is called, the path's is it.
func toAppend(path string) (isOpen func()) {
	before := descriptors()
	return func() {
		var file unix.Stat_t
		if unix.Stat(path, &file) != nil {
			return // it is gone already, and nobody else appends to it
		}
		for fd, is := range descriptors() {
			was, known := before[fd]
			if is != (inode{file.Dev, file.Ino}) || known && was == is {
				continue
			}
			if flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0); err == nil {
				_, _ = unix.FcntlInt(uintptr(fd), unix.F_SETFL, flags|unix.O_APPEND) // it is this process's own
			}
		}
	}
}

// inode is which file a descriptor has.
type inode struct{ device, number uint64 }

func descriptors() map[int]inode {
	all := map[int]inode{}
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return all
	}
	for _, e := range entries {
		var st unix.Stat_t
		if fd, err := strconv.Atoi(e.Name()); err == nil && unix.Fstat(fd, &st) == nil {
			all[fd] = inode{st.Dev, st.Ino}
		}
	}
	return all
}
