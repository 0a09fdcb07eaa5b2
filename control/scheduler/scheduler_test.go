package scheduler

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const gib = 1 << 30

// server is a host with GPUs of one model, all free.
func server(name string, gpus int, model string, memory uint64) Host {
	h := Host{ID: "host_" + name, Name: name, OS: "linux", Arch: "amd64", MilliCPU: 64000, Memory: 256 * gib, Disk: 1000 * gib}
	for i := range gpus {
		h.GPUs = append(h.GPUs, GPU{UUID: fmt.Sprintf("GPU-%s-%d", name, i), Index: uint32(i), Model: model, Memory: memory, NUMA: int32(i * 2 / gpus), Healthy: true})
	}
	return h
}

func h100(name string, gpus, taken int) Host {
	h := server(name, gpus, "NVIDIA H100 80GB HBM3", 80*gib)
	for i := range taken {
		h.GPUs[i].Taken = true
	}
	return h
}

func with(h Host, change func(h *Host)) Host {
	change(&h)
	return h
}

func TestFilters(t *testing.T) {
	tests := []struct {
		name   string
		host   Host
		ask    Request
		reason string // empty: it fits
	}{
		{"nothing asked", h100("a", 0, 0), Request{}, ""},
		{"all its GPUs", h100("a", 8, 0), Request{GPUs: 8}, ""},
		{"too few free", h100("a", 8, 6), Request{GPUs: 4}, "host a: 2 of 8 GPUs free, 4 asked"},
		{"too few free of a model", h100("a", 8, 6), Request{GPUs: 4, GPUModel: "h100"}, "host a: 2 of 8 h100 free, 4 asked"},
		{"too few at all", h100("a", 2, 0), Request{GPUs: 4}, "host a: has 2 GPUs, 4 asked"},
		{"no GPU", h100("a", 0, 0), Request{GPUs: 1}, "host a: has no GPU"},
		{"other model", h100("a", 2, 0), Request{GPUs: 1, GPUModel: "A100"}, "host a: has no A100 (but NVIDIA H100 80GB HBM3)"},
		{"hard affinity to a model", h100("a", 2, 0), Request{GPUs: 1, Require: Affinity{GPUModel: "A100"}}, "host a: has no A100 (but NVIDIA H100 80GB HBM3)"},
		{"GPU memory", h100("a", 2, 0), Request{GPUs: 1, GPUMemory: 96 * gib}, "host a: 0 of its 2 GPUs have 96 GiB of memory, 1 asked"},
		{"unhealthy GPU", with(h100("a", 2, 1), func(h *Host) { h.GPUs[1].Healthy = false }), Request{GPUs: 1}, "host a: 0 of 2 GPUs free, 1 asked (1 unhealthy)"},
		{"cores", with(h100("a", 0, 0), func(h *Host) { h.UsedMilliCPU = 60500 }), Request{MilliCPU: 4000}, "host a: 3.5 of 64 cores free, 4 asked"},
		{"memory", with(h100("a", 0, 0), func(h *Host) { h.UsedMemory = 200 * gib }), Request{Memory: 64 * gib}, "host a: 56 GiB of 256 GiB memory free, 64 GiB asked"},
		{"disk", with(h100("a", 0, 0), func(h *Host) { h.UsedDisk = 1000 * gib }), Request{Disk: 1}, "host a: 0 B of 1000 GiB disk free, 1 B asked"},
		{"more used than there is", with(h100("a", 0, 0), func(h *Host) { h.UsedMemory = 300 * gib }), Request{Memory: 1}, "host a: 0 B of 256 GiB memory free, 1 B asked"},
		{"OS", h100("a", 0, 0), Request{OS: "windows"}, "host a: runs linux, windows asked"},
		{"arch", h100("a", 0, 0), Request{Arch: "arm64"}, "host a: is amd64, arm64 asked"},
		{"region", with(h100("a", 0, 0), func(h *Host) { h.Region = "eu" }), Request{Require: Affinity{Region: "us"}}, "host a: is in region eu, us asked"},
		{"label", with(h100("a", 0, 0), func(h *Host) { h.Labels = map[string]string{"tier": "b"} }), Request{Labels: map[string]string{"tier": "a"}}, "host a: lacks label tier=a"},
		{"label there", with(h100("a", 0, 0), func(h *Host) { h.Labels = map[string]string{"tier": "a"} }), Request{Labels: map[string]string{"tier": "a"}}, ""},
		{"offline", with(h100("a", 8, 0), func(h *Host) { h.State = Offline }), Request{}, "host a: is offline"},
		{"cordoned", with(h100("a", 8, 0), func(h *Host) { h.State = Cordoned }), Request{}, "host a: is cordoned"},
		{"draining", with(h100("a", 8, 0), func(h *Host) { h.State = Draining }), Request{}, "host a: is draining"},
		{"maintenance", with(h100("a", 8, 0), func(h *Host) { h.State = Maintenance }), Request{}, "host a: is in maintenance"},
		{"unapproved", with(h100("a", 8, 0), func(h *Host) { h.State = Unapproved }), Request{}, "host a: is not approved yet"},
		{"unhealthy", with(h100("a", 8, 0), func(h *Host) { h.State = Unhealthy }), Request{}, "host a: is unhealthy"},
		{"by name", h100("a", 1, 0), Request{Require: Affinity{Host: "a"}}, ""},
		{"by id", h100("a", 1, 0), Request{Require: Affinity{Host: "host_a"}}, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			d := Place(tt.ask, []Host{tt.host})
			got := ""
			if len(d.Rejected) > 0 {
				got = d.Rejected[0].Reason
			}
			if got != tt.reason || d.Placed() != (tt.reason == "") || len(d.GPUs) != tt.ask.GPUs && d.Placed() {
				t.Errorf("%+v\nwant reason %q", d, tt.reason)
			}
		})
	}
}

