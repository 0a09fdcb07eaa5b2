package scheduler

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// explanation is what became of every host.
type explanation struct {
	looked   int // hosts that the request is not bound away from
	counts   [verdicts]int
	rejected []Rejection
	never    bool // no host could serve it even when empty and up
}

// explain judges every host again, this time to tell a person.
func (f *Fleet) explain(r Request) explanation {
	q := f.query(r)
	e := explanation{never: len(f.nodes) > 0}
	for i := range f.nodes {
		n := &f.nodes[i]
		if e.never && q.here(n) && q.capacity(n, true) == fits {
			e.never = false
		}
		v := q.judge(n)
		e.counts[v]++
		if v == fits || v == elsewhere {
			continue
		}
		if len(e.rejected) < MaxRejected {
			e.rejected = append(e.rejected, q.rejection(n, v))
		}
	}
	e.looked = len(f.nodes) - e.counts[elsewhere]
	return e
}

// passed says for a request that is placed how many hosts were asked, and why some
// of the others did not do.
func (f *Fleet) passed(r Request) (looked int, rejected []Rejection) {
	if cmp.Or(r.Home, r.Require.Host) != "" {
		return 1, nil // it is bound away from all others
	}
	q := f.query(r)
	for i := range f.nodes[:min(maxLooked, len(f.nodes))] {
		n := &f.nodes[i]
		if v := q.judge(n); v != fits && len(rejected) < MaxPassed {
			rejected = append(rejected, q.rejection(n, v))
		}
	}
	return len(f.nodes), rejected
}

func (q *query) rejection(n *node, v verdict) Rejection {
	return Rejection{Host: n.host.ID, Reason: "host " + n.host.Name + ": " + q.reason(n, v)}
}

// phrases say in a summary how many hosts have which verdict.
var phrases = [verdicts]string{
	offline: "offline", cordoned: "cordoned", draining: "draining", maintenance: "in maintenance", unapproved: "not approved yet", unhealthy: "unhealthy",
	crowded: "with too many workloads already",
	wrongOS: "with another operating system", wrongArch: "of another architecture", wrongRegion: "in other regions", wrongLabels: "without the labels",
	wrongModel: "without such GPUs", smallGPUs: "with too little GPU memory", fewGPUs: "with too few GPUs", busyGPUs: "too few free GPUs",
	littleCPU: "too few free cores", littleMemory: "too little free memory", littleDisk: "too little free disk",
}

// reason says why one host does not do.
func (q *query) reason(n *node, v verdict) string {
	h := &n.host
	switch v {
	case crowded:
		return "has too many workloads already"
	case wrongOS:
		return fmt.Sprintf("runs %s, %s asked", h.OS, q.OS)
	case wrongArch:
		return fmt.Sprintf("is %s, %s asked", h.Arch, q.Arch)
	case wrongRegion:
		return fmt.Sprintf("is in region %s, %s asked", cmp.Or(h.Region, "(none)"), q.Require.Region)
	case wrongLabels:
		return "lacks label " + missing(h.Labels, q.Labels)
	case wrongModel, smallGPUs, fewGPUs, busyGPUs:
		return q.gpuReason(n, v)
	case littleCPU:
		return fmt.Sprintf("%s of %s cores free, %s asked", cores(n.cpu), cores(h.MilliCPU), cores(q.MilliCPU))
	case littleMemory:
		return fmt.Sprintf("%s of %s memory free, %s asked", size(n.memory), size(h.Memory), size(q.Memory))
	case littleDisk:
		return fmt.Sprintf("%s of %s disk free, %s asked", size(n.disk), size(h.Disk), size(q.Disk))
	}
	return "is " + phrases[v]
}

func (q *query) gpuReason(n *node, v verdict) string {
	var g gpuCount
	q.count(n, &g)
	what := cmp.Or(q.GPUModel, q.Require.GPUModel, "GPUs")
	switch {
	case len(n.host.GPUs) == 0:
		return "has no GPU"
	case v == wrongModel:
		return fmt.Sprintf("has no %s (but %s)", what, n.models())
	case v == smallGPUs:
		return fmt.Sprintf("%d of its %d %s have %s of memory, %d asked", g.total+g.sick, g.model, what, size(q.GPUMemory), q.GPUs)
	case v == fewGPUs:
		return fmt.Sprintf("has %d %s, %d asked", g.total+g.sick, what, q.GPUs)
	}
	s := fmt.Sprintf("%d of %d %s free, %d asked", g.free, g.total+g.sick, what, q.GPUs)
	if g.sick > 0 {
		s += fmt.Sprintf(" (%d unhealthy)", g.sick)
	}
	return s
}

