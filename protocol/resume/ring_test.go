package resume

import (
	"bytes"
	"math/rand/v2"
	"runtime"
	"testing"
)

// TestRing compares a ring with a slice under random pushes and drops.
func TestRing(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	var r ring
	var want []byte
	for range 20_000 {
		if most := []int{100, 20 << 10, 300 << 10}[rnd.IntN(3)]; rnd.IntN(2) == 0 {
			p := make([]byte, min(rnd.IntN(most), Window-r.len()))
			for i := range p {
				p[i] = byte(rnd.Uint32())
			}
			r.push(p)
			want = append(want, p...)
		} else {
			n := min(rnd.IntN(2*most), r.len())
			got := make([]byte, n)
			r.peek(0, got)
			r.drop(n)
			if !bytes.Equal(got, want[:n]) {
				t.Fatalf("the first %d of %d bytes differ", n, len(want))
			}
			want = want[n:]
		}
		if r.len() != len(want) {
			t.Fatalf("%d bytes in the ring, want %d", r.len(), len(want))
		}
	}
	r.drop(r.len())
	if len(r.buf) > ringOwn {
		t.Errorf("an empty ring keeps %d bytes", len(r.buf))
	}
}

// TestRingLends: what a bulk stream does over and over makes no garbage.
// TestRingLends: most fills allocate nothing large. Under the race detector a
// pool forgets a quarter of what it is given.
func TestRingLends(t *testing.T) {
	var r ring
	p := make([]byte, Window/2)
	const fills = 200
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for range fills {
		r.push(p[:1<<10])
		r.push(p[:64<<10])
		r.push(p)
		r.drop(r.len())
	}
	runtime.ReadMemStats(&after)
	if got := (after.TotalAlloc - before.TotalAlloc) / fills; got > (ringLent+Window)/2 {
		t.Errorf("%d bytes allocated per fill and drain, want what the ring needs to be lent mostly", got)
	}
}
