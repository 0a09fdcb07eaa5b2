package scheduler

import (
	"math/bits"
	"slices"
	"strings"
)

// maxFree is the most free GPUs that are told apart; a host with more counts
// as one with as many.
const maxFree = 64

// Fleet is an index over hosts for many decisions: what a filter asks is
// computed once per change of a host, and hosts are found by how many GPUs
// they have free. It is not safe for use by several goroutines.
type Fleet struct {
	nodes   []node
	byID    map[string]int
	models  []string // distinct GPU models, lower case; node classes point here
	modelID map[string]int
	buckets [maxFree + 1][]uint64 // by free GPUs: bit set of nodes
	last    int                   // node chosen last, for round_robin; -1: none
	Seed    uint64                // of Random
}

// node is a host as the filters need it, 80,000 GPUs being too many to walk.
type node struct {
	host    Host
	classes []class // GPUs of one model and memory
	free    int     // healthy GPUs that nobody has, all classes
	cpu     uint64  // what is left
	memory  uint64
	disk    uint64
}

type class struct {
	model       int
	memory      uint64
	free, total int // of the healthy ones
	sick        int
}

// NewFleet indexes hosts; their order is the order of first_fit and
// round_robin.
func NewFleet(hosts []Host) *Fleet {
	f := &Fleet{byID: make(map[string]int, len(hosts)), modelID: map[string]int{}, last: -1}
	f.nodes = make([]node, 0, len(hosts))
	for _, h := range hosts {
		f.Put(h)
	}
	return f
}

// Put adds a host or replaces what is known of it.
func (f *Fleet) Put(h Host) {
	i, known := f.byID[h.ID]
	if known {
		f.mark(i, false)
	} else {
		i = len(f.nodes)
		f.byID[h.ID] = i
		f.nodes = append(f.nodes, node{})
	}
	f.nodes[i] = f.node(h)
	f.mark(i, true)
}

// has reports whether hosts are all known, by their names of now.
func (f *Fleet) has(hosts []Host) bool {
	return !slices.ContainsFunc(hosts, func(h Host) bool {
		i, known := f.byID[h.ID]
		return !known || f.nodes[i].host.Name != h.Name
	})
}

// with returns a fleet that has hosts in place of those in dirty, by name.
func (f *Fleet) with(hosts []Host, dirty map[string]bool) *Fleet {
	all := slices.Clone(hosts)
	for i := range f.nodes {
		if h := f.nodes[i].host; !dirty[h.ID] {
			all = append(all, h)
		}
	}
	slices.SortFunc(all, func(a, b Host) int { return strings.Compare(a.Name, b.Name) })
	made := NewFleet(all)
	made.Seed = f.Seed
	if f.last >= 0 {
		made.After(f.nodes[f.last].host.ID)
	}
	return made
}

// Take books a placed decision on the index, as the database does.
func (f *Fleet) Take(r Request, d Decision) { f.book(r, d, true) }

// Give undoes Take.
func (f *Fleet) Give(r Request, d Decision) { f.book(r, d, false) }

func (f *Fleet) book(r Request, d Decision, taken bool) {
	i, known := f.byID[d.Host]
	if !known {
		return
	}
	h := f.nodes[i].host
	for _, uuid := range d.GPUs {
		for j := range h.GPUs {
			if h.GPUs[j].UUID == uuid {
				h.GPUs[j].Taken = taken
			}
		}
	}
	if taken {
		h.UsedMilliCPU, h.UsedMemory, h.UsedDisk = h.UsedMilliCPU+r.MilliCPU, h.UsedMemory+r.Memory, h.UsedDisk+r.Disk
	} else {
		h.UsedMilliCPU, h.UsedMemory, h.UsedDisk = h.UsedMilliCPU-r.MilliCPU, h.UsedMemory-r.Memory, h.UsedDisk-r.Disk
	}
	f.Put(h)
}

// After tells round_robin which host was chosen last.
func (f *Fleet) After(host string) {
	if i, known := f.byID[host]; known {
		f.last = i
	}
}

// lend puts hosts in until back is called.
func (f *Fleet) lend(hosts map[string]Host) (back func()) {
	var old []Host
	for id, h := range hosts {
		if i, known := f.byID[id]; known {
			old = append(old, f.nodes[i].host)
			h.GPUs = slices.Clone(h.GPUs) // what is taken meanwhile is not its owner's
			f.Put(h)
		}
	}
	return func() {
		for _, h := range old {
			f.Put(h)
		}
	}
}

func (f *Fleet) node(h Host) node {
	n := node{host: h, cpu: left(h.MilliCPU, h.UsedMilliCPU), memory: left(h.Memory, h.UsedMemory), disk: left(h.Disk, h.UsedDisk)}
	for i := range h.GPUs {
		g := &h.GPUs[i]
		c := n.class(f.model(g.Model), g.Memory)
		switch {
		case !g.Healthy:
			c.sick++
			continue
		case !g.Taken:
			c.free++
			n.free++
		}
		c.total++
	}
	return n
}

func (n *node) class(model int, memory uint64) *class {
	for i := range n.classes {
		if c := &n.classes[i]; c.model == model && c.memory == memory {
			return c
		}
	}
	n.classes = append(n.classes, class{model: model, memory: memory})
	return &n.classes[len(n.classes)-1]
}

func (f *Fleet) model(name string) int {
	id, known := f.modelID[name]
	if !known {
		id = len(f.models)
		f.models = append(f.models, strings.ToLower(name))
		f.modelID[name] = id
	}
	return id
}

func (f *Fleet) mark(i int, there bool) {
	b := &f.buckets[min(f.nodes[i].free, maxFree)]
	for len(*b) <= i/64 {
		*b = append(*b, 0)
	}
	if there {
		(*b)[i/64] |= 1 << (i % 64)
	} else {
		(*b)[i/64] &^= 1 << (i % 64)
	}
}

// each calls fn for every node with exactly free GPUs free, in order, until it
// returns false.
func (f *Fleet) each(free int, fn func(i int) bool) {
	for w, word := range f.buckets[free] {
		for ; word != 0; word &= word - 1 {
			if !fn(w*64 + bits.TrailingZeros64(word)) {
				return
			}
		}
	}
}

func left(capacity, used uint64) uint64 {
	if used >= capacity {
		return 0
	}
	return capacity - used
}
