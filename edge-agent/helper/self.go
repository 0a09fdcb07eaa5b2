package main

import (
	"fmt"
	"os"
	"strings"

	"github.com/remotegpu/remotegpu/protocol"
)

// ownPath is where this program lies in the container.
func ownPath() string {
	self, err := os.Executable()
	if err != nil {
		return "/.remotegpu/helper"
	}
	return self
}

// subsystem returns what serves one.
func subsystem(name string) (path string, argv []string, err error) {
	if name != protocol.SubsystemSFTP {
		return "", nil, fmt.Errorf("subsystem %q is not served here: %w", name, os.ErrNotExist)
	}
	return ownPath(), []string{"helper", "sftp"}, nil
}

// standIn returns what runs instead of a command whose program the image lacks
// and which only looks like a command: it was sent by a tool for copying. With
// neither path nor err nothing has to be done.
func (a account) standIn(command string, env []string) (path string, argv []string, err error) {
	word, rest, _ := strings.Cut(command, " ")
	if _, missing := lookPath(word, env); missing == nil {
		return "", nil, nil
	}
	switch {
	case word == "rsync" && strings.HasPrefix(rest, "--server"):
		return "", nil, fmt.Errorf("this image has no rsync, which must be at both ends; install it in the environment (apt-get install rsync), or copy with scp or sftp: %w", os.ErrNotExist)
	case word != "scp" || !isScpEnd(rest):
		return "", nil, nil
	}
	shell, name, err := a.findShell()
	if err != nil { // what would have been expanded is taken as it is
		return ownPath(), append([]string{"helper", "scp"}, splitScp(rest)...), nil
	}
	return shell, []string{name, "-c", "'" + strings.ReplaceAll(ownPath(), "'", `'\''`) + "' scp " + rest}, nil
}

// isScpEnd reports whether these arguments are of scp as the far end, which
// nobody types.
func isScpEnd(args string) bool {
	for _, arg := range strings.Fields(args) {
		if !strings.HasPrefix(arg, "-") || arg == "--" {
			return false
		}
		if strings.ContainsAny(arg, "tf") {
			return true
		}
	}
	return false
}

// splitScp takes the options and the one path apart, without a shell.
func splitScp(args string) (argv []string) {
	for strings.HasPrefix(args, "-") {
		var option string
		option, args, _ = strings.Cut(args, " ")
		if argv = append(argv, option); option == "--" {
			break
		}
	}
	return append(argv, args)
}

// authority writes the file by which programs prove themselves to the client's
// display, and returns its name.
func (a account) authority(x protocol.X11) (name string, err error) {
	err = a.do(func() error {
		f, err := os.CreateTemp("", "xauth-")
		if err != nil {
			return err
		}
		defer f.Close()
		name = f.Name()
		_, err = f.Write(authorityEntry(x))
		return err
	})
	return name, err
}

// authorityEntry is one record of the format that XauReadAuth(3) reads: a
// family, then address, display, protocol and cookie, each with its length.
func authorityEntry(x protocol.X11) []byte {
	const anyAddress = 0xffff
	b := []byte{anyAddress >> 8, anyAddress & 0xff}
	for _, field := range []string{"", fmt.Sprint(x.Display), x.Protocol, string(x.Cookie)} {
		b = append(b, byte(len(field)>>8), byte(len(field)))
		b = append(b, field...)
	}
	return b
}