func TestSummaries(t *testing.T) {
	var fleet []Host
	for i := range 12 {
		h := h100(fmt.Sprintf("gpu-%02d", i), 8, 6)
		if i >= 7 {
			h.State = Cordoned
		}
		if i >= 10 {
			h.State = Offline
		}
		fleet = append(fleet, h)
	}
	away := with(h100("a", 8, 0), func(h *Host) { h.State = Offline })
	tests := []struct {
		name  string
		ask   Request
		hosts []Host
		want  string
		never bool
	}{
		{"many hosts", Request{GPUs: 4, GPUModel: "H100"}, fleet, "Waiting for 4 × H100: 12 hosts looked at: 7 too few free GPUs, 3 cordoned, 2 offline.", false},
		{"one host", Request{GPUs: 4}, fleet[:1], "Waiting for 4 GPUs: host gpu-00: 2 of 8 GPUs free, 4 asked.", false},
		{"bound to one", Request{GPUs: 4, Require: Affinity{Host: "gpu-03"}}, fleet, "Waiting for 4 GPUs: host gpu-03: 2 of 8 GPUs free, 4 asked.", false},
		{"its files are there", Request{Home: "host_gpu-11"}, fleet, "Waiting for a host: host gpu-11: is offline.", false},
		{"no host yet", Request{GPUs: 1}, nil, "Waiting for 1 GPU: no host has joined yet. A platform admin adds one with the install line.", false},
		{"offline now", Request{GPUs: 8}, []Host{away}, "Waiting for 8 GPUs: host a: is offline.", false},
		{"never so many", Request{GPUs: 16, GPUModel: "H100", Memory: gib}, fleet, "No host has 16 × H100, 1 GiB of memory: the most on one host is 8; ask for at most 8, or have a larger host added.", true},
		{"never such", Request{GPUs: 1, GPUModel: "B200"}, fleet, "No host has 1 × B200; choose another model or less memory per GPU, or have such a host added.", true},
		{"never there", Request{Require: Affinity{Host: "x"}}, fleet, "There is no host x; choose another one.", true},
		{"never so much", Request{Memory: 512 * gib}, fleet[:1], "No host can ever give 512 GiB of memory, even when nothing else runs (host gpu-00: 256 GiB of 256 GiB memory free, 512 GiB asked); ask for less, or have a larger host added.", true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if d := Place(tt.ask, tt.hosts); d.Summary != tt.want || d.Never != tt.never || d.Placed() {
				t.Errorf("got  %q (never %v)\nwant %q (never %v)", d.Summary, d.Never, tt.want, tt.never)
			}
		})
	}
}