// models says "8 × NVIDIA H100".
func (n *node) models() string {
	var parts []string
	for i := range n.host.GPUs {
		if m := n.host.GPUs[i].Model; !slices.Contains(parts, m) {
			parts = append(parts, m)
		}
	}
	return strings.Join(parts, ", ")
}

// waiting is the sentence of a request that waits.
func (e *explanation) waiting(r Request) string {
	what := "Waiting for " + r.what()
	switch {
	case e.looked == 0 && e.counts[elsewhere] > 0:
		return what + ": the host " + cmp.Or(r.Require.Host, r.Home) + " is not in the fleet."
	case e.looked == 0:
		return what + ": no host has joined yet. A platform admin adds one with the install line."
	case len(e.rejected) == 1 && e.looked == 1:
		return what + ": " + e.rejected[0].Reason + "."
	}
	var order []verdict
	for v := range verdicts {
		if v != fits && v != elsewhere && e.counts[v] > 0 {
			order = append(order, v)
		}
	}
	slices.SortStableFunc(order, func(a, b verdict) int { return cmp.Compare(e.counts[b], e.counts[a]) })
	parts := make([]string, len(order))
	for i, v := range order {
		parts[i] = fmt.Sprintf("%d %s", e.counts[v], phrases[v])
	}
	return fmt.Sprintf("%s: %d hosts looked at: %s.", what, e.looked, strings.Join(parts, ", "))
}

// neverSentence says what the fleet lacks and what to ask for instead.
func (f *Fleet) neverSentence(r Request, e explanation) string {
	if e.looked == 0 {
		return fmt.Sprintf("There is no host %s; choose another one.", cmp.Or(r.Require.Host, r.Home))
	}
	q := f.query(r)
	most := 0
	for i := range f.nodes {
		if n := &f.nodes[i]; q.here(n) {
			var g gpuCount
			q.count(n, &g)
			most = max(most, g.total+g.sick)
		}
	}
	switch {
	case r.GPUs == 0 || most >= r.GPUs:
		return fmt.Sprintf("No host can ever give %s, even when nothing else runs (%s); ask for less, or have a larger host added.", r.what(), e.first())
	case most == 0:
		return fmt.Sprintf("No host has %s; choose another model or less memory per GPU, or have such a host added.", r.what())
	}
	return fmt.Sprintf("No host has %s: the most on one host is %d; ask for at most %d, or have a larger host added.", r.what(), most, most)
}

func (e *explanation) first() string {
	if len(e.rejected) == 0 {
		return "no host fits"
	}
	return e.rejected[0].Reason
}

func placedSentence(r Request, d Decision) string {
	if r.GPUs == 0 {
		return fmt.Sprintf("Placed on host %s by %s.", d.HostName, d.Strategy)
	}
	return fmt.Sprintf("Placed on host %s with %s by %s.", d.HostName, r.what(), d.Strategy)
}

// what says what is asked: "4 × H100", "2 GPUs with 40 GiB each, 8 cores".
func (r Request) what() string {
	var parts []string
	model := cmp.Or(r.GPUModel, r.Require.GPUModel)
	switch {
	case r.GPUs > 0 && model != "":
		parts = append(parts, fmt.Sprintf("%d × %s", r.GPUs, model))
	case r.GPUs == 1:
		parts = append(parts, "1 GPU")
	case r.GPUs > 1:
		parts = append(parts, fmt.Sprintf("%d GPUs", r.GPUs))
	}
	if r.GPUs > 0 && r.GPUMemory > 0 {
		parts[0] += " with " + size(r.GPUMemory) + " each"
	}
	if r.MilliCPU > 0 {
		parts = append(parts, cores(r.MilliCPU)+" cores")
	}
	if r.Memory > 0 {
		parts = append(parts, size(r.Memory)+" of memory")
	}
	if r.Disk > 0 {
		parts = append(parts, size(r.Disk)+" of disk")
	}
	if len(parts) == 0 {
		return "a host"
	}
	return strings.Join(parts, ", ")
}

func missing(have, want map[string]string) string {
	keys := make([]string, 0, len(want))
	for k, v := range want {
		if got, there := have[k]; !there || got != v {
			keys = append(keys, k+"="+v)
		}
	}
	slices.Sort(keys)
	return strings.Join(keys, ", ")
}

func cores(milli uint64) string {
	return strings.TrimSuffix(strings.TrimRight(fmt.Sprintf("%.3f", float64(milli)/1000), "0"), ".")
}

// size writes bytes for people: "1.5 GiB".
func size(n uint64) string {
	const units = "KMGTPE"
	if n < 1024 {
		return fmt.Sprintf("%d B", n)
	}
	f, u := float64(n)/1024, 0
	for f >= 1024 && u < len(units)-1 {
		f, u = f/1024, u+1
	}
	return strings.TrimSuffix(fmt.Sprintf("%.1f", f), ".0") + fmt.Sprintf(" %ciB", units[u])
}
