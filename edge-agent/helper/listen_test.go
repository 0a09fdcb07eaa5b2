package main

import (
	"errors"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"github.com/remotegpu/remotegpu/protocol"
)

// TestPortsBelow1024AreForRoot: in a network of its own, where the kernel keeps
// them for those with the right to them.
func TestPortsBelow1024AreForRoot(t *testing.T) {
	const inside = "REMOTEGPU_TEST_OWN_NETWORK"
	if os.Getuid() != 0 {
		t.Fatal("must run as root, like the helper")
	}
	if os.Getenv(inside) == "" {
		again := exec.Command("unshare", "--net", os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v")
		again.Env = append(os.Environ(), inside+"=1")
		out, err := again.CombinedOutput()
		if err != nil || !strings.Contains(string(out), "PASS: "+t.Name()) {
			t.Errorf("%v\n%s", err, out)
		}
		return
	}
	for _, c := range []struct {
		who  account
		port string
		want error
	}{
		{account{uid: 65534, gid: 65534}, "80", syscall.EACCES},
		{account{uid: 65534, gid: 65534, groups: []uint32{0}}, "80", syscall.EACCES},
		{account{uid: 65534, gid: 65534}, "8080", nil},
		{account{}, "80", nil},
		{account{groups: []uint32{4}}, "80", nil},
	} {
		l, err := newServer(nil, c.who).listenAt(protocol.Target{Network: protocol.NetworkTCP, Address: "0.0.0.0:" + c.port})
		if !errors.Is(err, c.want) {
			t.Errorf("%+v listens on %s: %v, want %v", c.who, c.port, err, c.want)
		}
		if err == nil {
			l.Close()
		}
	}
}
