package terminal

import (
	"io"
	"os"
	"time"
	"unicode/utf16"

	"golang.org/x/sys/windows"
)

// Keys returns what is typed at tty. Go's own way to read a console takes ^Z for
// the end of the file.
func Keys(tty *os.File) io.Reader { return &keys{console: windows.Handle(tty.Fd())} }

type keys struct {
	console windows.Handle
	typed   []byte // not read yet
	half    []uint16
}

func (k *keys) Read(b []byte) (int, error) {
	for len(k.typed) == 0 {
		var units [1024]uint16
		var n uint32
		at := copy(units[:], k.half)
		if err := windows.ReadConsole(k.console, &units[at], uint32(len(units)-at), &n, nil); err != nil {
			return 0, err
		}
		text := units[:at+int(n)]
		k.half = nil
		if last := len(text) - 1; last >= 0 && text[last]&0xfc00 == 0xd800 { // the other half of the character comes next
			k.half, text = []uint16{text[last]}, text[:last]
		}
		k.typed = []byte(string(utf16.Decode(text)))
	}
	n := copy(b, k.typed)
	k.typed = k.typed[n:]
	return n, nil
}

// screenOf returns the console's screen: keys come from another handle.
func screenOf(*os.File) int { return int(os.Stdout.Fd()) }

// interpret lets the console interpret terminal sequences until plain.
func interpret(screen int) (plain func()) {
	var mode uint32
	if windows.GetConsoleMode(windows.Handle(screen), &mode) != nil {
		return func() {} // stdout is a file or a pipe
	}
	_ = windows.SetConsoleMode(windows.Handle(screen), mode|windows.ENABLE_PROCESSED_OUTPUT|windows.ENABLE_VIRTUAL_TERMINAL_PROCESSING|windows.DISABLE_NEWLINE_AUTO_RETURN) // old consoles show them as they are
	return func() { _ = windows.SetConsoleMode(windows.Handle(screen), mode) }
}

// watchSize calls look now and then until stop: the console tells of another
// size only who reads its events instead of characters.
func watchSize(look func()) (stop func()) {
	done := make(chan struct{})
	go func() {
		tick := time.NewTicker(200 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				look()
			case <-done:
				return
			}
		}
	}()
	return func() { close(done) }
}
