package agent

import (
	"context"
	"crypto/ed25519"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/remotegpu/remotegpu/edge-agent/link"
	"github.com/remotegpu/remotegpu/edge-agent/state"
	"github.com/remotegpu/remotegpu/protocol"
)

const testHost = protocol.PrefixHost + "00000000000000000000"

// enrolled makes a data folder that obeys a document with one workload.
func enrolled(t *testing.T) Config {
	t.Helper()
	dir := t.TempDir()
	cfg := Config{
		DataDir: filepath.Join(dir, "data"), RunDir: filepath.Join(dir, "run"),
		Containerd: filepath.Join(dir, "none.sock"), Namespace: "test", GPUSource: "sim:2xH100",
		Helper: "/nowhere/helper", NVML: "/nowhere/nvml", CNIBin: []string{"/usr/lib/cni"},
		Subnet: "10.219.0.0/24", BridgePrefix: "rgt-", Program: "/nowhere/agent", Version: "test",
		Log: slog.New(slog.NewTextHandler(t.Output(), nil)),
	}
	store, err := state.Open(cfg.DataDir)
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	key, err := store.HostKey()
	if err != nil {
		t.Fatal(err)
	}
	public, private, _ := ed25519.GenerateKey(nil)
	err = store.SaveIdentity(&state.Identity{
		Server: "https://127.0.0.1:1", Host: testHost, Name: "gpu-1", PrivateKey: key, Keys: []ed25519.PublicKey{public}, Registry: "127.0.0.1:1",
	})
	if err != nil {
		t.Fatal(err)
	}
	signed, err := protocol.Sign(&protocol.Desired{
		Version: protocol.Version, Host: testHost, Generation: 5,
		Workloads: []protocol.Workload{{
			ID: "env_1", Revision: 1, Name: "lab", Workspace: "ws_1", Want: protocol.WantRunning,
			Image: "{control}/lab:1", Restart: protocol.RestartAlways,
		}},
	}, private)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := store.AcceptDesired(signed); err != nil {
		t.Fatal(err)
	}
	return cfg
}

func TestWorksWithoutControlPlane(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root for networks")
	}
	cfg := enrolled(t)
	if _, err := ReadStatus(t.Context(), cfg.RunDir); !errors.Is(err, ErrNotRunning) {
		t.Errorf("status before the start: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- Run(ctx, cfg) }()
	deadline := time.Now().Add(time.Minute)
	for {
		st, err := ReadStatus(t.Context(), cfg.RunDir)
		if err == nil && st.Link.Message != "" && len(st.Workloads) == 1 && st.Workloads[0].Message != "" {
			if st.Name != "gpu-1" || st.Generation != 5 || st.Link.Phase != link.Connecting || st.Workloads[0].Name != "lab" {
				t.Errorf("status %+v", st)
			}
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("status stays %+v, %v", st, err)
		}
		select {
		case err := <-done:
			t.Fatalf("agent ended: %v", err)
		case <-time.After(20 * time.Millisecond):
		}
	}
	if err := Run(t.Context(), cfg); !errors.Is(err, state.ErrBusy) {
		t.Errorf("second agent: %v", err)
	}
	cancel()
	select {
	case err := <-done:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(30 * time.Second):
		t.Fatal("agent does not end")
	}
	if _, err := ReadStatus(t.Context(), cfg.RunDir); !errors.Is(err, ErrNotRunning) {
		t.Errorf("status after the end: %v", err)
	}
}

func TestRunNeedsEnrolment(t *testing.T) {
	dir := t.TempDir()
	err := Run(t.Context(), Config{DataDir: dir, RunDir: dir, Log: slog.New(slog.DiscardHandler)})
	if !errors.Is(err, state.ErrNotEnrolled) {
		t.Errorf("got %v", err)
	}
}
