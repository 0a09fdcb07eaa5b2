package dispatch

import (
	"testing"

	"github.com/remotegpu/remotegpu/protocol"
)

// TestSaid: what changes all the time makes no status new, and everything else does.
func TestSaid(t *testing.T) {
	t.Parallel()
	status := func(change func(*protocol.Status)) *protocol.Status {
		st := &protocol.Status{
			Version: 1, Epoch: 3, Seq: 7, Observed: 2, Applied: 2,
			Workloads: []protocol.WorkloadStatus{{ID: "env_a", Revision: 1, Phase: protocol.PhaseRunning}},
			Usage:     protocol.Usage{CPUPercent: 1, GPUUsed: []protocol.GPUUsage{{UUID: "GPU-a", Healthy: true}, {UUID: "GPU-b", Healthy: true}}},
		}
		change(st)
		return st
	}
	first, err := said(status(func(*protocol.Status) {}))
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		what   string
		news   bool
		change func(*protocol.Status)
	}{
		{"its number", false, func(st *protocol.Status) { st.Seq++ }},
		{"load", false, func(st *protocol.Status) { st.Usage.CPUPercent, st.Usage.Load1, st.Usage.UptimeSecs = 99, 4, 7 }},
		{"a GPU's load", false, func(st *protocol.Status) { st.Usage.GPUUsed[0].MemoryUsed = 5 }},
		{"a connection", true, func(st *protocol.Status) { st.Epoch++ }},
		{"a document", true, func(st *protocol.Status) { st.Observed++ }},
		{"a document's end", true, func(st *protocol.Status) { st.Applied-- }},
		{"a fault", true, func(st *protocol.Status) { st.Fault = "containerd does not answer" }},
		{"a sick GPU", true, func(st *protocol.Status) { st.Usage.GPUUsed[1].Healthy = false }},
		{"a GPU less", true, func(st *protocol.Status) { st.Usage.GPUUsed = st.Usage.GPUUsed[:1] }},
		{"another GPU", true, func(st *protocol.Status) { st.Usage.GPUUsed[0].UUID = "GPU-c" }},
		{"the phase of a workload", true, func(st *protocol.Status) { st.Workloads[0].Phase = protocol.PhaseExited }},
		{"no workload", true, func(st *protocol.Status) { st.Workloads = nil }},
	} {
		now, err := said(status(c.change))
		if err != nil {
			t.Fatal(err)
		}
		if (now != first) != c.news {
			t.Errorf("%s: news is %v", c.what, now != first)
		}
	}
}
