//go:build unix

package terminal

import (
	"io"
	"os"
	"os/signal"
	"syscall"
)

// Keys returns what is typed at tty.
func Keys(tty *os.File) io.Reader { return tty }

func screenOf(tty *os.File) int { return int(tty.Fd()) }

// interpret has nothing to do: every terminal knows the sequences.
func interpret(int) (plain func()) { return func() {} }

// watchSize calls look when the size may have changed, until stop.
func watchSize(look func()) (stop func()) {
	sizes := make(chan os.Signal, 1)
	signal.Notify(sizes, syscall.SIGWINCH)
	go func() {
		for range sizes {
			look()
		}
	}()
	return func() {
		signal.Stop(sizes)
		close(sizes)
	}
}
