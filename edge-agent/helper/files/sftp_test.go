package files

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/pkg/sftp"
)

// TestAppends: what is appended goes to the end, wherever its client believes that
// to be, and beside it another handle of the same file goes where it likes.
func TestAppends(t *testing.T) {
	t.Parallel()
	toServer, fromClient := io.Pipe()
	toClient, fromServer := io.Pipe()
	served := make(chan error, 1)
	go func() {
		err := serveSFTP(toServer, fromServer)
		fromServer.Close()
		served <- err
	}()
	c, err := sftp.NewClientPipe(toClient, fromClient)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "log")
	ours, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer ours.Close()
	placed, err := c.OpenFile(path, os.O_RDWR)
	if err != nil {
		t.Fatal(err)
	}
	theirs, err := c.OpenFile(path, os.O_WRONLY|os.O_APPEND)
	if err != nil {
		t.Fatal(err)
	}
	var want strings.Builder
	for i := range 50 {
		fmt.Fprintf(&want, "ours %d\ntheirs %d\n", i, i)
		if _, err := fmt.Fprintf(ours, "ours %d\n", i); err != nil {
			t.Fatal(err)
		}
		if _, err := fmt.Fprintf(theirs, "theirs %d\n", i); err != nil {
			t.Fatal(err)
		}
	}
	long := strings.Repeat("0123456789", 50_000) // in many messages at once
	if _, err := theirs.ReadFromWithConcurrency(strings.NewReader(long), 16); err != nil {
		t.Fatal(err)
	}
	if _, err := placed.WriteAt([]byte("OURS"), 0); err != nil {
		t.Fatal(err)
	}
	for _, f := range []*sftp.File{placed, theirs} {
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	}
	c.Close()
	if err := <-served; err != nil {
		t.Error(err)
	}
	got, err := os.ReadFile(path)
	if all := "OURS" + want.String()[4:] + long; string(got) != all || err != nil {
		t.Errorf("%d bytes, want %d: %.60q, %v", len(got), len(all), got, err)
	}
}
