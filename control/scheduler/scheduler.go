// Package scheduler decides which host and which GPUs a workload gets.
//
// It owns placement: the pure decision (Place, Fleet), the allocations in the
// database, the queue of workloads that wait, the history of decisions with
// their reasons, and the strategy. It does not own hosts or workloads: it
// reads the former and is called by the latter. Its invariant: a GPU is
// allocated to at most one workload (the database forbids a second), no host
// gives more than it has, and whoever waits can read why.
package scheduler

import (
	"slices"
)

// Strategy is how one of several hosts that fit is chosen.
type Strategy string

// Strategies.
const (
	FirstFit    Strategy = "first_fit"    // the first by name
	BestFit     Strategy = "best_fit"     // the one with the fewest GPUs, then the least memory and cores left: keeps large gaps open
	LeastLoaded Strategy = "least_loaded" // the one with the most left: spreads
	RoundRobin  Strategy = "round_robin"  // the next after the last one chosen
	Random      Strategy = "random"       // any; the same request and seed give the same
)

// Strategies lists all, for messages and checks.
var Strategies = []Strategy{FirstFit, BestFit, LeastLoaded, RoundRobin, Random}

// Valid reports whether s is a strategy.
func (s Strategy) Valid() bool { return slices.Contains(Strategies, s) }

// Request is what a workload needs. Zero fields ask for nothing.
type Request struct {
	Workload  string            `json:"workload"` // env_…
	Workspace string            `json:"workspace"`
	Priority  int               `json:"priority,omitempty"` // higher is served first
	GPUs      int               `json:"gpus,omitempty"`
	GPUModel  string            `json:"gpu_model,omitempty"`  // part of the model's name, in any case
	GPUMemory uint64            `json:"gpu_memory,omitempty"` // least bytes of each GPU
	MilliCPU  uint64            `json:"milli_cpu,omitempty"`  // thousandths of a core
	Memory    uint64            `json:"memory,omitempty"`     // bytes
	Disk      uint64            `json:"disk,omitempty"`       // bytes
	OS        string            `json:"os,omitempty"`
	Arch      string            `json:"arch,omitempty"`
	Labels    map[string]string `json:"labels,omitempty"` // all must be on the host
	Require   Affinity          `json:"require"`          // hard
	Prefer    Affinity          `json:"prefer"`           // soft: hosts that match more of it come first
	Home      string            `json:"home,omitempty"`   // id of the host that keeps its files: it goes nowhere else
	Avoid     []string          `json:"-"`                // ids of hosts that cannot take one more workload of this kind
	Strategy  Strategy          `json:"strategy,omitempty"`
	New       bool              `json:"-"` // has nothing yet and does not wait; should it be one that never can be served, it is not kept
}

// Affinity binds a request to hosts. Empty fields bind to nothing.
type Affinity struct {
	Host     string `json:"host,omitempty" maxLength:"64" doc:"Name or id"`
	Region   string `json:"region,omitempty" maxLength:"64"`
	GPUModel string `json:"gpu_model,omitempty" maxLength:"64" doc:"Part of the model's name, in any case"`
}

// State says whether a host takes new workloads.
type State uint8

// States of a host. Only Ready takes anything.
const (
	Ready State = iota
	Offline
	Cordoned
	Draining
	Maintenance
	Unapproved
	Unhealthy
)

// Host is what a decision looks at: capacity, and what is taken of it.
type Host struct {
	ID     string
	Name   string
	OS     string
	Arch   string
	Region string
	Labels map[string]string
	State  State

	MilliCPU, Memory, Disk             uint64 // capacity
	UsedMilliCPU, UsedMemory, UsedDisk uint64 // allocated

	GPUs []GPU
}

// GPU is one device of a host.
type GPU struct {
	UUID    string
	Index   uint32
	Model   string   // "NVIDIA H100 80GB HBM3"
	Memory  uint64   // bytes
	NUMA    int32    // -1: unknown
	Links   []uint32 // NVLink lanes to the GPU of each index
	Healthy bool
	Taken   bool // allocated
}

// Decision is where a workload goes, or why it goes nowhere.
type Decision struct {
	Host     string      `json:"host,omitempty"` // id; empty: it must wait
	HostName string      `json:"host_name,omitempty"`
	GPUs     []string    `json:"gpus,omitempty"` // UUIDs
	Strategy Strategy    `json:"strategy"`
	Looked   int         `json:"looked"`             // hosts looked at
	Summary  string      `json:"summary"`            // one sentence
	Rejected []Rejection `json:"rejected,omitempty"` // some of the hosts that do not fit: at most MaxRejected, for who is placed MaxPassed
	Never    bool        `json:"never,omitempty"`    // not even an empty fleet could serve it; Summary says what to do
}

// Placed reports whether a host was found.
func (d Decision) Placed() bool { return d.Host != "" }

// MaxRejected and MaxPassed bound how many rejected hosts a Decision lists. The
// summary of one that waits counts them all; for one that is placed no more than
// maxLooked hosts are asked why not they.
const (
	MaxRejected = 100
	MaxPassed   = 10
	maxLooked   = 200
)

// Rejection is why a host does not do.
type Rejection struct {
	Host   string `json:"host"`
	Reason string `json:"reason"` // one sentence: "host gpu-3: 2 of 8 GPUs free, 4 asked"
}

// Place decides for one request over hosts, with all reasons. For many
// decisions over the same hosts, keep a Fleet.
func Place(r Request, hosts []Host) Decision {
	return NewFleet(hosts).Decide(r)
}

// Decide is Place with reasons, also for the hosts that a placed request did
// not get.
func (f *Fleet) Decide(r Request) Decision {
	d := f.Place(r)
	if d.Placed() {
		d.Looked, d.Rejected = f.passed(r)
		d.Summary = placedSentence(r, d)
		return d
	}
	e := f.explain(r)
	d.Looked, d.Rejected = e.looked, e.rejected
	switch {
	case e.never:
		d.Never, d.Summary = true, f.neverSentence(r, e)
	default:
		d.Summary = e.waiting(r)
	}
	return d
}
