package access

import (
	"strings"
	"testing"

	"github.com/remotegpu/remotegpu/control/environment"
)

// TestNamesOfCertificatesAreNobodyElses: an agent may keep its certificate, and
// answer others with it for as long as it counts. So each name in it is that of
// one place, however odd environments, workspaces and hosts are called.
func TestNamesOfCertificatesAreNobodyElses(t *testing.T) {
	t.Parallel()
	var places []place
	workspaces := map[string]string{}
	odd := []string{"train", "lab", "rg", "rghost", "host"}
	for _, ws := range odd {
		workspaces["ws_"+ws] = ws
		for _, env := range odd {
			places = append(places, place{environment.Environment{ID: "env_" + ws + "_" + env, Name: env, Workspace: "ws_" + ws, Host: "host_x"}})
		}
	}
	for _, h := range []string{"train", "train.lab", "train.rg", "lab.rg.rghost", "train.rg.lab", "rg.rg", "rghost", "rghost.rg"} {
		places = append(places, place{environment.Environment{ID: "host_" + h, Host: "host_" + h, Name: h}})
	}
	of := map[string]string{}
	for _, p := range places {
		names := p.names(workspaces[p.Workspace])
		if len(names) < 3 {
			t.Errorf("%s has only %v", p.ID, names)
		}
		for _, name := range names {
			if other, taken := of[name]; taken && other != p.ID {
				t.Errorf("%s stands for %s and %s", name, p.ID, other)
			}
			of[name] = p.ID
			// What somebody else means by it: a short name is one of their own workspace.
			if short, _ := strings.CutSuffix(name, suffixEnvironment); !p.isHost() && !strings.ContainsAny(short, "._") {
				t.Errorf("%s of %s is a name that every workspace may have", name, p.ID)
			}
			if called := calledBy(name); strings.HasPrefix(called, prefixHost) != p.isHost() {
				t.Errorf("%s of %s is called %s", name, p.ID, called)
			}
		}
	}
}

// TestCalledBy: all that ssh may call a place leads there.
func TestCalledBy(t *testing.T) {
	t.Parallel()
	for host, want := range map[string]string{
		"train": "train", "train.rg": "train", "train.lab": "train.lab", "train.lab.rg": "train.lab", "train.rg.lab.rg": "train.lab",
		"train.rg.rg": "train.rg", "train.rg.rg.rg": "train.rg", "lab.rghost": "host:lab", "a.b.rghost": "host:a.b", "train.rg.rghost.rg": "train.rghost",
		"env_0.rg": "env_0",
	} {
		if got := calledBy(host); got != want {
			t.Errorf("%s is %s, want %s", host, got, want)
		}
	}
}
