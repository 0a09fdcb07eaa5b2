package scheduler

import (
	"cmp"
	"math/bits"
	"slices"
)

// exhaustive is how many free GPUs of a host are tried in every combination;
// with more, groups grow greedily from each GPU.
const exhaustive = 12

// choose picks the asked number of GPUs of a host: with the least memory that
// is enough, then with the most NVLink lanes among them, then on the fewest
// NUMA nodes, then cutting the fewest lanes to the GPUs that stay free.
func (q *query) choose(f *Fleet, h *Host) []string {
	if q.GPUs == 0 {
		return nil
	}
	var free []GPU
	for _, g := range h.GPUs {
		if id := f.modelID[g.Model]; g.Healthy && !g.Taken && g.Memory >= q.GPUMemory && q.models[id] {
			free = append(free, g)
		}
	}
	slices.SortStableFunc(free, func(a, b GPU) int { return cmp.Compare(a.Index, b.Index) })
	if q.preferred != nil {
		liked := slices.DeleteFunc(slices.Clone(free), func(g GPU) bool { return !q.preferred[f.modelID[g.Model]] })
		if len(liked) >= q.GPUs {
			free = liked
		}
	}
	p := newPicker(free)
	var set uint64
	if len(free) <= exhaustive {
		set = p.best(q.GPUs)
	} else {
		set = p.grow(q.GPUs)
	}
	var uuids []string
	for ; set != 0; set &= set - 1 {
		uuids = append(uuids, p.gpus[bits.TrailingZeros64(set)].UUID)
	}
	return uuids
}

// picker compares sets of at most 64 GPUs, as bits.
type picker struct {
	gpus  []GPU
	lanes [][]int // between each two
}

func newPicker(gpus []GPU) *picker {
	p := &picker{gpus: gpus[:min(len(gpus), 64)]}
	p.lanes = make([][]int, len(p.gpus))
	for i, a := range p.gpus {
		p.lanes[i] = make([]int, len(p.gpus))
		for j, b := range p.gpus {
			if i != j && int(b.Index) < len(a.Links) {
				p.lanes[i][j] = int(a.Links[b.Index])
			}
		}
	}
	return p
}

// worth orders sets; greater in the first field that differs is better.
type worth struct{ memory, lanes, nodes, cut int64 }

func (w worth) better(o worth) bool {
	return cmp.Or(cmp.Compare(w.memory, o.memory), cmp.Compare(w.lanes, o.lanes), cmp.Compare(w.nodes, o.nodes), cmp.Compare(w.cut, o.cut)) > 0
}

func (p *picker) worth(set uint64) worth {
	var w worth
	var numa []int32
	for a := set; a != 0; a &= a - 1 {
		i := bits.TrailingZeros64(a)
		w.memory -= int64(p.gpus[i].Memory >> 20)
		if n := p.gpus[i].NUMA; !slices.Contains(numa, n) {
			numa = append(numa, n)
		}
		for j := range p.gpus {
			switch {
			case set&(1<<j) == 0:
				w.cut -= int64(p.lanes[i][j])
			case j > i:
				w.lanes += int64(p.lanes[i][j])
			}
		}
	}
	w.nodes = -int64(len(numa))
	return w
}

// best tries every set of n.
func (p *picker) best(n int) uint64 {
	var best uint64
	var most worth
	for set := uint64(1)<<n - 1; set < 1<<len(p.gpus); {
		if w := p.worth(set); best == 0 || w.better(most) {
			best, most = set, w
		}
		low := set & -set // the next larger number with as many bits (Gosper)
		ripple := set + low
		set = ripple | (set^ripple)/low>>2
	}
	return best
}

// grow adds to each GPU the one that makes the best group, n-1 times, and
// returns the best of these groups.
func (p *picker) grow(n int) uint64 {
	var best uint64
	var most worth
	for seed := range p.gpus {
		set := uint64(1) << seed
		for range n - 1 {
			set = p.add(set)
		}
		if w := p.worth(set); best == 0 || w.better(most) {
			best, most = set, w
		}
	}
	return best
}

func (p *picker) add(set uint64) uint64 {
	var best uint64
	var most worth
	for i := range p.gpus {
		if set&(1<<i) != 0 {
			continue
		}
		if w := p.worth(set | 1<<i); best == 0 || w.better(most) {
			best, most = set|1<<i, w
		}
	}
	return best
}
