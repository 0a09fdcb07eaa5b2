package cli

import (
	"bufio"
	"context"
	"errors"
	"io"
	"os"
	"testing"
	"time"

	"github.com/creack/pty"
	"golang.org/x/term"
)

// TestPromptIsInterrupted: who presses ^C at a question for a password is let
// go, with a terminal that shows again what is typed.
func TestPromptIsInterrupted(t *testing.T) {
	person, tty, err := pty.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer person.Close()
	defer tty.Close()
	before := os.Stdin
	os.Stdin = tty
	defer func() { os.Stdin = before }()
	shown, err := term.GetState(int(tty.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	asked, says := io.Pipe()
	a := &app{errOut: says}
	ctx, interrupt := context.WithCancel(t.Context())
	got := make(chan error, 1)
	go func() {
		_, err := a.secret(ctx, bufio.NewReader(tty), "Password: ", false)
		got <- err
	}()
	if _, err := io.ReadFull(asked, make([]byte, len("Password: "))); err != nil {
		t.Fatal(err)
	}
	go func() { _, _ = io.Copy(io.Discard, asked) }()
	for hidden := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) {
		if now, err := term.GetState(int(tty.Fd())); err != nil || *now != *shown {
			break
		}
		if time.Now().After(hidden) {
			t.Fatal("what is typed is shown")
		}
	}
	interrupt()
	select {
	case err := <-got:
		if !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	case <-time.After(time.Minute):
		t.Fatal("the question stands a minute after it was interrupted")
	}
	if now, err := term.GetState(int(tty.Fd())); err != nil || *now != *shown {
		t.Errorf("the terminal is left as it was for the password (%v)", err)
	}
}
