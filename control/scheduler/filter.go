package scheduler

import (
	"slices"
	"strings"
)

// verdict is why a host does not do; fits is that it does.
type verdict uint8

const (
	fits      verdict = iota
	elsewhere         // hard affinity or its files bind the request to another host
	offline
	cordoned
	draining
	maintenance
	unapproved
	unhealthy
	crowded // Request.Avoid
	wrongOS
	wrongArch
	wrongRegion
	wrongLabels
	wrongModel
	smallGPUs
	fewGPUs // too few even when all are free
	busyGPUs
	littleCPU
	littleMemory
	littleDisk
	verdicts // how many there are
)

var ofState = [...]verdict{Ready: fits, Offline: offline, Cordoned: cordoned, Draining: draining,
	Maintenance: maintenance, Unapproved: unapproved, Unhealthy: unhealthy}

// query is a request prepared for a fleet.
type query struct {
	Request
	models    []bool // by the fleet's model ids: does it match GPUModel and Require.GPUModel
	preferred []bool // the same for Prefer.GPUModel; nil: nothing preferred
}

func (f *Fleet) query(r Request) query {
	q := query{Request: r, models: make([]bool, len(f.models))}
	model, hard := strings.ToLower(r.GPUModel), strings.ToLower(r.Require.GPUModel)
	for i, name := range f.models {
		q.models[i] = strings.Contains(name, model) && strings.Contains(name, hard)
	}
	if r.Prefer.GPUModel != "" {
		q.preferred = make([]bool, len(f.models))
		for i, name := range f.models {
			q.preferred[i] = strings.Contains(name, strings.ToLower(r.Prefer.GPUModel))
		}
	}
	return q
}

// judge checks one host as it is now.
func (q *query) judge(n *node) verdict {
	if q.Require.Host == "" && q.Home == "" || q.here(n) {
		if n.host.State != Ready {
			return ofState[n.host.State]
		}
		if q.Avoid != nil && slices.Contains(q.Avoid, n.host.ID) {
			return crowded
		}
		return q.capacity(n, false)
	}
	return elsewhere
}

// here reports whether the request may be on this host by affinity.
func (q *query) here(n *node) bool {
	return (q.Home == "" || q.Home == n.host.ID) &&
		(q.Require.Host == "" || q.Require.Host == n.host.ID || q.Require.Host == n.host.Name)
}

// capacity checks everything but the host's state; with idle as if nobody used
// it.
func (q *query) capacity(n *node, idle bool) verdict {
	h := &n.host
	switch {
	case q.OS != "" && q.OS != h.OS:
		return wrongOS
	case q.Arch != "" && q.Arch != h.Arch:
		return wrongArch
	case q.Require.Region != "" && q.Require.Region != h.Region:
		return wrongRegion
	case len(q.Labels) > 0 && !hasAll(h.Labels, q.Labels):
		return wrongLabels
	}
	if q.GPUs > 0 || q.Require.GPUModel != "" {
		if v := q.gpus(n, idle); v != fits {
			return v
		}
	}
	cpu, memory, disk := n.cpu, n.memory, n.disk
	if idle {
		cpu, memory, disk = h.MilliCPU, h.Memory, h.Disk
	}
	switch {
	case q.MilliCPU > cpu:
		return littleCPU
	case q.Memory > memory:
		return littleMemory
	case q.Disk > disk:
		return littleDisk
	}
	return fits
}

func (q *query) gpus(n *node, idle bool) verdict {
	var count gpuCount
	q.count(n, &count)
	switch {
	case count.model == 0 && (q.GPUModel != "" || q.Require.GPUModel != ""):
		return wrongModel
	case count.total+count.sick < q.GPUs && count.model >= q.GPUs:
		return smallGPUs
	case count.total+count.sick < q.GPUs:
		return fewGPUs
	case !idle && count.free < q.GPUs:
		return busyGPUs
	}
	return fits
}

// gpuCount is what a host has of what is asked.
type gpuCount struct {
	model int // of the model, whatever its memory
	total int // of these with memory enough and healthy
	free  int // of these nobody has
	sick  int // with memory enough, but not healthy
}

func (q *query) count(n *node, g *gpuCount) {
	for i := range n.classes {
		c := &n.classes[i]
		if !q.models[c.model] {
			continue
		}
		g.model += c.total + c.sick
		if c.memory >= q.GPUMemory {
			g.total += c.total
			g.free += c.free
			g.sick += c.sick
		}
	}
}

// liking counts how many of the soft wishes a host fulfils.
func (q *query) liking(n *node) int {
	score := 0
	if q.Prefer.Host != "" && (q.Prefer.Host == n.host.ID || q.Prefer.Host == n.host.Name) {
		score++
	}
	if q.Prefer.Region != "" && q.Prefer.Region == n.host.Region {
		score++
	}
	for i := range n.classes {
		c := &n.classes[i]
		if q.preferred != nil && q.preferred[c.model] && c.free >= max(q.GPUs, 1) {
			return score + 1
		}
	}
	return score
}

// wishes is the most that liking can return.
func (q *query) wishes() int {
	n := 0
	for _, w := range []string{q.Prefer.Host, q.Prefer.Region, q.Prefer.GPUModel} {
		if w != "" {
			n++
		}
	}
	return n
}

func hasAll(have, want map[string]string) bool {
	for k, v := range want {
		if got, there := have[k]; !there || got != v {
			return false
		}
	}
	return true
}
