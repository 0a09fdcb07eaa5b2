package scheduler

import (
	"cmp"
	"hash/fnv"
	"math/rand/v2"
)

// Place decides without reasons: in Summary and Rejected there is nothing. A
// request that names no strategy gets best_fit.
func (f *Fleet) Place(r Request) Decision {
	d := Decision{Strategy: cmp.Or(r.Strategy, BestFit), Looked: len(f.nodes)}
	q := f.query(r)
	i := -1
	for like := q.wishes(); like >= 0 && i < 0; like-- {
		i = f.find(&q, d.Strategy, like)
	}
	if i < 0 {
		return d
	}
	f.last = i
	h := &f.nodes[i].host
	d.Host, d.HostName, d.GPUs = h.ID, h.Name, q.choose(f, h)
	return d
}

// find returns the node that the strategy takes among those that fit and
// fulfil at least like wishes, or -1.
func (f *Fleet) find(q *query, s Strategy, like int) int {
	ok := func(i int) bool {
		n := &f.nodes[i]
		return q.judge(n) == fits && (like == 0 || q.liking(n) >= like)
	}
	if host := cmp.Or(q.Home, q.Require.Host); host != "" {
		if i, known := f.byID[host]; known {
			if ok(i) {
				return i
			}
			return -1
		}
	}
	switch s {
	case FirstFit:
		return f.scan(0, ok)
	case RoundRobin:
		return f.scan(f.last+1, ok)
	case Random:
		return f.random(q, ok)
	case LeastLoaded:
		for free := maxFree; free >= min(q.GPUs, maxFree); free-- {
			if i := f.extreme(free, ok, more); i >= 0 {
				return i
			}
		}
		return -1
	}
	for free := min(q.GPUs, maxFree); free <= maxFree; free++ {
		if i := f.extreme(free, ok, less); i >= 0 {
			return i
		}
	}
	return -1
}

// scan returns the first node that is ok, from a place on and around.
func (f *Fleet) scan(from int, ok func(int) bool) int {
	for k := range f.nodes {
		if i := (from + k) % len(f.nodes); ok(i) {
			return i
		}
	}
	return -1
}

// random draws until a node is ok; when few are, it draws from a list of all.
func (f *Fleet) random(q *query, ok func(int) bool) int {
	h := fnv.New64a()
	h.Write([]byte(q.Workload))
	rng := rand.New(rand.NewPCG(f.Seed, h.Sum64()))
	for range min(len(f.nodes), 64) {
		if i := rng.IntN(len(f.nodes)); ok(i) {
			return i
		}
	}
	chosen, seen := -1, 0
	for i := range f.nodes {
		if ok(i) {
			if seen++; rng.IntN(seen) == 0 {
				chosen = i
			}
		}
	}
	return chosen
}

// extreme returns the node with this many GPUs free that is ok and before all
// others by order.
func (f *Fleet) extreme(free int, ok func(int) bool, before func(a, b *node) bool) int {
	best := -1
	f.each(free, func(i int) bool {
		if (best < 0 || before(&f.nodes[i], &f.nodes[best])) && ok(i) {
			best = i
		}
		return true
	})
	return best
}

func less(a, b *node) bool {
	if a.memory != b.memory {
		return a.memory < b.memory
	}
	return a.cpu < b.cpu
}

func more(a, b *node) bool {
	if a.memory != b.memory {
		return a.memory > b.memory
	}
	return a.cpu > b.cpu
}