func TestStrategies(t *testing.T) {
	hosts := []Host{h100("a", 8, 2), h100("b", 8, 6), h100("c", 8, 0), h100("d", 8, 7)}
	tests := []struct {
		strategy Strategy
		want     []string // of requests for 1 GPU one after the other
	}{
		{FirstFit, []string{"a", "a", "a", "a", "a", "a", "b", "b", "c"}},
		{BestFit, []string{"d", "b", "b", "a", "a", "a", "a", "a", "a", "c"}},
		{LeastLoaded, []string{"c", "c", "a", "c", "a", "c", "a"}},
		{RoundRobin, []string{"a", "b", "c", "d", "a", "b", "c", "a", "c"}},
	}
	for _, tt := range tests {
		t.Run(string(tt.strategy), func(t *testing.T) {
			f := NewFleet(cloned(hosts))
			var got []string
			for range tt.want {
				r := Request{GPUs: 1, Strategy: tt.strategy}
				d := f.Place(r)
				f.Take(r, d)
				got = append(got, d.HostName)
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("hosts (-want +got):\n%s", diff)
			}
		})
	}
}

func TestRandomIsSeededAndFair(t *testing.T) {
	var hosts []Host
	for i := range 10 {
		hosts = append(hosts, h100(fmt.Sprint(i), 8, i%2*8)) // every other one is full
	}
	f := NewFleet(hosts)
	count := map[string]int{}
	for i := range 5000 {
		r := Request{Workload: fmt.Sprint("env_", i), GPUs: 1, Strategy: Random}
		d := f.Place(r)
		if again := f.Place(r); again.Host != d.Host {
			t.Fatalf("the same request went to %s and %s", d.Host, again.Host)
		}
		count[d.HostName]++
	}
	if len(count) != 5 {
		t.Errorf("chosen: %v, want the five with room", count)
	}
	for name, n := range count {
		if n < 800 || n > 1200 {
			t.Errorf("host %s was chosen %d times of 5000, want about 1000", name, n)
		}
	}
}

func TestAffinity(t *testing.T) {
	a := with(h100("a", 8, 0), func(h *Host) { h.Region = "eu" })
	b := with(server("b", 8, "NVIDIA A100-SXM4-80GB", 80*gib), func(h *Host) { h.Region = "us" })
	c := with(h100("c", 8, 7), func(h *Host) { h.Region = "us" })
	full := with(h100("full", 8, 8), func(h *Host) { h.Region = "eu" })
	hosts := []Host{a, b, c, full}
	tests := []struct {
		name string
		ask  Request
		want string
	}{
		{"hard host", Request{GPUs: 1, Require: Affinity{Host: "a"}}, "a"},
		{"hard region", Request{GPUs: 2, Require: Affinity{Region: "us"}}, "b"},
		{"hard model", Request{GPUs: 2, Require: Affinity{GPUModel: "A100"}}, "b"},
		{"hard and full", Request{GPUs: 1, Require: Affinity{Host: "full"}}, ""},
		{"home", Request{GPUs: 1, Home: "host_b"}, "b"},
		{"home and full", Request{GPUs: 1, Home: "host_full"}, ""},
		{"home and elsewhere asked", Request{GPUs: 1, Home: "host_a", Require: Affinity{Host: "b"}}, ""},
		{"soft host", Request{GPUs: 1, Prefer: Affinity{Host: "a"}}, "a"},
		{"soft host, full", Request{GPUs: 1, Prefer: Affinity{Host: "full"}}, "c"},
		{"soft region", Request{GPUs: 2, Prefer: Affinity{Region: "us"}}, "b"},
		{"soft model", Request{GPUs: 1, Prefer: Affinity{GPUModel: "a100"}}, "b"},
		{"two of two wishes", Request{GPUs: 1, Prefer: Affinity{Region: "us", GPUModel: "H100"}}, "c"},
		{"one of two wishes", Request{GPUs: 2, Prefer: Affinity{Region: "asia", GPUModel: "A100"}}, "b"},
		{"no wish comes true", Request{GPUs: 1, Prefer: Affinity{Region: "asia"}}, "c"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if d := Place(tt.ask, cloned(hosts)); d.HostName != tt.want {
				t.Errorf("went to %q (%s), want %q", d.HostName, d.Summary, tt.want)
			}
		})
	}
}

