package main

import (
	"fmt"
	"net"
	"time"
)

// latency compares small round trips of tunnel and relay, alone and beside a
// bulk stream, and how long a new stream takes.
func latency(b *bench) error {
	l, tunnel, relay, err := b.facing("relay", 0)
	if err != nil {
		return err
	}
	defer l.close()
	defer tunnel.close()
	defer relay.close()
	alone := func(w *way) func() (measured, error) {
		return func() (measured, error) { return b.smallTrips(w, 0.5) }
	}
	p, err := paired(b.often(), alone(tunnel), alone(relay))
	if err != nil {
		return err
	}
	b.add("64-byte round trip, idle, p50", "µs", atMost(1.15), 0, p)
	for _, kind := range []byte{asSource, asSink} {
		beside := func(w *way) func() (measured, error) {
			return func() (measured, error) {
				stop, err := l.bulk(w, kind, 1)
				if err != nil {
					return nil, err
				}
				defer stop()
				time.Sleep(warmUp)
				return b.smallTrips(w, 0.99)
			}
		}
		p, err := paired(b.often(), beside(tunnel), beside(relay))
		if err != nil {
			return err
		}
		b.add(fmt.Sprintf("64-byte round trip beside a stream %s, p99", direction(kind)), "µs", atMost(1.2), 0, p)
	}
	return opening(b)
}

func (b *bench) smallTrips(w *way, q float64) (measured, error) {
	c, err := w.ask(asEcho)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	n := 2000
	if b.quick {
		n = 600
	}
	took, err := roundTrips(c, n)
	if err != nil {
		return nil, err
	}
	return measured{quantile(q, took) * 1e6}, nil
}

// opening compares the time until a new stream brings the target's first byte
// with one round trip on an open one. The host is in use: one stream stays
// open, and others come and go, five a second.
func opening(b *bench) error {
	const roundTrip = 50 * time.Millisecond
	l, tunnel, relay, err := b.facing("relay", roundTrip)
	if err != nil {
		return err
	}
	defer l.close()
	defer relay.close()
	defer tunnel.close()
	inUse, err := tunnel.ask(asEcho)
	if err != nil {
		return err
	}
	defer inUse.Close()
	there, err := relay.ask(asEcho)
	if err != nil {
		return err
	}
	defer there.Close()
	p, err := paired(b.seldom(),
		func() (measured, error) { return openings(tunnel) },
		func() (measured, error) { return oneTrip(there) },
	)
	if err != nil {
		return err
	}
	b.add("opening a stream, 50 ms round trip, against one round trip", "ms", atMost(1.2), 0, p)
	return nil
}

func openings(w *way) (measured, error) {
	var took []float64
	for range 8 {
		start := time.Now()
		c, err := w.open()
		if err != nil {
			return nil, err
		}
		took = append(took, time.Since(start).Seconds()*1e3)
		c.Close()
		time.Sleep(200 * time.Millisecond)
	}
	return measured{median(took)}, nil
}

func oneTrip(c net.Conn) (measured, error) {
	took, err := roundTrips(c, 8)
	if err != nil {
		return nil, err
	}
	return measured{median(took) * 1e3}, nil
}
