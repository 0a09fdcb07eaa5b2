package terminal

import (
	"os"

	"golang.org/x/term"
)

// Raw puts tty into raw mode until restore, and calls resized when it has
// another size than cols and rows, or than the one told of last.
func Raw(tty *os.File, resized func(cols, rows int)) (cols, rows int, restore func()) {
	screen := screenOf(tty)
	cols, rows, err := term.GetSize(screen)
	if err != nil {
		cols, rows = 80, 24
	}
	lastCols, lastRows := cols, rows
	stop := watchSize(func() {
		cols, rows, err := term.GetSize(screen)
		if err == nil && (cols != lastCols || rows != lastRows) {
			lastCols, lastRows = cols, rows
			resized(cols, rows)
		}
	})
	plain := interpret(screen)
	state, err := term.MakeRaw(int(tty.Fd()))
	return cols, rows, func() {
		stop()
		if err == nil {
			_ = term.Restore(int(tty.Fd()), state) // nothing to do when it fails
		}
		plain()
	}
}
