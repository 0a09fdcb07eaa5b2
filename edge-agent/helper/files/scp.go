package files

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"
)

// copying is the far end of scp -O, where the image has no scp. Each side
// answers every line and file of the other with one byte.
//
//	source                                 sink
//	  |<------------------------------- 0 -|
//	  | T1700000000 0 1700000000 0 ------->|  with -p; then 0, as after each line
//	  | D0755 0 folder ------------------->|  with -r; E leaves it
//	  | C0644 5 name --------------------->|
//	  |<------------------------------- 0 -|
//	  | 5 bytes, 0 ----------------------->|
//	  |<------------------------------- 0 -|  or 1 and a line: a file failed; 2 and a line: the end
type copying struct {
	in        *bufio.Reader
	out       io.Writer
	recursive bool
	preserve  bool
	toFolder  bool // the target must be one
	failed    bool // something was not copied
}

// errFatal is the end that the other side has told.
var errFatal = errors.New("the other side has given up")

// SCP does what scp with these arguments does at the far end. What the other
// side has been told is no error.
func SCP(args []string) (copied bool, err error) {
	c := &copying{in: bufio.NewReaderSize(os.Stdin, 64<<10), out: os.Stdout}
	role, paths := c.options(args)
	switch {
	case role == 't' && len(paths) == 1:
		err = c.sink(paths[0])
	case role == 'f' && len(paths) > 0:
		err = c.source(paths)
	default:
		err = errors.New("usage: scp -t PATH, or scp -f PATH [PATH]")
	}
	return err == nil && !c.failed, err
}

func (c *copying) options(args []string) (role byte, paths []string) {
	for i, arg := range args {
		if arg == "--" {
			return role, args[i+1:]
		}
		if len(arg) < 2 || arg[0] != '-' {
			return role, args[i:]
		}
		for _, letter := range []byte(arg[1:]) {
			switch letter {
			case 't', 'f':
				role = letter
			case 'r':
				c.recursive = true
			case 'p':
				c.preserve = true
			case 'd':
				c.toFolder = true
			}
		}
	}
	return role, nil
}

// warn tells the other side of a file that failed.
func (c *copying) warn(err error) error {
	c.failed = true
	_, err = fmt.Fprintf(c.out, "\x01scp: %s\n", strings.ReplaceAll(err.Error(), "\n", " "))
	return err
}

func (c *copying) ok() error {
	_, err := c.out.Write([]byte{0})
	return err
}

// answer reads the other side's byte. done is false when it could not do what
// it was told.
func (c *copying) answer() (done bool, err error) {
	b, err := c.in.ReadByte()
	if err != nil || b == 0 {
		return err == nil, err
	}
	if _, err := c.line(); err != nil { // it shows it to the person itself
		return false, err
	}
	c.failed = true
	if b != 1 {
		return false, errFatal
	}
	return false, nil
}

// maxLine is the longest line of the other side.
const maxLine = 16 << 10

func (c *copying) line() (string, error) {
	var line []byte
	for {
		part, err := c.in.ReadSlice('\n')
		if line = append(line, part...); len(line) > maxLine {
			return "", errors.New("line is too long")
		}
		if err == nil {
			return string(line[:len(line)-1]), nil
		}
		if err != bufio.ErrBufferFull {
			return "", err
		}
	}
}

// entry is a file or folder that comes.
type entry struct {
	folder bool
	mode   os.FileMode
	size   int64
	name   string
}

var errName = errors.New("a name is no plain file name")

// parseEntry reads what follows "C" or "D". A name can lead nowhere but into
// the folder that is being written.
func parseEntry(folder bool, line string) (e entry, err error) {
	f := strings.SplitN(line, " ", 3)
	if len(f) != 3 {
		return e, errors.New("line has too few words")
	}
	mode, err := strconv.ParseUint(f[0], 8, 32)
	if err != nil || mode > 0o7777 {
		return e, errors.New("mode is no octal number up to 7777")
	}
	size, err := strconv.ParseInt(f[1], 10, 64)
	if err != nil || size < 0 {
		return e, errors.New("size is no number")
	}
	if f[2] == "" || f[2] == "." || f[2] == ".." || strings.ContainsAny(f[2], "/\x00") {
		return e, errName
	}
	return entry{folder, os.FileMode(mode & 0o777), size, f[2]}, nil
}

// parseTimes reads what follows "T".
func parseTimes(line string) (modified, accessed time.Time, err error) {
	f := strings.Fields(line)
	if len(f) != 4 {
		return modified, accessed, errors.New("times have too few words")
	}
	var n [4]int64
	for i := range f {
		if n[i], err = strconv.ParseInt(f[i], 10, 64); err != nil {
			return modified, accessed, errors.New("times are no numbers")
		}
	}
	return time.Unix(n[0], n[1]*1000), time.Unix(n[2], n[3]*1000), nil
}
