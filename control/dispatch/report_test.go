package dispatch

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"testing"
	"time"

	"golang.org/x/time/rate"

	"github.com/remotegpu/remotegpu/control/pg"
	"github.com/remotegpu/remotegpu/control/pgtest"
	"github.com/remotegpu/remotegpu/protocol"
)

// TestReportsShareATransaction: hosts that speak while others are served are
// taken together, and one who says what cannot be kept spoils it for nobody.
func TestReportsShareATransaction(t *testing.T) {
	t.Parallel()
	const hosts, bad = 60, "host-30"
	var mu sync.Mutex // guards what follows
	kept, acked, together := map[string]int{}, map[string]bool{}, 0
	served := make(chan struct{})
	svc := New(pgtest.New(t), Config{
		Connected: func(string) bool { return false },
		Publish: func(host, _ string, _ []byte) error {
			mu.Lock()
			defer mu.Unlock()
			acked[host] = true
			return nil
		},
		Workload: func(ctx context.Context, tx pg.Tx, said map[string]*protocol.Status) error {
			<-served
			mu.Lock()
			together = max(together, len(said))
			mu.Unlock()
			if said[bad] == nil {
				return nil
			}
			_, err := tx.Exec(ctx, "select 1 / 0")
			return err
		},
		HostState: func(_ context.Context, _ pg.Tx, said map[string]*protocol.Status) error {
			mu.Lock()
			defer mu.Unlock()
			for host := range said {
				kept[host]++
			}
			return nil
		},
	}, slog.New(slog.DiscardHandler))
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- svc.Run(ctx) }()
	for i := range hosts {
		host := fmt.Sprintf("host-%d", i)
		st := protocol.Status{Version: protocol.Version, Epoch: 1, Seq: 1, Usage: protocol.Usage{Load1: 1}}
		payload, err := protocol.Marshal(&st)
		if err != nil {
			t.Fatal(err)
		}
		svc.Status(host, payload)
	}
	for waiting := hosts; waiting > hosts-maxWork; time.Sleep(time.Millisecond) { // all workers have one
		svc.lanes.mu.Lock()
		waiting = len(svc.lanes.ready)
		svc.lanes.mu.Unlock()
	}
	close(served)
	for start := time.Now(); ; time.Sleep(time.Millisecond) {
		mu.Lock()
		n := len(acked)
		mu.Unlock()
		if n == hosts-1 {
			break
		}
		if time.Since(start) > 20*time.Second {
			t.Fatalf("%d of %d are acknowledged", n, hosts)
		}
	}
	stop()
	<-done
	if kept[bad] != 0 || acked[bad] {
		t.Errorf("the bad one is kept %d times, acknowledged %v", kept[bad], acked[bad])
	}
	if together < maxWork/4 {
		t.Errorf("at most %d hosts in a transaction", together)
	}
}

// TestWhatIsKeptDoesNotChange: who has waited too long for others comes again
// while its status is at work still.
func TestWhatIsKeptDoesNotChange(t *testing.T) {
	t.Parallel()
	begun, goOn, kept := make(chan int, 1), make(chan struct{}), make(chan int, 2)
	svc := New(pgtest.New(t), Config{
		Workload: func(_ context.Context, _ pg.Tx, said map[string]*protocol.Status) error {
			begun <- len(said["host"].Events)
			<-goOn
			return nil
		},
		HostState: func(_ context.Context, _ pg.Tx, said map[string]*protocol.Status) error {
			kept <- len(said["host"].Events)
			return nil
		},
	}, slog.New(slog.DiscardHandler))
	ln := &lane{host: "host", events: rate.NewLimiter(0, 3)}
	st := &protocol.Status{Version: protocol.Version, Epoch: 1, Seq: 1, Events: []protocol.Event{{Seq: 1}, {Seq: 2}, {Seq: 3}}}
	ctx, giveUp := context.WithCancel(t.Context())
	done := make(chan bool)
	go func() { done <- svc.takeStatus(ctx, ln, st) }()
	before := <-begun
	giveUp()
	if <-done {
		t.Error("who has given up is served")
	}
	if svc.takeStatus(ctx, ln, st) { // of its events no more may be kept now
		t.Error("who gives up at once is served")
	}
	close(goOn)
	if after := <-kept; before != 3 || after != before {
		t.Errorf("of one status %d events are kept here and %d there, want 3", before, after)
	}
}
