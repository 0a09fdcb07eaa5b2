package broker

import (
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
)

func TestTurnsAreOneAtATimeAndForgotten(t *testing.T) {
	t.Parallel()
	order := turns{of: map[string]*turn{}}
	var busy [3]atomic.Int32
	var all sync.WaitGroup
	for i := range 3000 {
		all.Go(func() {
			defer order.take(fmt.Sprint("host_", i%3))()
			if n := busy[i%3].Add(1); n != 1 {
				t.Errorf("%d have the turn of host %d", n, i%3)
			}
			busy[i%3].Add(-1)
		})
	}
	all.Wait()
	if len(order.of) > 0 {
		t.Errorf("%d hosts are remembered, and nobody works on any", len(order.of))
	}
	free := order.take("host_0")
	order.take("host_1")() // another's turn keeps nobody waiting
	free()
}
