package main

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// account is who runs things in the container. The image's own files say who
// that is; there may be none.
type account struct {
	name, home, shell string
	uid, gid          uint32
	groups            []uint32
}

// root is where passwd and group are looked for; tests change it.
var root = "/"

// findAccount reads "name", "uid", "name:group" or "uid:gid". Empty is root.
func findAccount(spec string) (account, error) {
	user, group, _ := strings.Cut(spec, ":")
	if user == "" {
		user = "0"
	}
	a := account{home: "/", name: user}
	found := false
	for f := range records("etc/passwd", 7) {
		if f[0] != user && f[2] != user {
			continue
		}
		uid, err1 := strconv.ParseUint(f[2], 10, 32)
		gid, err2 := strconv.ParseUint(f[3], 10, 32)
		if err1 != nil || err2 != nil {
			continue
		}
		a = account{name: f[0], uid: uint32(uid), gid: uint32(gid), home: f[5], shell: f[6]}
		found = true
		break
	}
	if !found {
		uid, err := strconv.ParseUint(user, 10, 32)
		if err != nil {
			return a, fmt.Errorf("the image has no user %q; give a number or another name", user)
		}
		if a.uid = uint32(uid); uid == 0 {
			a.name, a.home = "root", "/root"
		}
	}
	if group != "" {
		gid, err := findGroup(group)
		if err != nil {
			return a, err
		}
		a.gid = gid
	}
	for f := range records("etc/group", 4) {
		if gid, err := strconv.ParseUint(f[2], 10, 32); err == nil && slices.Contains(strings.Split(f[3], ","), a.name) {
			a.groups = append(a.groups, uint32(gid))
		}
	}
	return a, nil
}

func findGroup(group string) (uint32, error) {
	for f := range records("etc/group", 4) {
		if gid, err := strconv.ParseUint(f[2], 10, 32); err == nil && (f[0] == group || f[2] == group) {
			return uint32(gid), nil
		}
	}
	gid, err := strconv.ParseUint(group, 10, 32)
	if err != nil {
		return 0, fmt.Errorf("the image has no group %q; give a number or another name", group)
	}
	return uint32(gid), nil
}

// records yields the lines of a file like passwd that have n fields; a file
// that is not there has none.
func records(file string, n int) func(yield func([]string) bool) {
	return func(yield func([]string) bool) {
		f, err := os.Open(filepath.Join(root, file))
		if err != nil {
			return
		}
		defer f.Close()
		for in := bufio.NewScanner(f); in.Scan(); {
			if fields := strings.Split(in.Text(), ":"); len(fields) >= n && !yield(fields) {
				return
			}
		}
	}
}

// credential drops from root to the account; root needs none.
func (a account) credential() *syscall.Credential {
	if a.uid == 0 && a.gid == 0 && len(a.groups) == 0 {
		return nil
	}
	return &syscall.Credential{Uid: a.uid, Gid: a.gid, Groups: a.groups}
}

// process is how the account's programs begin, but for their files.
func (a account) process(env []string) *syscall.ProcAttr {
	attr := &syscall.ProcAttr{Dir: a.home, Env: env, Sys: &syscall.SysProcAttr{Setsid: true, Credential: a.credential()}}
	if st, err := os.Stat(a.home); err != nil || !st.IsDir() {
		attr.Dir = "/"
	}
	return attr
}

// do runs fn with the account's rights to files and sockets. They are a
// thread's own; the thread ends with it.
func (a account) do(fn func() error) error {
	if a.credential() == nil {
		return fn()
	}
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // for good
		if err := a.become(); err != nil {
			done <- err
			return
		}
		done <- fn()
	}()
	return <-done
}

// become gives this thread the account's rights.
func (a account) become() error {
	var groups *uint32
	if len(a.groups) > 0 {
		groups = &a.groups[0]
	}
	_, _, errno := syscall.RawSyscall(syscall.SYS_SETGROUPS, uintptr(len(a.groups)), uintptr(unsafe.Pointer(groups)), 0)
	if errno == 0 {
		_, _, errno = syscall.RawSyscall(syscall.SYS_SETFSGID, uintptr(a.gid), 0, 0)
	}
	if errno != 0 {
		return errno
	}
	_, _, _ = syscall.RawSyscall(syscall.SYS_SETFSUID, uintptr(a.uid), 0, 0) // it returns the one before
	if a.uid == 0 {
		return nil
	}
	none := [2]unix.CapUserData{} // that takes away those to files alone, not that to ports below 1024
	return unix.Capset(&unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}, &none[0])
}

// environ adds who the account is to an environment, under what it sets itself.
func (a account) environ(env []string) []string {
	env = slices.Clone(env)
	for key, value := range map[string]string{"HOME": a.home, "USER": a.name, "LOGNAME": a.name, "SHELL": a.shell} {
		if key == "HOME" || !has(env, key) && value != "" { // containerd sets HOME for root alone
			env = set(env, key, value)
		}
	}
	return env
}

func has(env []string, key string) bool {
	return slices.ContainsFunc(env, func(e string) bool { return strings.HasPrefix(e, key+"=") })
}

func set(env []string, key, value string) []string {
	env = slices.DeleteFunc(env, func(e string) bool { return strings.HasPrefix(e, key+"=") })
	return append(env, key+"="+value)
}

func get(env []string, key string) string {
	for _, e := range env {
		if v, ok := strings.CutPrefix(e, key+"="); ok {
			return v
		}
	}
	return ""
}

var errNoShell = errors.New("this image has no shell; run a program by its path instead, like: ssh … /app/program")

// findShell returns the account's shell, or the first that the image has, and
// the name under which it must be called.
func (a account) findShell() (path, name string, err error) {
	for _, path := range []string{a.shell, "/bin/bash", "/usr/bin/bash", "/bin/sh", "/usr/bin/sh", "/bin/busybox", "/usr/bin/busybox"} {
		if path == "" || !runnable(path) || strings.HasSuffix(path, "nologin") || strings.HasSuffix(path, "/false") {
			continue
		}
		if name = filepath.Base(path); name == "busybox" {
			name = "sh"
		}
		return path, name, nil
	}
	return "", "", errNoShell
}

func runnable(path string) bool {
	st, err := os.Stat(path)
	return err == nil && st.Mode().IsRegular() && st.Mode()&0o111 != 0
}

// lookPath finds a program as a shell would, by the PATH of env.
func lookPath(program string, env []string) (string, error) {
	if strings.Contains(program, "/") {
		if runnable(program) {
			return program, nil
		}
		return "", fs.ErrNotExist
	}
	for _, dir := range filepath.SplitList(get(env, "PATH")) {
		if path := filepath.Join(dir, program); filepath.IsAbs(path) && runnable(path) {
			return path, nil
		}
	}
	return "", fs.ErrNotExist
}
