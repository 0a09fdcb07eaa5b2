package main

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/remotegpu/remotegpu/protocol"
	"github.com/remotegpu/remotegpu/protocol/scrollback"
)

func TestProgramNameHidesWhatIsTypedAround(t *testing.T) {
	for command, want := range map[string]string{
		"": "login shell", "python train.py --key s3cret": "python", "TOKEN=s3cret A=b python x": "python", "TOKEN=s3cret": "login shell",
	} {
		if got := programName(protocol.SessionOpen{Command: command}); got != want {
			t.Errorf("%q is shown as %q, want %q", command, got, want)
		}
	}
}

// TestAdmitIsBounded: each client costs memory in the container, also one that
// has gone and may come back.
func TestAdmitIsBounded(t *testing.T) {
	attach := func(client string) protocol.Attach {
		return protocol.Attach{User: "usr_a", Client: client, Op: protocol.AttachJoin, Mode: protocol.ModeWatch}
	}
	h := newHeld(&server{}, attach("cli_0"))
	h.program, h.screen = "bash", &scrollback.Buffer{}
	t.Cleanup(func() {
		h.lock.Lock()
		defer h.lock.Unlock()
		for _, v := range h.viewers {
			go v.pipe.Close()
		}
	})
	var err error
	for n := 1; n < 2*maxViewers && err == nil; n++ {
		_, err = h.admit(attach(fmt.Sprint("cli_", n)))
	}
	if err == nil || len(h.viewers) != maxViewers {
		t.Errorf("%d clients, %v", len(h.viewers), err)
	}
	if _, err := h.admit(attach("cli_1")); err != nil {
		t.Errorf("one of them cannot come back: %v", err)
	}
}

func TestAdmitNobodyAtTheEnd(t *testing.T) {
	a := protocol.Attach{User: "usr_a", Client: "cli_0", Op: protocol.AttachJoin}
	h := newHeld(&server{}, a)
	h.program, h.screen = "bash", &scrollback.Buffer{}
	_ = h.owner.pipe.Close()
	h.end()
	a.Client = "cli_1"
	if _, err := h.admit(a); err == nil || !strings.Contains(err.Error(), "ended") {
		t.Errorf("somebody takes over what is over: %v", err)
	}
}

// TestListenerRemovesNoFileOfOthers: the container's user moves the folder of a
// socket and puts a link in its place.
func TestListenerRemovesNoFileOfOthers(t *testing.T) {
	if os.Getuid() != 0 {
		t.Fatal("must run as root, like the helper")
	}
	base, err := os.MkdirTemp("", "listen-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(base) })
	theirs, own := filepath.Join(base, "theirs"), filepath.Join(base, "own")
	for dir, uid := range map[string]int{base: 65534, theirs: 0, own: 65534} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Chown(dir, uid, uid); err != nil {
			t.Fatal(err)
		}
	}
	victim := filepath.Join(theirs, "s")
	if err := os.WriteFile(victim, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	s := newServer(nil, account{uid: 65534, gid: 65534})
	near, far := unixPair(t)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		s.listenFor(far, protocol.Target{Network: protocol.NetworkUnix, Address: filepath.Join(own, "s")})
	}()
	if kind, _, err := protocol.NewFrameReader(near).Next(); err != nil || kind != protocol.FrameReply {
		t.Fatalf("frame %d, %v", kind, err)
	}
	if err := os.Rename(own, own+"2"); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(theirs, own); err != nil {
		t.Fatal(err)
	}
	near.Close()
	<-ended
	if _, err := os.Stat(victim); err != nil {
		t.Errorf("root's file was removed: %v", err)
	}
}

func unixPair(t *testing.T) (near, far *net.UnixConn) {
	t.Helper()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(t.TempDir(), "pair"), Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if near, err = net.DialUnix("unix", nil, l.Addr().(*net.UnixAddr)); err != nil {
		t.Fatal(err)
	}
	if far, err = l.AcceptUnix(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { near.Close(); far.Close() })
	return near, far
}
