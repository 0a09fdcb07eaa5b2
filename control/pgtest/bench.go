package pgtest

import (
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// AtOnce lets askers do as often as the benchmark wants, and returns how long
// each time took, the shortest first.
func AtOnce(b *testing.B, askers int, do func() error) []time.Duration {
	b.Helper()
	took := make([]time.Duration, b.N)
	var next atomic.Int64
	var all sync.WaitGroup
	b.ResetTimer()
	for range askers {
		all.Go(func() {
			for i := next.Add(1) - 1; i < int64(b.N); i = next.Add(1) - 1 {
				start := time.Now()
				if err := do(); err != nil {
					b.Error(err)
					return
				}
				took[i] = time.Since(start)
			}
		})
	}
	all.Wait()
	b.StopTimer()
	slices.Sort(took)
	return took
}