// linked is a host whose GPUs have NVLink lanes between those of a group, and
// NUMA nodes of their own per half.
func linked(groups ...[]int) Host {
	h := h100("a", 8, 0)
	for i := range h.GPUs {
		h.GPUs[i].NUMA = int32(i / 4)
		h.GPUs[i].Links = make([]uint32, 8)
	}
	for _, g := range groups {
		for _, i := range g {
			for _, j := range g {
				if i != j {
					h.GPUs[i].Links[j] = 4
				}
			}
		}
	}
	return h
}

func TestGPUChoice(t *testing.T) {
	pairs := linked([]int{0, 5}, []int{1, 4}, []int{2, 7}, []int{3, 6})
	mixed := server("m", 4, "NVIDIA A100-SXM4-80GB", 80*gib)
	mixed.GPUs[2].Memory, mixed.GPUs[3].Memory = 40*gib, 40*gib
	tests := []struct {
		name  string
		host  Host
		taken []int
		ask   Request
		want  []int
	}{
		{"a linked pair, also over NUMA nodes", pairs, []int{0}, Request{GPUs: 2}, []int{1, 4}},
		{"two linked pairs", pairs, []int{0, 5}, Request{GPUs: 4}, []int{1, 3, 4, 6}},
		{"one: without partner, so that pairs stay", pairs, []int{3}, Request{GPUs: 1}, []int{6}},
		{"no links: one NUMA node", linked(), []int{0, 1}, Request{GPUs: 3}, []int{4, 5, 6}},
		{"no links: the node that fits", linked(), []int{0, 4, 5}, Request{GPUs: 3}, []int{1, 2, 3}},
		{"quad", linked([]int{0, 1, 2, 3}, []int{4, 5, 6, 7}), []int{1}, Request{GPUs: 3}, []int{0, 2, 3}},
		{"least memory that is enough", mixed, nil, Request{GPUs: 1}, []int{2}},
		{"least memory, asked for more", mixed, nil, Request{GPUs: 1, GPUMemory: 41 * gib}, []int{0}},
		{"memory before count", mixed, nil, Request{GPUs: 3}, []int{0, 2, 3}},
		{"all", pairs, nil, Request{GPUs: 8}, []int{0, 1, 2, 3, 4, 5, 6, 7}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			h := cloned([]Host{tt.host})[0]
			for _, i := range tt.taken {
				h.GPUs[i].Taken = true
			}
			d := Place(tt.ask, []Host{h})
			var got []int
			for _, uuid := range d.GPUs {
				got = append(got, slices.IndexFunc(h.GPUs, func(g GPU) bool { return g.UUID == uuid }))
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("GPUs (-want +got):\n%s", diff)
			}
		})
	}
}

// TestGrownGroups: on hosts with too many GPUs for every set to be tried, the
// greedy choice must still find linked groups.
func TestGrownGroups(t *testing.T) {
	h := h100("big", 16, 0)
	for i := range h.GPUs {
		h.GPUs[i].Links = make([]uint32, 16)
		for j := range 16 {
			if i != j && i%4 == j%4 { // groups of four, strided
				h.GPUs[i].Links[j] = 2
			}
		}
	}
	d := Place(Request{GPUs: 4}, []Host{h})
	want := []string{"GPU-big-0", "GPU-big-4", "GPU-big-8", "GPU-big-12"}
	if diff := cmp.Diff(want, d.GPUs); diff != "" {
		t.Errorf("GPUs (-want +got):\n%s", diff)
	}
}

