package main

import (
	"slices"
	"strings"
	"testing"

	"github.com/remotegpu/remotegpu/protocol"
)

func TestStandIn(t *testing.T) {
	for command, want := range map[string]bool{
		"scp -t /tmp/x": true, "scp -r -p -f -- a": true, "scp -v -d -t x": true, "scp -rpt x": true,
		"scp a b": false, "scp": false, "scp -r a b": false, "scp -- -t": false, "ls -t": false,
	} {
		_, argv, err := account{}.standIn(command, []string{"PATH=/none"})
		if (argv != nil) != want || err != nil {
			t.Errorf("%q: %q, %v", command, argv, err)
		}
	}
	if _, _, err := (account{}).standIn("rsync --server -e.L . /x", []string{"PATH=/none"}); err == nil || !strings.Contains(err.Error(), "apt-get install rsync") {
		t.Errorf("rsync: %v", err)
	}
	if got, want := splitScp("-r -f -- a 'b"), []string{"-r", "-f", "--", "a 'b"}; !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}

func TestAuthorityEntry(t *testing.T) {
	got := authorityEntry(protocol.X11{Display: 10, Protocol: "MIT", Cookie: []byte{1, 2}})
	if want := "\xff\xff\x00\x00\x00\x0210\x00\x03MIT\x00\x02\x01\x02"; string(got) != want {
		t.Errorf("%q, want %q", got, want)
	}
}