// TestIndexAgreesWithScan compares the index with a plain look at every host,
// through thousands of random changes.
func TestIndexAgreesWithScan(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	hosts := fleetOf(60, rng)
	f := NewFleet(cloned(hosts))
	type placed struct {
		r Request
		d Decision
	}
	var running []placed
	for step := range 20000 {
		if len(running) > 0 && rng.IntN(5) < 2 {
			i := rng.IntN(len(running))
			f.Give(running[i].r, running[i].d)
			running = slices.Delete(running, i, i+1)
			continue
		}
		r := ask(rng, step)
		now := make([]Host, len(f.nodes))
		for i := range f.nodes {
			now[i] = f.nodes[i].host
		}
		want := baseline(r, now)
		d := f.Place(r)
		if d.Placed() != (len(want) > 0) {
			t.Fatalf("step %d: %+v placed on %q, a scan finds %v", step, r, d.HostName, want)
		}
		if !d.Placed() {
			if e := f.Decide(r); e.Summary == "" || e.Looked != len(hosts) {
				t.Fatalf("step %d: unexplained: %+v", step, e)
			}
			continue
		}
		if !slices.Contains(want, d.Host) || len(d.GPUs) != r.GPUs {
			t.Fatalf("step %d: %+v placed on %s with %v, a scan finds %v", step, r, d.Host, d.GPUs, want)
		}
		f.Take(r, d)
		running = append(running, placed{r, d})
	}
}

// baseline is the scheduler without an index: it walks every GPU of every
// host.
func baseline(r Request, hosts []Host) (fit []string) {
	for i := range hosts {
		if free(r, &hosts[i]) >= r.GPUs && room(r, &hosts[i]) {
			fit = append(fit, hosts[i].ID)
		}
	}
	return fit
}

func room(r Request, h *Host) bool {
	return h.State == Ready && (r.OS == "" || r.OS == h.OS) && h.UsedMilliCPU+r.MilliCPU <= h.MilliCPU &&
		h.UsedMemory+r.Memory <= h.Memory && h.UsedDisk+r.Disk <= h.Disk
}

func free(r Request, h *Host) (n int) {
	for i := range h.GPUs {
		g := &h.GPUs[i]
		if g.Healthy && !g.Taken && g.Memory >= r.GPUMemory && (r.GPUModel == "" || strings.Contains(g.Model, r.GPUModel)) {
			n++
		}
	}
	return n
}

var models = []struct {
	name   string
	memory uint64
}{{"NVIDIA H100 80GB HBM3", 80 * gib}, {"NVIDIA A100-SXM4-40GB", 40 * gib}, {"NVIDIA L40S", 48 * gib}, {"NVIDIA GeForce RTX 4090", 24 * gib}}

// fleetOf makes hosts of 8 GPUs, some of them not to be used.
func fleetOf(n int, rng *rand.Rand) []Host {
	hosts := make([]Host, n)
	for i := range hosts {
		m := models[rng.IntN(len(models))]
		h := server(fmt.Sprintf("gpu-%05d", i), 8, m.name, m.memory)
		for j := range h.GPUs {
			h.GPUs[j].Links = make([]uint32, 8)
			for k := range 8 {
				if j/4 == k/4 && j != k {
					h.GPUs[j].Links[k] = 4
				}
			}
			h.GPUs[j].Healthy = rng.IntN(200) > 0
		}
		if rng.IntN(20) == 0 {
			h.State = State(1 + rng.IntN(int(Unhealthy)))
		}
		hosts[i] = h
	}
	return hosts
}

// ask makes a request as people make them.
func ask(rng *rand.Rand, n int) Request {
	r := Request{Workload: fmt.Sprint("env_", n), OS: "linux", GPUs: []int{0, 1, 1, 1, 2, 2, 4, 8}[rng.IntN(8)], MilliCPU: 4000, Memory: uint64(1+rng.IntN(32)) * gib}
	if r.GPUs > 0 && rng.IntN(2) == 0 {
		r.GPUModel = []string{"H100", "A100", "L40S", "RTX 4090"}[rng.IntN(4)]
	}
	return r
}

func cloned(hosts []Host) []Host {
	all := slices.Clone(hosts)
	for i := range all {
		all[i].GPUs = slices.Clone(all[i].GPUs)
	}
	return all
}
